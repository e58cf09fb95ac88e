"""Benchmarks of quantization: tables from records, targets that are missed are named."""

import argparse
import json
import math
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import quantize_peers, quantize_quality, rounding
from slimexp.data.base import Example
from slimexp.quantizer.minmax import MinMax


@pytest.mark.slow
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
    output = capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [*command, "--finished", "--seeds", "0", "1"])  # nothing of seed 1
    with pytest.raises(SystemExit, match="to nearest"):
        quantize_quality.main()
    assert capsys.readouterr().out.endswith(output[output.index("\nllama") :])
    monkeypatch.setattr(sys, "argv", [*command, "--only", "int4", "seed=1"])
    with pytest.raises(SystemExit):
        quantize_quality.main()
    assert "--only 'seed=1' names no row of llama; overrides go before --only" in capsys.readouterr().err
    assert "| int4 | trained at length, LSQ | 2 | 1 | " in output and "| ternary | to nearest |  | 1 | " in output
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


@pytest.mark.slow
@pytest.mark.parametrize("model", quantize_quality.ROWS)
def test_every_width_and_every_method_of_the_quality_table_is_a_command_that_holds(model: str) -> None:
    from slimexp.config.check import check
    from slimexp.config.composition import compose

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
    own = quantize_peers.by_slimexp(bench, widths["int8"], quantize_peers.NEAREST)
    assert own.mb > 0 and bench.grade(own.predictions) == bench.grade(own.predictions, range(len(bench.examples)))
    assert bench.worse(own.predictions, own.predictions) == (0.0, 0.0)
    assert {"input_ids", "attention_mask"} <= quantize_peers.calibration(bench)[0].keys()

    def refusing(*_: Any) -> Any:
        raise RuntimeError("no")

    monkeypatch.setattr(quantize_peers, "by_peer", refusing)
    pair = ("int8", quantize_peers.NEAREST, quantize_peers.TORCHAO, "int8_weight_only")
    (failed,) = quantize_peers.compared(bench, [pair], tmp_path)
    monkeypatch.setattr(quantize_peers, "by_peer", lambda *_: own)
    (even,) = quantize_peers.compared(bench, [pair], tmp_path)
    assert quantize_peers.beaten([failed, even], 1.0) == []
    assert quantize_peers.beaten([even._replace(worse=0.2, error=0.1)], 1.0) == ["toy, int8, to nearest, torchao"]
    lines = quantize_peers.table("cer", 0.5, [failed, even]).splitlines()
    assert lines[3].endswith("| torchao | failed: no | | |") and lines[4].endswith("| +0.0000 ± 0.0000 |")


@pytest.mark.fast
def test_the_error_of_a_paired_difference_is_that_of_its_mean(tmp_path: Path) -> None:
    text: Any = SimpleNamespace(task="causal_lm", grade=lambda output, _: {"perplexity": float(np.mean(output))})
    bench = quantize_peers.Bench("toy", text, None, tmp_path, [Example("")] * quantize_peers.BLOCKS)  # type: ignore[arg-type]
    own, peer = np.random.default_rng(0).normal(size=(2, quantize_peers.BLOCKS))
    mean, error = bench.worse(own, peer)
    assert math.isclose(mean, (own - peer).mean())
    assert math.isclose(error, (own - peer).std(ddof=1) / math.sqrt(quantize_peers.BLOCKS))


@pytest.mark.fast
@pytest.mark.parametrize("group", [None, 32])
@pytest.mark.parametrize("bits", [4, 8])
def test_layers_are_rounded_as_the_quantizer_does(bits: int, group: int | None) -> None:
    layer = torch.nn.Linear(64, 8)
    packed = rounding.rounded(layer, bits, group)
    assert torch.equal(packed.weight(), MinMax(bits=bits, group_size=group)(layer.weight))
    assert packed.numbers.dtype == torch.int8 and packed.bits == bits
