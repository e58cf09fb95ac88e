"""The benchmarks say what is so: probabilities are such, both loops do the same maths, heavy imports are seen."""

import argparse
import json
import math
import multiprocessing
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import (
    baselines,
    cpu_kernels,
    distill_length,
    overhead,
    prune_curve,
    prune_large,
    prune_peers,
    prune_structured,
    quantize_peers,
    quantize_quality,
    startup,
    sweep,
    wandb_runs,
)
from slimexp import mirror
from slimexp.data.base import Corpus, Example

TRAIN = [b"def add(a, b):\n    return a + b\n", b"def sub(a, b):\n    return a - b\n", b"import os\n", b"x = 1\n"] * 3


@pytest.mark.fast
@pytest.mark.parametrize("smoothing", ["witten-bell", "kneser-ney"])
@pytest.mark.parametrize("context", [b"", b"d", b"def ", b"retu", b"\xff\xfe"])
def test_ngram_probabilities_sum_to_one(smoothing: baselines.Smoothing, context: bytes) -> None:
    words = [bytes([byte]) for byte in range(1, 256)]  # byte 0 pads, and is never predicted
    texts = [[context + word] for word in words]
    bits = baselines.ngram_bits(TRAIN, [[context], *texts] if context else texts, smoothing, orders=(4,))[4]
    before = bits.pop(0) * len(context) if context else 0.0
    total = sum(2 ** (before - each * (len(context) + 1)) for each in bits)
    assert 0.9 < total <= 1 + 1e-9  # the rest is byte 0's share of the uniform start


@pytest.mark.fast
def test_witten_bell_by_hand() -> None:
    bits = baselines.ngram_bits([b"ab", b"ab", b"ac"], [[b"a"], [b"ab"]], "witten-bell", orders=(2,))[2]
    alone = (2 + 3 / 256) / 9  # of b: 2 in 6 letters of 3 kinds
    after = (2 + 2 * alone) / 5  # of b after a: 2 in 3 letters of 2 kinds
    assert math.isclose(2 * bits[1] - bits[0], -math.log2(after))


@pytest.mark.fast
@pytest.mark.parametrize("smoothing", ["witten-bell", "kneser-ney"])
def test_ngrams_learn_from_their_context(smoothing: baselines.Smoothing) -> None:
    known, unknown = [b"def add(a, b):\n    return a + b\n"], [b"qqqq zzzz ~~~~ QQQQ"]
    bits = baselines.ngram_bits(TRAIN, [known, unknown], smoothing, orders=(1, 4))
    assert bits[4][0] < 1 < bits[1][0]
    assert bits[4][1] > 4


@pytest.mark.fast
def test_windows_start_every_passage_afresh_and_do_not_depend_on_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.concatenate(list(baselines.windows(TRAIN, 3)))
    assert len(whole) == sum(map(len, TRAIN))
    assert whole[:3].tolist() == [ord("d"), ord("d") << 8 | ord("e"), ord("d") << 16 | ord("e") << 8 | ord("f")]
    assert whole[len(TRAIN[0])] == ord("d")
    monkeypatch.setattr(baselines, "CHUNK", 40)
    chunks = list(baselines.windows(TRAIN, 3))
    assert len(chunks) > 1
    assert np.array_equal(np.concatenate(chunks), whole)


@pytest.mark.fast
def test_lzma_counts_only_what_the_held_out_text_adds() -> None:
    chance = np.random.default_rng(0)
    train = [chance.bytes(5000)]
    repeated, new = baselines.lzma_bits(train, [train, [chance.bytes(5000)]])
    assert repeated < 0.2
    assert 7.9 < new < 8.5


