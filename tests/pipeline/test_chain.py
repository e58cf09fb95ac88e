"""Stages follow each other in any order and number: what one did stays, or the next is refused before anything runs.

All ordered pairs of the techniques are composed from ``conf/`` and run on a model of two blocks; a new technique is in
them as soon as it is in ``SETTINGS``, and a test says so until it is.
"""

from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor

from slimexp import artifact
from slimexp.config.check import check
from slimexp.config.composition import compose, options
from slimexp.model.base import Family
from slimexp.model.loading import Scratch
from slimexp.model.tokenizer import Bpe
from slimexp.pipeline.pipeline import Pipeline
from slimexp.quantizer.base import Quantizer
from slimexp.serialization.pack import latents
from slimexp.weight.attachment import attached
from slimexp.weight.mask import Mask

RATE = 0.02
TRAINED = ["steps=2", "batch_size=4", "lr_scheduler.num_warmup_steps=0", f"optimizer.lr={RATE}"]
BITS = 3
CUT = ["+cut@pipeline.{stage}.cut=keep"]
REMOVED = [
    "steps=0",
    "axes=[ffn]",
    "multiple=4",
    "rows=2",
    "candidates=2",
    "importance.rows=2",
    "budget.share=0.93",
]
ROUNDED = ["steps=0", f"bits={BITS}", "group_size=null", "activation_bits=null"]
# Kind of stage -> technique, and what it takes as first and as second of a pair.
SETTINGS: dict[str, tuple[str, list[str], list[str]]] = {
    "finetune": ("finetune", TRAINED, TRAINED),
    "distill": ("distill", TRAINED, TRAINED),
    "distill_cut": ("distill", [*TRAINED, *CUT, "cut.ffn=32"], [*TRAINED, *CUT, "cut.ffn=8"]),
    "prune": ("prune", [*TRAINED, "sparsity=0.5", "every=1"], [*TRAINED, "sparsity=0.7", "every=1"]),
    "prune_structured": ("prune_structured", REMOVED, REMOVED),
    "prune_vocabulary": ("prune_vocabulary", [], []),
    "quantize": ("quantize", ROUNDED, ROUNDED),
}
# Run by default: each kind in both places, where it is not refused; the others are slow.
SHOWN = {
    ("distill_cut", "prune_structured"),
    ("prune_structured", "distill_cut"),
    ("prune_structured", "prune_vocabulary"),
    ("prune_vocabulary", "finetune"),
    ("finetune", "prune"),
    ("prune", "quantize"),
    ("quantize", "distill"),
}
REMOVALS = ("distill_cut", "prune_structured", "prune_vocabulary")
REFUSED = {
    **{("distill", second): "pipeline.first: the student would be its own teacher" for second in SETTINGS},
    **{
        (first, second): "removal comes first: masks and quantizers of pipeline.first would not survive "
        "pipeline.second; move pipeline.second before it"
        for first in ("prune", "quantize")
        for second in REMOVALS
    },
    ("quantize", "quantize"): "a pipeline quantizes once: remove one of its quantize stages",
    ("prune_vocabulary", "prune_vocabulary"): "pipeline.first has removed the tokens that training text does not use",
}
SHAPES = {
    "causal_lm": {"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
                  "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64},
    "seq2seq": {"model_type": "t5", "d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4, "num_layers": 2,
                "num_decoder_layers": 2},
    "classification": {"model_type": "bert", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
                       "num_attention_heads": 4, "max_position_embeddings": 64},
}  # fmt: skip

Run = Callable[..., Pipeline]


def spelled(stage: str, kind: str, *, second: bool = False) -> list[str]:
    """Overrides that add a stage of a kind."""
    technique, *both = SETTINGS[kind]
    lines = [f"+technique@pipeline.{stage}={technique}"]
    for setting in both[second]:
        lines.append(setting.format(stage=stage) if setting.startswith("+") else f"pipeline.{stage}.{setting}")
    return lines


@pytest.fixture(scope="module")
def chain(write_table: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Task (and overrides that add stages) -> the pipeline of a tiny dense model; stages alike are done once."""
    place = tmp_path_factory.mktemp("chain")
    table = write_table(place)

    def dense(task: str) -> Path:
        if not (place / task).exists():
            torch.manual_seed(0)
            source = Scratch(config=SHAPES[task], tokenizer=Bpe(vocab_size=330, characters=10_000), max_length=64)
            texts = [*table.read_text().splitlines(), *["an unseen zebra crossing the unseen street"] * 9]
            family = source.load(
                task=task, texts=lambda: texts, labels=("no", "yes") if task == "classification" else ()
            )
            family.model.save_pretrained(place / task)
            family.tokenizer.save_pretrained(place / task)
        return place / task

    def make(task: str, *stages: str) -> Pipeline:
        lines = ["model=pretrained", f"model.path={dense(task)}", "model.max_length=16", "data=files",
                 f"data.path={table}", f"data.task={task}", "logger=none", "trainer=fast", f"runs={place / 'runs'}",
                 "measure=[]", "save_dtype=float32", *stages]  # fmt: skip
        cfg = compose(lines)
        check(cfg)
        return Pipeline(cfg, overrides=lines)

    return make


def masks(family: Family) -> dict[str, Tensor]:
    return {place.module: a.mask for place, a in attached(family.model) if isinstance(a, Mask)}


def widths(family: Family) -> dict[str, int]:
    """Layer -> bits of the quantizer on its weight."""
    return {place.module: a.bits for place, a in attached(family.model) if isinstance(a, Quantizer)}


def matrices(family: Family) -> dict[str, Tensor]:
    """The weights beneath quantizers, masked, without vectors."""
    alive = {f"{name}.weight": mask for name, mask in masks(family).items()}
    return {name: weight * alive.get(name, 1) for name, weight in latents(family.model).items() if weight.ndim > 1}


def sizes(family: Family) -> int:
    return sum(tensor.numel() for tensor in latents(family.model).values())


def distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Largest difference of two weights of one name, of those that are zero in neither."""
    return max(float((one[name] - other[name])[(one[name] != 0) & (other[name] != 0)].abs().max()) for name in one)


def test_every_technique_is_in_the_pairs() -> None:
    assert {technique for technique, *_ in SETTINGS.values()} == set(options("technique"))
    assert {first for first, _ in SHOWN} == SETTINGS.keys() - {"distill"} and not SHOWN & REFUSED.keys()
    assert {second for _, second in SHOWN} == SETTINGS.keys()


@pytest.mark.parametrize(
    "task", ["causal_lm", *(pytest.param(task, marks=pytest.mark.slow) for task in ("seq2seq", "classification"))]
)
@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param(*pair, marks=[] if pair in SHOWN or pair in REFUSED else pytest.mark.slow)
        for pair in product(SETTINGS, repeat=2)
    ],
)
def test_what_the_first_of_a_pair_did_stays(chain: Run, task: str, first: str, second: str) -> None:
    lines = [*spelled("first", first), *spelled("second", second, second=True)]
    if (first, second) in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[first, second]) as caught:
            chain(task, *lines)
        assert "\n" not in str(caught.value)
        return
    run = chain(task, *lines)
    run.run()
    dense, before, after = (artifact.load(stage.artifact) for stage in run.stages)

    assert masks(before).keys() <= masks(after).keys()
    for name, mask in masks(before).items():
        assert not (masks(after)[name] & ~mask).any(), "a zero came to life"
    assert widths(before).items() <= widths(after).items()
    on_grids(after, artifact.deployed(run.stages[-1].artifact))
    assert sizes(after) <= sizes(before) - (second in REMOVALS)
    assert len(after.tokenizer) == len(before.tokenizer) or second == "prune_vocabulary"
    learned(first, second, *(matrices(family) for family in (dense, before, after)))


