"""One layer at a time, and the model is left as it was."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from slimexp import artifact
from slimexp.config.build import build
from slimexp.config.composition import compose
from slimexp.data.base import Corpus
from slimexp.importance.magnitude import Magnitude
from slimexp.loss.base import Loss
from slimexp.loss.cross_entropy import CrossEntropy
from slimexp.measure.base import Subject, spread
from slimexp.measure.sensitivity import Sensitivity, mean_loss, pruned, sensitivity
from slimexp.weight.attachment import attach
from slimexp.weight.mask import Mask

LOSS = CrossEntropy(weight=1.0, label_smoothing=0.0)
ROWS = [("one two", "one 2", 0), ("three", "3", 1), ("four and five", "four & 5", 1)]


@pytest.fixture(params=["seq2seq", "causal_lm", "classification"])
def family(request: pytest.FixtureRequest, tiny: Callable[..., Any]) -> Any:
    return tiny(request.param)


def batches(family: Any) -> list[Any]:
    return [family.encode(ROWS[:2]), family.encode(ROWS[2:])]


def test_every_layer_by_itself_and_nothing_is_left_of_it(family: Any) -> None:
    before = {name: tensor.clone() for name, tensor in family.model.state_dict().items()}
    growth = sensitivity(family, batches(family), loss=LOSS, importance=Magnitude(), sparsity=0.9)
    assert growth.keys() == family.compressible().keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in family.model.state_dict().items())
    name = max(growth, key=lambda name: abs(growth[name]))
    with pruned(family, importance=Magnitude(), sparsity={name: 0.9}):
        weight = family.compressible()[name].weight
        assert (weight == 0).float().mean().item() == pytest.approx(0.9, abs=1 / weight.numel())
        changed = [key for key, tensor in family.model.state_dict().items() if not torch.equal(tensor, before[key])]
        assert changed == [f"{name}.weight"]
        by_hand = mean_loss(family, batches(family), loss=LOSS)
    assert growth[name] == pytest.approx(by_hand - mean_loss(family, batches(family), loss=LOSS)) != 0


def test_nothing_pruned_nothing_grows(family: Any) -> None:
    growth = sensitivity(family, batches(family), loss=LOSS, importance=Magnitude(), sparsity=0.0)
    assert set(growth.values()) == {0.0}


def test_the_mean_is_over_tokens_and_not_over_batches(family: Any) -> None:
    together = mean_loss(family, [family.encode(ROWS)], loss=LOSS)
    assert mean_loss(family, batches(family), loss=LOSS) == pytest.approx(together, rel=1e-5)


@pytest.mark.parametrize("name", ["kl", "hidden"])
def test_a_loss_with_a_teacher_is_given_the_model_before(tiny: Callable[..., Any], name: str) -> None:
    loss: Loss = build(compose([f"+loss@pipeline.own={name}"]).pipeline.own)
    family = tiny("seq2seq")
    growth = sensitivity(family, batches(family), loss=loss, importance=Magnitude(), sparsity=0.5)
    assert all(value > 0 for value in growth.values())


def test_weights_come_back_after_an_error(tiny: Callable[..., Any]) -> None:
    family = tiny("causal_lm")
    name, layer = next(iter(family.compressible().items()))
    before = layer.weight.clone()
    with pytest.raises(RuntimeError), pruned(family, importance=Magnitude(), sparsity={name: 0.5}):
        raise RuntimeError
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize(
    ("sparsity", "message"),
    [({"no.layer": 0.5}, "no compressible layer 'no.layer'; there are "), ({None: 1.0}, r"must be in \[0, 1\), got")],
)
def test_what_cannot_be_is_said(tiny: Callable[..., Any], sparsity: dict[Any, float], message: str) -> None:
    family = tiny("causal_lm")
    named = {name or next(iter(family.compressible())): share for name, share in sparsity.items()}
    with pytest.raises(ValueError, match=message), pruned(family, importance=Magnitude(), sparsity=named):
        pass


def measure(**changes: Any) -> Sensitivity:
    node = compose(["measure=[sensitivity]"]).measure.sensitivity
    node.update({"rows": 4, **changes})
    return build(node)


class _NoTest(dict[str, Any]):
    """Splits of which the test one may not be looked at."""

    def __getitem__(self, split: str) -> Any:
        assert split == "validation"
        return super().__getitem__(split)


def test_it_is_the_divergence_on_rows_of_the_validation_split(
    subjects: Mapping[str, Subject], corpora: Mapping[str, Corpus], monkeypatch: pytest.MonkeyPatch
) -> None:
    subject, corpus = subjects["seq2seq"], corpora["seq2seq"]
    monkeypatch.setattr(corpus, "splits", _NoTest(corpus.splits))
    figures = measure(batch_size=3, sparsity=0.9).measure(subject, subject, corpus)
    assert list(figures) == [f"sensitivity_nats/{layer}" for layer in subject.family.compressible()]
    rows = [corpus.splits["validation"][i] for i in spread(12, 4, 0)]
    batch = subject.family.encode([(row.source, row.target, row.label) for row in rows])
    with torch.no_grad():
        before, _ = subject.family.forward(batch)
        layer = next(iter(subject.family.compressible()))
        with pruned(subject.family, importance=Magnitude(), sparsity={layer: 0.9}):
            after, _ = subject.family.forward(batch)
    real = batch["labels"] != -100
    p, q = before[real].log_softmax(-1), after[real].log_softmax(-1)
    assert figures[f"sensitivity_nats/{layer}"] == pytest.approx(
        (p.exp() * (p - q)).sum(-1).mean().item(), rel=1e-3, abs=1e-7
    )


def test_a_pruned_layer_is_given_further_zeros(tiny: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    family = tiny("seq2seq")
    (half, layer), (gone, empty), *_ = family.compressible().items()
    with torch.no_grad():
        layer.weight.view(-1)[::2] = 0
        empty.weight.zero_()
    zeros = {}

    def look(*_: Any, **__: Any) -> float:
        return zeros.setdefault((layer.weight == 0).float().mean().item(), 0.0)

    monkeypatch.setattr("slimexp.measure.sensitivity.mean_loss", look)
    growth = sensitivity(family, batches(family), loss=LOSS, importance=Magnitude(), sparsity=0.5)
    assert sorted(zeros) == [0.5, pytest.approx(0.75, abs=1e-3)]
    assert growth[gone] == 0 and half in growth


@pytest.mark.parametrize("activation_bits", ["null", "8"])
def test_a_quantized_model_is_measured_as_it_is_deployed(
    tiny: Callable[..., Any], tmp_path: Path, corpora: Mapping[str, Corpus], activation_bits: str
) -> None:
    changes = {"steps": 0, "bits": 8, "min_coverage": 0.01, "activation_bits": activation_bits}
    overrides = ["pipeline=quantize", *(f"pipeline.quantize.{name}={value}" for name, value in changes.items())]
    technique = build(compose(overrides).pipeline.quantize)
    corpus = corpora["causal_lm"]
    technique.prepare(tiny("causal_lm"), corpus, None)
    technique.finish()
    artifact.save(technique.family, tmp_path / "artifact", dtype=torch.float32, stages=[])
    subject = Subject(artifact.deployed(tmp_path / "artifact"), tmp_path / "artifact")
    figures = measure(sparsity=0.9).measure(subject, subject, corpus)
    assert len(figures) == len(subject.family.compressible())
    assert min(figures.values()) > -1e-6 and max(figures.values()) > 1e-4


def test_weights_that_are_no_plain_numbers_are_refused(tiny: Callable[..., Any]) -> None:
    family = tiny("causal_lm")
    name, layer = next(iter(family.compressible().items()))
    attach(layer, "weight", Mask(shape=layer.weight.shape))
    with pytest.raises(ValueError, match=f"the weights of layer '{name}' are packed or carry a mask or a quantizer"):
        sensitivity(family, batches(family), loss=LOSS, importance=Magnitude(), sparsity=0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sparsity": 0.0}, r"sparsity must be in \(0, 1\), got 0.0"),
        ({"sparsity": 1.0}, r"sparsity must be in \(0, 1\), got 1.0"),
        ({"rows": 0}, "rows must be >= 1, got 0"),
        ({"batch_size": 0}, "batch_size must be >= 1, got 0"),
        ({"loss": {"_target_": "slimexp.loss.hidden.HiddenStates", "weight": 1.0}}, "loss must be in nats, and Hidden"),
        (
            {"importance": {"_target_": "slimexp.importance.wanda.Wanda", "rows": 8}},
            "importance must score by weights alone, Wanda reads training text: use magnitude",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    node = compose(["measure=[sensitivity]"]).measure.sensitivity
    for name, value in changes.items():
        node[name] = value
    with pytest.raises(ValueError, match=message):
        build(node)