@pytest.mark.fast
def test_the_dictionary_corrects_one_edit_a_word_and_a_missing_space() -> None:
    dictionary = baselines.Dictionary(["Return the whole file.", "Close the file.", "The name of the file."] * 20)
    channel = baselines.Channel(edit=5.0, unseen=1e-4)
    assert dictionary.correct("Retrun teh file.", channel) == "Return the file."
    assert dictionary.correct('Close thefile, "nmae".', channel) == 'Close the file, "name".'
    assert dictionary.correct("Frobnicate it.", channel) == "Frobnicate it."
    assert dictionary.correct("Teh file.", baselines.Channel(edit=50.0, unseen=1e-4)) == "Teh file."


class Topics(Corpus):
    """Two classes told apart by one word."""

    task = "classification"
    labels = ("mail", "numbers")
    headline = "macro_f1"
    direction = "max"

    def load(self) -> Any:
        rows = [Example(f"{noun} {i}", label=label) for i in range(9) for label, noun in enumerate(("send", "round"))]
        return {"train": rows, "validation": rows[:6], "test": rows[6:]}

    def grade(self, predictions: Any, examples: Any) -> dict[str, float]:
        return baselines.grading.grade_label(predictions, examples, classes=2)

    def trivial(self, examples: Any) -> float:
        raise NotImplementedError


def test_bag_of_words_tells_topics_apart() -> None:
    corpus = Topics()
    commonest, *models = baselines.docstring_topic(corpus)
    assert commonest[2]["accuracy"] == 0.5
    assert [name.split(",")[0] for name, _, _ in models] == ["naive Bayes", "logistic regression"]
    assert all(test["macro_f1"] == 1 for _, _, test in models)
    lines = baselines.table(corpus, [commonest, *models]).splitlines()
    assert lines[0] == "| baseline | macro_f1 (validation) | macro_f1 (test) | accuracy (test) |"
    assert {line.count("|") for line in lines} == {5}


@pytest.mark.fast
@pytest.mark.parametrize("command", startup.COMMANDS, ids=lambda command: command.name)
def test_startup_sees_every_import_and_none_is_heavy(command: startup.Command) -> None:
    found = {item.module: item for item in startup.imports(command)}
    assert found["slimexp.config"].total_ms >= found["slimexp.config"].own_ms > 0
    assert not startup.HEAVY & {name.split(".")[0] for name in found}


@pytest.mark.fast
def test_startup_would_see_a_heavy_import() -> None:
    assert "numpy" in {item.module for item in startup.imports(startup.Command("numpy", ("-c", "import numpy"), 1.0))}


@pytest.mark.fast
def test_overhead_is_the_median_over_blocks_of_steps(capsys: pytest.CaptureFixture[str]) -> None:
    median, low, high = overhead.bootstrap([1.01] * 50 + [3.0])
    assert (median, low, high) == (1.01, 1.01, 1.01)
    timings = {
        "trainer_s": [[0.0102, 0.0101]] * 40, "plain_s": [[0.01, 0.01]] * 40,
        "checkpoint_s": 0.1, "checkpoint_mb": 1, "parameters": 1,
    }  # fmt: skip
    assert math.isclose(overhead.report(timings, batch=1, turn=1, every_seconds=10), 0.02 + 0.01)
    said = capsys.readouterr().out
    assert "plain step 10.0 ms, 4 pairs of 10 steps" in said
    assert "| wall | +2.00% | +2.00% to +2.00% | +3.00% |\n| CPU time | +1.00% |" in said