def on_grids(trained: Family, deployed: Family) -> None:
    """What is deployed are masked weights, and integers where there is a quantizer."""
    layers = deployed.compressible()
    for name, mask in masks(trained).items():
        assert not layers[name].weight[~mask].any()
    for name in widths(trained):
        assert torch.equal(layers[name].weight, trained.model.get_submodule(name).weight)
        assert max(len(row.unique()) for row in layers[name].weight) <= 2**BITS < layers[name].weight.shape[1]


def learned(
    first: str, second: str, dense: dict[str, Tensor], before: dict[str, Tensor], after: dict[str, Tensor]
) -> None:
    """The second stage goes on from the weights that the first one trained, not from the dense ones."""
    if SETTINGS[second][2][:1] == TRAINED[:1]:
        if second != "distill_cut":
            assert 0 < distance(after, before) <= 2.5 * RATE, "more than the steps of this stage can have moved it"
    elif second in REMOVALS:
        for name in after.keys() & before.keys():  # rows and columns go, and what stays is as it was
            assert torch.isin(after[name], before[name]).all()
    else:
        assert distance(after, before) == 0
    if first in ("finetune", "prune"):
        assert distance(before, dense) > RATE


def test_a_chain_may_be_long_and_have_a_technique_several_times(chain: Run) -> None:
    again = [line.replace("first", "{name}") for line in spelled("first", "finetune")]
    lines = [*spelled("words", "prune_vocabulary"), *spelled("units", "prune_structured"), *spelled("half", "prune")]
    lines += [*(line.format(name="settle") for line in again), *spelled("more", "prune", second=True)]
    lines += [*spelled("round", "quantize"), *spelled("teach", "distill")]
    lines += [line.format(name="settle_again") for line in again]
    run = chain("causal_lm", *lines)
    metrics = run.run()
    assert [stage.name for stage in run.stages[1:]] == [
        "words", "units", "half", "settle", "more", "round", "teach", "settle_again"
    ]  # fmt: skip
    assert metrics["half_sparsity"] == pytest.approx(0.5, abs=0.01)
    assert metrics["more_sparsity"] == pytest.approx(0.7, abs=0.01)
    assert metrics["round_bits"] == BITS
    last = artifact.load(run.stages[-1].artifact)
    assert sum(int((~mask).sum()) for mask in masks(last).values()) >= 0.69 * sum(
        mask.numel() for mask in masks(last).values()
    )
    on_grids(last, artifact.deployed(run.stages[-1].artifact))


