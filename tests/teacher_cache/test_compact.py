"""Learning from the compact cache: few bytes, right in the mean, and only for losses that can be."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from slimexp.loss.base import LabelLoss
from slimexp.teacher_cache.base import TeacherOutputs
from slimexp.teacher_cache.compact import Compact, Samples
from slimexp.technique.training import Execution

Make = Callable[..., Any]
CACHE = "+teacher_cache@pipeline.distill.cache=compact"


def test_samples_take_what_the_bytes_leave(technique: Make) -> None:
    cache = technique("distill", CACHE, steps=1).cache
    small, large = cache._layout(49_152), cache._layout(128_256)
    assert (small.bytes, small.samples, large.bytes, large.samples) == (98, 12, 98, 8)


def test_it_is_about_the_loss_from_the_teacher_itself(stage: Make, keep: Make, tmp_path: Path) -> None:
    """In the mean over many samples of the same batch."""
    online, values = stage(None), []
    online.model.eval()
    exact = online.evaluate(next(iter(online.batches(0, 1, workers=0))))[1]["kl"]
    cached = stage("compact", steps=1)
    teacher = cached.teacher_family
    cached.model.eval()
    for seed in range(24):
        cached.cache.sample_seed, cached.teacher_family, cached.cached = seed, teacher, None
        keep(cached, tmp_path / str(seed))
        values.append(cached.evaluate(next(iter(cached.batches(0, 1, workers=0))))[1]["kl"])
    drawn = torch.stack(values).double()
    assert len(set(drawn.tolist())) == 24
    assert abs(drawn.mean() - exact) < 4 * drawn.std() / 24**0.5 and drawn.std() < 0.2 * exact


def test_how_far_it_is_off_is_measured(stage: Make, keep: Make, tmp_path: Path) -> None:
    cached = stage("compact", "seq2seq", steps=10)
    keep(cached, tmp_path / "cache")
    (part,) = cached.cached.store.parts
    assert set(part.about["estimates"]) == {"1", "2", "4", "8"}
    for estimated, exact in part.about["estimates"].values():
        assert exact > 0 and estimated == pytest.approx(exact, rel=0.1)


def test_whole_logits_are_not_needed_but_do(
    stage: Make, keep: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cached = stage("compact")
    keep(cached, tmp_path / "cache")
    cached.model.eval()
    batch = next(iter(cached.batches(0, 1, workers=0)))
    chunked = cached.evaluate(batch)[1]
    monkeypatch.setattr("slimexp.technique.objective.Objective._label_sums", lambda *_: None)
    cached._objective = None
    for name, term in cached.evaluate(batch)[1].items():
        assert torch.allclose(term, chunked[name], rtol=1e-5)


@pytest.mark.fast
def test_samples_are_the_same_for_the_same_rows() -> None:
    form = Compact(folder=None, epochs=1, bytes=80, head=2, nodes=4, lowest=1.0, highest=8.0, sample_seed=0)
    samples = Samples(form._layout(500), 0)
    outputs = TeacherOutputs(torch.randn(9, 500), None)
    assert torch.equal(samples.encode(outputs, seed=5), samples.encode(outputs, seed=5))
    assert not torch.equal(samples.encode(outputs, seed=5), samples.encode(outputs, seed=6))


def test_it_is_compiled_once_for_any_number_of_labels(
    stage: Make, keep: Make, fit: Make, graphs: list[Any], tmp_path: Path
) -> None:
    ends = []
    for compiled in (False, True):
        made = stage("compact", "seq2seq")
        made.execution = Execution(compiled=compiled)
        keep(made, tmp_path / "cache")
        with pytest.MonkeyPatch.context() as patch:  # the loss alone
            patch.setattr("slimexp.technique.objective.blocks_compiled", lambda *_, **__: nullcontext())
            fit(made)
        made.release()
        ends.append([parameter.detach().clone() for parameter in made.model.parameters()])
    assert len(graphs) == 1
    assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))


class Reversed(LabelLoss):
    needs_teacher = True

    def of_logits(self, *_: Any) -> Any:
        raise AssertionError


def test_what_it_is_not_right_for_is_refused(technique: Make, stage: Make) -> None:
    cache = technique("distill", CACHE, steps=1).cache
    with pytest.raises(ValueError, match=r"losses\.reverse cannot be estimated.*use teacher_cache=exact"):
        cache.check({"reverse": Reversed(weight=1.0)})
    hot = {"steps": 1, "losses.kl.temperature.start": 9}
    with pytest.raises(ValueError, match=r"losses\.kl\.temperature must be in 1\.\.8.*got 9: set its lowest"):
        technique("distill", CACHE, **hot)
    technique("distill", CACHE, **hot, **{"cache.highest": 10})
    with pytest.raises(ValueError, match=r"temperatures must be 0 < lowest < highest, got 2 and 1\.5"):
        technique("distill", CACHE, **{"steps": 1, "cache.lowest": 2, "cache.highest": 1.5})
    with pytest.raises(ValueError, match="bytes of a teacher cache must be >= 54"):
        technique("distill", CACHE, **{"steps": 1, "cache.bytes": 40})
    made = stage("compact", "classification")
    with pytest.raises(ValueError, match="take less room than samples of them: use teacher_cache=exact"):
        made.cache.form(made.teacher_family, made.family)