@pytest.mark.parametrize("technique", ["finetune", "distill"])
def test_trainer_and_plain_loop_take_turns_at_the_same_maths(
    technique: str, tiny_folder: Callable[..., Path], table: Path, tmp_path: Path
) -> None:
    from slimexp.config import check, compose
    from slimexp.pipeline import Pipeline

    path = tmp_path / "overhead.json"
    dense = tiny_folder("seq2seq", dropout_rate=0.1)
    arguments = argparse.Namespace(technique=technique, turn=2, blocks=2, overrides=[])
    changed = {
        "data": "files", "data.path": table, "data.task": "seq2seq",
        "model": "pretrained", "model.path": dense, "model.max_length": 16,
        "logger": "none", "trainer": "fast", f"pipeline.{technique}.batch_size": 2,
        "+callback.alternate": f"{{_target_: benchmarks.alternate.Alternate, path: {path}, steps: 2, "
        f"warmup: {overhead.warmup(arguments)}}}",
    }  # fmt: skip
    if technique == "distill":
        teacher = {"": "pretrained", ".path": dense, ".max_length": 16}
        changed |= {f"{'' if key else '+model@'}pipeline.distill.teacher{key}": value for key, value in teacher.items()}
    dropped = ("model=", "model.config=", "data=", "logger=", "+model@", f"pipeline.{technique}.teacher")
    kept = [line for line in overhead.overrides(arguments, str(tmp_path)) if not line.startswith(dropped)]
    cfg = compose([*kept, *(f"{key}={value}" for key, value in changed.items())])
    check(cfg)
    Pipeline(cfg, overrides=[]).run()  # raises where the weights differ
    timings = json.loads(path.read_text())
    assert len(timings["trainer_s"]) == len(timings["plain_s"]) == 2 * overhead.BLOCK // 2
    assert min(*timings["trainer_s"], *timings["plain_s"]) > [0, 0]
    assert timings["checkpoint_s"] > 0


