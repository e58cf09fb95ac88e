"""The table at the end of a run."""

import re

from slimexp.pipeline.summary import summary

DENSE = {"cer": 0.02, "disk_mb": 10.0, "latency_p50_ms": 8.0, "decode_tokens_per_s": 100.0, "latency_ratio": 1.0}
SMALL = {"cer": 0.03, "disk_mb": 2.5, "latency_p50_ms": 16.0, "latency_p50_ms_dense": 30.0, "latency_ratio": 0.5,
         "decode_tokens_per_s": 150.0, "decode_tokens_per_s_dense": 120.0, "decode_ratio": 1.3}  # fmt: skip


def test_every_stage_stands_beside_the_dense_model() -> None:
    """By the paired ratios, as in reports, for a dense model that was timed earlier may have had the cores alone."""
    lines = summary([("dense", DENSE), ("quantize", SMALL)], headline="cer")
    assert [re.split(r"  +", line) for line in lines] == [
        ["", "cer", "disk_mb", "latency x dense", "decoding speed x dense"],
        ["dense", "0.0200", "10.00", "8.00 ms", "100 tokens/s"],
        ["quantize", "0.0300 (1.50x)", "2.50 (0.25x)", "0.50x (16.00 beside 30.00 ms)",
         "1.30x (150 beside 120 tokens/s)"],
    ]  # fmt: skip


def test_the_perplexity_of_a_ruined_model_has_three_digits() -> None:
    rows = [("dense", {"perplexity": 20.0}), ("cut", {"perplexity": 1.6955994e25})]
    assert summary(rows, headline="perplexity")[2].split() == ["cut", "1.7e+25", "(8.48e+23x)"]


def test_what_does_not_decode_has_a_latency() -> None:
    rows = [
        (name, {"macro_f1": 0.9, "latency_p50_ms": ms, "latency_ratio": ms / 8}) for name, ms in (("a", 8), ("b", 4))
    ]
    assert summary(rows, headline="macro_f1")[2].split() == ["b", "0.9000", "(1.00x)", "0.50x", "(4.00", "ms)"]


def test_noise_is_marked_as_in_reports() -> None:
    lines = summary([("dense", DENSE), ("a", SMALL), ("b", {**SMALL, "latency_noisy": 1.0})], headline="cer")
    assert [" 0.50x ~ (16" in line for line in lines] == [False, False, False, True, False]
    assert lines[-1].strip().startswith("~ latency is noisy: other processes")
    assert not any("~" in line for line in summary([("dense", DENSE), ("a", SMALL)], headline="cer"))


def test_what_was_not_measured_is_left_out() -> None:
    assert summary([("dense", DENSE)], headline="cer") == summary([], headline="cer") == []
    lines = summary([("dense", {}), ("prune", {"disk_mb": 5.0})], headline="cer")
    assert [line.split() for line in lines] == [["disk_mb"], ["dense", "-"], ["prune", "5.00"]]


def test_a_dense_figure_of_nothing_has_no_ratio() -> None:
    lines = summary([("dense", {"cer": 0.0}), ("prune", {"cer": 0.1})], headline="cer")
    assert lines[2].split() == ["prune", "0.1000"]
