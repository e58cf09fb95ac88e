"""The table at the end of a run."""

from slimexp.pipeline.summary import summary

DENSE = {"cer": 0.02, "disk_mb": 10.0, "latency_p50_ms": 8.0, "decode_tokens_per_s": 100.0}
SMALL = {"cer": 0.03, "disk_mb": 2.5, "latency_p50_ms": 6.0, "decode_tokens_per_s": 150.0,
         "decode_tokens_per_s_dense": 120.0}  # fmt: skip


def test_every_stage_stands_beside_the_dense_model() -> None:
    lines = summary([("dense", DENSE), ("quantize", SMALL)], headline="cer")
    assert [line.split() for line in lines] == [
        ["cer", "disk_mb", "decode_tokens_per_s"],
        ["dense", "0.0200", "10.00", "100"],
        ["quantize", "0.0300", "(1.50x)", "2.50", "(0.25x)", "150", "(1.25x)"],  # by the dense model of the same minute
    ]
    assert len({line.index("(") for line in lines[2:]}) == 1


def test_what_does_not_decode_has_a_latency() -> None:
    rows = [(name, {"macro_f1": 0.9, "latency_p50_ms": ms}) for name, ms in (("dense", 8.0), ("quantize", 4.0))]
    assert summary(rows, headline="macro_f1")[2].split() == ["quantize", "0.9000", "(1.00x)", "4.00", "(0.50x)"]


def test_what_was_not_measured_is_left_out() -> None:
    assert summary([("dense", DENSE)], headline="cer") == summary([], headline="cer") == []
    lines = summary([("dense", {}), ("prune", {"disk_mb": 5.0})], headline="cer")
    assert [line.split() for line in lines] == [["disk_mb"], ["dense", "-"], ["prune", "5.00"]]


def test_a_dense_figure_of_nothing_has_no_ratio() -> None:
    lines = summary([("dense", {"cer": 0.0}), ("prune", {"cer": 0.1})], headline="cer")
    assert lines[2].split() == ["prune", "0.1000"]