def test_a_sweep_survives_kills(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep.chaos(argparse.Namespace(folder=tmp_path / "sweep", trials=100, workers=2, seed=1))
    assert "0 lost, 0 counted twice" in capsys.readouterr().out


@pytest.mark.fast
@pytest.mark.parametrize(("student", "parameters", "holds"), [(0.03, 50, True), (0.05, 50, False), (0.03, 51, False)])
def test_a_student_must_be_as_small_and_as_good_as_its_target(
    make_record: Callable[..., Any], student: float, parameters: float, holds: bool
) -> None:
    rows = [
        make_record(
            headline="cer", direction="min", trivial=0.1, seconds={"train": 9.0},
            metrics={"cer": cer, "params_live": parameters, "disk_mb": 1.0},
            baseline={"cer": 0.0, "params_live": 100.0},
        )
        for cer in (student - 0.01, student + 0.01)
    ]  # fmt: skip
    size = distill_length.summary("half", distill_length.Size(0.5, 0.7), rows)
    assert size["holds"] is holds
    assert math.isclose(sum(size["kept"]) / 2, 1 - student / 0.1)
    assert f"| half | {parameters:.1f}% |" in distill_length.table([size])


@pytest.mark.fast
def test_a_pruning_curve_is_a_table_and_a_picture(tmp_path: Path) -> None:
    curves = {"magnitude": {0.1: [11.0], 0.5: [20.0]}, "finetuned": {0.1: [10.0, 10.2], 0.5: [10.9, 11.1]}}
    said = prune_curve.table(10.0, curves).splitlines()
    assert said[2:5] == ["| 0 % | 1.000x | 1.000x |", "| 10 % | 1.100x | 1.010x |", "| 50 % | 2.000x | 1.100x |"]
    prune_curve.draw(10.0, curves, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 10_000


@pytest.mark.parametrize("method", ["magnitude", "wanda", "finetuned"])
def test_a_point_of_a_pruning_curve_is_one_command(method: str) -> None:
    from slimexp.config import check, compose

    arguments = argparse.Namespace(runs="runs", name="curve", overrides=["trainer=fast"])
    cfg = compose(prune_curve.overrides(method, 0.3, 1, arguments))
    check(cfg)
    assert (cfg.pipeline.prune.steps > 0) == ("kl" in cfg.pipeline.prune.losses) == (method == "finetuned")
    scorer = {"magnitude": "Magnitude", "wanda": "Wanda"}.get(method, "SparseGPT")
    assert cfg.pipeline.prune.importance._target_.endswith(f".{scorer}")


def test_a_toy_goes_through_every_way_to_prune(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["benchmark", "--toy", "wanda 2:4", "pipeline.prune.importance.rows=2"])
    prune_large.main()
    said = capsys.readouterr().out
    assert "| wanda 2:4 | 50.0% |" in said and "| no GPU | 1.5 |" in said and "need a CUDA GPU" in said


@pytest.mark.fast
def test_a_slow_arm_and_a_large_one_miss_their_targets() -> None:
    costs = {"wanda": prune_large.Cost(61, 1.2, 0.5), "sparsegpt": prune_large.Cost(61, 1.6, 0.5)}
    assert prune_large.missed(costs) == ["wanda took 61 s", "sparsegpt took 1.60 times the weights in memory"]
    assert "| 16 | graph | 2.00 | 1.00 | 2.00x |" in prune_large.kernels_table({(16, "graph"): (2.0, 1.0)})


@pytest.mark.fast
def test_a_peer_is_better_only_if_it_prunes_as_much() -> None:
    own, peer = prune_peers.Row(4.0, 0.5, 1), prune_peers.Row(3.9, 0.5, 1)
    assert prune_peers.higher(own, peer, 0.01) and not prune_peers.higher(own, peer, 0.05)
    assert not prune_peers.higher(own, peer._replace(zeros=0.0), 0.01)
    lines = prune_peers.table(own, {("2:4", "wanda"): (own, peer), ("2:4", "magnitude"): (own, "no")}).splitlines()
    assert lines[3] == "| 2:4 | wanda | 4.000 | 50.0% | 1 | 3.900 | 50.0% | 1 |"
    assert lines[4] == "| 2:4 | magnitude | 4.000 | 50.0% | 1 | failed: no | | |"


@pytest.mark.fast
def test_a_peer_that_cuts_better_is_named_and_one_that_hangs_says_where() -> None:
    axes = prune_peers.Axes("docstring_topic", "layers, ffn", ("ffn", "heads, ffn"))
    cuts: prune_peers.Cuts = {
        ("ffn", prune_peers.PEER_ROW): prune_peers.Cut(0.36, 0.75, 5),
        ("heads, ffn", prune_peers.PEER_ROW): prune_peers.Cut(0.33, 0.75, 5),
        ("ffn", "slimexp, magnitude"): prune_peers.Cut(0.35, 0.75, 1),
        ("layers, ffn", "slimexp, activation"): prune_peers.Cut(0.34, 0.75, 1),
    }
    assert prune_peers.beaten(axes, cuts, "max", 0.005) == ["ffn"]
    assert prune_peers.beaten(axes, cuts, "min", 0.005) == ["heads, ffn"]
    frame = 'File "/x/site-packages/torch_pruning/dependency/group.py", line 86 in has_pruning_op'
    said = prune_peers.reason(f"warned\nTimeout (0:01:00)!\nThread 0x1:\n  {frame}\n")
    assert said == "Timeout (0:01:00)! at torch_pruning/dependency/group.py, line 86 in has_pruning_op"
    assert "| heads, ffn | peer | failed: no | | |" in prune_peers.cuts_table("f1", {("heads, ffn", "peer"): "no"})


def test_a_toy_goes_through_every_kernel_of_the_cpu(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark", "--toy", "--rounds", "2", "--tokens", "2"])
    cpu_kernels.main()
    said = capsys.readouterr().out
    assert "| int8, no compiler |" in said and "| int8, head in float32 |" in said
    assert "of 4 layer shapes are not slower than the best float type" in said


@pytest.mark.fast
def test_ratios_are_taken_round_by_round() -> None:
    assert cpu_kernels.ratios([2.0, 20.0, 6.0], [1.0, 10.0, 2.0])[0] == 2.0


COMMANDS = [
    baselines,
    cpu_kernels,
    distill_length,
    overhead,
    prune_curve,
    prune_large,
    prune_peers,
    prune_structured,
    quantize_peers,
    quantize_quality,
    startup,
    sweep,
]


@pytest.mark.parametrize("module", COMMANDS)
def test_docstrings_say_the_command(module: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark", "--help"])
    with pytest.raises(SystemExit, match="0"):
        module.main()
    assert f"python -m {module.__name__}" in capsys.readouterr().out


@pytest.mark.fast
def test_workers_wait_only_while_there_are_trials_left() -> None:
    spans = [sweep.Span(0, 1), sweep.Span(0, 3), sweep.Span(1.5, 4), sweep.Span(3, 9)]
    share, refills = sweep.waiting(spans, workers=2)
    assert refills == [0.5, 0.0]
    assert math.isclose(share, 0.5 / 6)  # of two workers until the last trial began


def test_a_sweep_of_unequal_trials_keeps_its_workers_busy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep.idle(argparse.Namespace(folder=tmp_path / "sweep", trials=6, workers=2, pool="local", seconds=[0.0, 0.05]))
    said = capsys.readouterr().out
    assert "6 trials of 0 to 0.05 s on 2 workers (local)" in said and "| idle while trials are left |" in said


@pytest.mark.parametrize("workers", [0, pytest.param(4, marks=pytest.mark.slow)])  # 4 imports of Lightning
def test_wandb_runs_are_all_whole_and_a_lost_one_is_missed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    settled: Callable[[Path], Path],
    workers: int,
) -> None:
    def settling(function: Callable[[int], float], numbers: range) -> list[float]:
        seconds = [function(number) for number in numbers]
        settled(tmp_path)
        return seconds

    monkeypatch.setenv("WANDB_MODE", "offline")
    if workers:
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
            assert wandb_runs.write_and_read(4, tmp_path, pool.map) == 0
    else:
        assert wandb_runs.write_and_read(4, tmp_path, settling) == 0
    assert "12 of 12 records are whole in 4 runs" in capsys.readouterr().out
    (log, *_) = tmp_path.rglob("*.wandb")
    log.unlink()
    assert len(mirror.check(tmp_path).faults) == 3


@pytest.mark.fast
def test_the_structured_benchmark_holds_means_against_targets(make_record: Callable[..., Any]) -> None:
    base = {"cer": 0.015, "params_live": 100.0}
    metrics = {"cer": 0.016, "params_live": 74.0, "latency_ratio": 0.8, "decode_ratio": 1.2, "latency_noisy": 0.0}
    rows = [
        make_record(baseline=base, metrics=metrics),
        make_record(baseline=base, metrics=metrics | {"decode_ratio": 1.34}, seed=1),
    ]
    targets = {"kept": 0.98, "latency": 1.25, "decode": 1.25}
    assert prune_structured.missed(rows, targets, 0.75) == []
    assert prune_structured.missed(rows[:1], targets, 0.7) == ["decode 1.2 < 1.25", "parameters 0.74 > 0.7"]
    assert "| 1 | 74.0% | 0.0150 | 0.0160 | 98.4% | 1.25x | 1.34x | 1 s |" in prune_structured.table(rows)


def test_a_toy_is_quantized_to_a_table_and_a_missed_target_is_named(
    tiny_folder: Callable[..., Path], table: Path, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(quantize_quality, "ProcessPoolExecutor", lambda *_: ThreadPoolExecutor(1))
    toy = ["data=files", f"data.path={table}", "data.task=causal_lm", "model=pretrained", "model.max_length=16"]
    toy += [f"model.path={tiny_folder('causal_lm')}", "trainer=fast"]
    only = ["int4, to nearest", "int4, trained at length, LSQ", "ternary, to nearest", "int8, activations int8"]
    command = ["benchmark", "--models", "llama", "--only", *only, f"--runs={tmp_path}", "--seeds", "0"]
    command += ["--group", "16", "--long", "2", "--ratio", "0.5", *toy]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit, match=r"int8, to nearest: .*x dense > 0.5x"):
        quantize_quality.main()
    said = capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [*command, "--finished", "--seeds", "0", "1"])  # nothing of seed 1
    with pytest.raises(SystemExit, match="to nearest"):
        quantize_quality.main()
    assert capsys.readouterr().out.endswith(said[said.index("\nllama") :])
    monkeypatch.setattr(sys, "argv", [*command, "--only", "int4", "seed=1"])
    with pytest.raises(SystemExit):
        quantize_quality.main()
    assert "--only 'seed=1' names no row of llama; overrides go before --only" in capsys.readouterr().err
    assert "| int4 | trained at length, LSQ | 2 | 1 | " in said and "| ternary | to nearest |  | 1 | " in said
    assert len(json.loads((tmp_path / "quantize_quality.json").read_text())["rows"]) == 5


@pytest.mark.fast
def test_recovered_is_the_share_of_the_gap_that_is_gone() -> None:
    nearest, trained, failing = (
        quantize_quality.Row("llama", "int4", how) for how in ("to nearest", "trained", "GPTQ")
    )
    found = quantize_quality.Found("perplexity", [11.0, 11.0], [10.0, 10.0], 0, 1.0, ["a", "b"])
    rows: quantize_quality.Rows = {nearest: found, trained: found._replace(values=[10.1, 10.3]), failing: "no"}
    assert math.isclose(quantize_quality.recovered(trained, rows) or 0, 0.8)
    assert quantize_quality.recovered(nearest, rows) is None
    assert quantize_quality.missed(rows, ratio=1.005, least=0.8) == ["llama, int4, GPTQ: no"]
    assert quantize_quality.missed(rows, ratio=1.005, least=0.9)[1] == "llama, int4, trained: recovers 80.0% < 90%"
    lines = quantize_quality.table("llama", rows).splitlines()
    assert lines[4] == "| int4 | trained |  | 2 | 10.2000 ± 0.1414 | 1.020x | 80% | 1.00 |"
    assert lines[5] == "| int4 | GPTQ | | | no | | | |"


@pytest.mark.parametrize("model", quantize_quality.ROWS)
def test_every_width_and_every_method_of_the_quality_table_is_a_command_that_holds(model: str) -> None:
    from slimexp.config import check, compose

    arguments = argparse.Namespace(
        models=[model], only=[], seeds=[0], group=64, long=9, runs="r", name="n", overrides=[], trained=[]
    )
    met: set[str] = set()
    for row, (lines,) in quantize_quality.planned(arguments).items():
        if not {row.width, row.method} <= met:
            check(compose(lines))
        met |= {row.width, row.method}


@pytest.mark.parametrize("task", ["causal_lm", "seq2seq"])
def test_a_peer_is_held_against_the_same_rows(
    task: str, tiny: Callable[..., Any], corpus: Callable[[str], Any], monkeypatch: Any, tmp_path: Path
) -> None:
    text, dense = corpus(task), tiny(task)
    monkeypatch.setattr(quantize_peers, "loaded", lambda *_: tiny(task))
    monkeypatch.setattr(quantize_peers, "GROUP", 16)
    widths = {name: width._replace(group=width.group and 16) for name, width in quantize_peers.WIDTHS.items()}
    monkeypatch.setattr(quantize_peers, "WIDTHS", widths)
    bench = quantize_peers.Bench("toy", text, dense, tmp_path, list(text.splits["test"]))
    own = quantize_peers.ours(bench, widths["int8"], quantize_peers.NEAREST)
    assert own.mb > 0 and bench.grade(own.predictions) == bench.grade(own.predictions, range(len(bench.examples)))
    assert bench.worse(own.predictions, own.predictions) == (0.0, 0.0)
    assert {"input_ids", "attention_mask"} <= quantize_peers.calibration(bench)[0].keys()

    def refusing(*_: Any) -> Any:
        raise RuntimeError("no")

    monkeypatch.setattr(quantize_peers, "theirs", refusing)
    pair = ("int8", quantize_peers.NEAREST, quantize_peers.TORCHAO, "int8_weight_only")
    (failed,) = quantize_peers.compared(bench, [pair], tmp_path)
    monkeypatch.setattr(quantize_peers, "theirs", lambda *_: own)
    (even,) = quantize_peers.compared(bench, [pair], tmp_path)
    assert quantize_peers.beaten([failed, even], 1.0) == []
    assert quantize_peers.beaten([even._replace(worse=0.2, error=0.1)], 1.0) == ["toy, int8, to nearest, torchao"]
    lines = quantize_peers.table("cer", 0.5, [failed, even]).splitlines()
    assert lines[3].endswith("| torchao | failed: no | | |") and lines[4].endswith("| +0.0000 ± 0.0000 |")


@pytest.mark.fast
def test_the_error_of_a_paired_difference_is_that_of_its_mean(tmp_path: Path) -> None:
    class Mean(Topics):
        def grade(self, predictions: Any, examples: Any) -> dict[str, float]:
            return {"perplexity": float(np.mean(predictions))}

    text = Mean()
    text.task = "causal_lm"
    bench = quantize_peers.Bench("toy", text, None, tmp_path, [Example("")] * quantize_peers.BLOCKS)  # type: ignore[arg-type]
    own, peer = np.random.default_rng(0).normal(size=(2, quantize_peers.BLOCKS))
    mean, error = bench.worse(own, peer)
    assert math.isclose(mean, (own - peer).mean())
    assert math.isclose(error, (own - peer).std(ddof=1) / math.sqrt(quantize_peers.BLOCKS))


@pytest.fixture
def decode_large(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The module, which points Triton's cache at a folder of its own when it is imported."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))  # put back at the end
    from benchmarks import decode_large

    return decode_large


def test_decoding_arms_build_at_the_size_of_a_toy(decode_large: Any) -> None:
    import torch

    from slimexp.decode.words import Words

    for arm in decode_large.ARMS.values():
        model = decode_large.random_model(prune_large.TOY, arm, "cpu")
        assert len(model.model.layers) == max(1, round(arm.layers * prune_large.TOY["num_hidden_layers"]))
        layers = [one for one in model.modules() if isinstance(one, torch.nn.Linear | Words)]
        assert all(isinstance(one, Words) == (arm.bits < 16) for one in layers) and layers
        dense = 2 * sum(one.in_features * one.out_features for one in layers if isinstance(one, torch.nn.Linear))
        read = decode_large.stacked_bytes(model)
        assert read == dense if arm.bits == 16 else read > 0
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.fast
def test_decoding_targets_scale_with_the_card(decode_large: Any) -> None:
    half = decode_large.BANDWIDTH / 2
    fast, slow = (decode_large.Speed(rate, 1.0, 5.0, 10**9, 0.01) for rate in (401.0, 399.0))
    assert decode_large.missed({"fused, bf16": fast, "generate": slow}, half) == []
    assert decode_large.missed({"fused, bf16": slow}, half) == ["fused, bf16: 399 < 400"]
    assert "| fused, bf16 | 401 | 19% | 400 | 1.0 | 5.0 | 1.00 | 1.00% |" in decode_large.table(
        {"fused, bf16": fast}, half
    )


def test_decoding_at_the_size_of_a_toy(decode_large: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    import torch

    monkeypatch.setattr(sys, "argv", ["decode_large", "--tune", "soon"])
    with pytest.raises(SystemExit) as refused:
        decode_large.main()
    assert refused.value.code == 2 and "argument --tune: invalid float value: 'soon'" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["decode_large", "--toy"])
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit, match="decoding is measured on a CUDA GPU, and there is none"):
            decode_large.main()
        return
    decode_large.main()
    told = capsys.readouterr().out
    assert all(f"| {name} | " in told for name in decode_large.ARMS)