def test_what_sits_on_the_run_s_model_is_in_the_way_of_a_removal(chain: Run) -> None:
    run = chain("causal_lm", *spelled("first", "prune"))
    run.run()
    dense, pruned = (stage.artifact for stage in run.stages)
    start = [f"model.path={pruned}", "model@baseline=pretrained", f"baseline.path={dense}", "baseline.max_length=16"]
    with pytest.raises(ValueError, match="quantizers of the run's model would not survive pipeline"):
        chain("causal_lm", *spelled("first", "prune_structured"), *start)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            [*spelled("first", "prune"), *spelled("second", "prune")],
            r"sparsity 0\.5 would change nothing: an earlier stage leaves 0\.5 of the same layers at zero",
        ),
        (
            [*spelled("first", "distill_cut", second=True), *spelled("second", "distill_cut")],
            r"pipeline\.second keeps 32 \(ffn\), and pipeline\.first leaves 8: keep fewer",
        ),
        (
            [
                *spelled("first", "prune_structured"),
                "pipeline.first.axes=null",
                *spelled("second", "distill"),
                "+loss@pipeline.second.losses.hidden=hidden",
            ],
            r"a loss of pipeline\.second compares hidden states .* set projection=true of the loss",
        ),
    ],
    ids=["zeros", "units", "width"],
)
def test_what_a_stage_cannot_find_after_another_is_refused_before_anything_runs(
    chain: Run, lines: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        chain("causal_lm", *lines)


def test_masks_of_other_layers_or_another_pattern_may_have_the_same_share(chain: Run) -> None:
    both = [*spelled("first", "prune"), *spelled("second", "prune")]
    for other in (["pipeline.first.exclude=['*.v_proj']"], ["pattern@pipeline.second.pattern=n_m",
                                                          "pipeline.second.pattern.m=4"]):  # fmt: skip
        chain("causal_lm", *both, *other)
