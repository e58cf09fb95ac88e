"""The harness on models in memory, without network."""

import json
import os
import socket
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

pytest.importorskip("lm_eval")

from slimexp.config.build import build
from slimexp.config.composition import compose
from slimexp.data.base import Corpus
from slimexp.host import progress
from slimexp.host.progress import Work
from slimexp.measure import harness_model, harness_tasks, lm_eval
from slimexp.measure.base import Subject
from slimexp.measure.harness_model import HarnessModel
from slimexp.measure.lm_eval import LmEval
from slimexp.measure.multiple_choice import spelling_items
from slimexp.model import base
from slimexp.model.base import Family
from slimexp.model.loading import from_folder
from slimexp.model.place import ZOO


def _measure(**changes: Any) -> LmEval:
    settings = {
        "tasks": None, "split": "test", "limit": 6, "choices": 3, "batch_size": 4, "num_fewshot": None, "seed": 0,
        "reach_s": 1.0, "verbose": False,
    }  # fmt: skip
    return LmEval(**settings | changes)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("network is blocked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(("task", "name"), [("seq2seq", "spelling_choice"), ("causal_lm", "next_line")])
def test_bundled_tasks_run_offline_in_silence_and_repeat(
    task: str,
    name: str,
    subjects: dict[str, Subject],
    corpora: dict[str, Corpus],
    capfd: pytest.CaptureFixture[str],
) -> None:
    first, second = (_measure().measure(subjects[task], subjects[task], corpora[task]) for _ in range(2))
    assert first == second
    assert set(first) == {f"{name}_{m}{s}" for m in ("acc", "acc_norm") for s in ("", "_stderr")}
    assert all(0 <= value <= 1 for value in first.values())
    assert capfd.readouterr() == ("", "")


def test_likelihoods_are_the_models_own(subjects: dict[str, Subject], corpora: dict[str, Corpus]) -> None:
    """A model that gives every token of the right answers its due gets them all."""
    family = subjects["seq2seq"].family
    items = spelling_items(corpora["seq2seq"].splits["test"], choices=3, seed=0)
    rights = {tuple(family.tokenizer(i["choices"][i["answer"]])["input_ids"][:-1]) for i in items}
    forward = family.model.forward

    def knowing(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        output.logits.zero_()
        for row, labels in enumerate(kwargs["labels"].tolist()):
            for position, label in enumerate(labels):
                if any(tuple(labels[: len(right)]) == right for right in rights):
                    output.logits[row, position, label] = 9.0
        return output

    with mock.patch.object(family.model, "forward", knowing):
        figures = _measure(limit=None).measure(subjects["seq2seq"], subjects["seq2seq"], corpora["seq2seq"])
    assert figures["spelling_choice_acc"] == 1.0


def test_standard_errors_are_bootstrapped_without_more_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval.api.metrics import bootstrap_stderr, median

    monkeypatch.setattr("multiprocessing.Pool", lambda *_: pytest.fail("a process was forked"))
    monkeypatch.delenv("DISABLE_MULTIPROC", raising=False)
    with _measure()._harness(["next_line"]):
        assert bootstrap_stderr(median, [0.0, 1.0, 2.0], iters=10) > 0
    assert "DISABLE_MULTIPROC" not in os.environ


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A harness that knows tasks over a local file, on a hub, and groups (reading the real index takes seconds)."""
    from lm_eval.tasks import TaskManager

    rows = [{"question": f"{i} is", "choices": [" odd", " even"], "answer": 1 - i % 2} for i in range(6)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = (
        "output_type: multiple_choice\ntest_split: test\ndoc_to_text: question\ndoc_to_choice: choices\n"
        "doc_to_target: answer\nmetric_list: [{metric: acc}]\nmetadata: {version: 2}\n"
    )
    for name, data in {
        "near_by": f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path / 'rows.jsonl'}}}}}\n",
        "far_away": "dataset_path: nobody/nothing\n",
        "far_off": "dataset_path: nobody/nothing\ndataset_name: part\n",
        "far_out": "dataset_path: nobody/nothing\n",
    }.items():
        (tmp_path / f"{name}.yaml").write_text(f"task: {name}\n{data}{common}")
    (tmp_path / "all.yaml").write_text("group: everywhere\ntask: [near_by, far_away, far_off, far_out]\n")
    (tmp_path / "some.yaml").write_text(
        "group: close\ntask: [near_by]\naggregate_metric_list: [{metric: acc, weight_by_size: true}]\n"
    )
    manager = TaskManager(include_defaults=False, include_path=str(tmp_path))
    monkeypatch.setattr(harness_tasks, "_manager", lambda named: manager)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.usefixtures("no_network", "index")
def test_what_would_be_downloaded_is_one_clear_error_without_network() -> None:
    with pytest.raises(ValueError, match=r"no task 'far_awya' \(nearest: far_away"):
        _measure(tasks=["far_awya"]).validate("causal_lm")
    with pytest.raises(ValueError) as caught:
        _measure(tasks=["everywhere", "next_line"]).validate("causal_lm")
    assert str(caught.value).startswith(
        "lm_eval: HF_HUB_OFFLINE is set, and this is not on this machine: nobody/nothing for far_away, far_out; "
        "nobody/nothing (part) for far_off. "
    )
    assert "set HF_HOME to it" in str(caught.value) and "next_line" in str(caught.value)
    assert "\n" not in str(caught.value) and "near_by" not in str(caught.value)
    _measure(tasks=["near_by"]).validate("causal_lm")


@pytest.mark.usefixtures("no_network", "index")
def test_what_is_downloaded_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(lm_eval.hub, "answers", lambda *_: True)  # and yet the data cannot be had
    with pytest.raises(ValueError, match="cannot load far_off"):
        _measure(tasks=["far_off", "near_by"]).validate("causal_lm")
    assert capsys.readouterr().out == "lm_eval: to be downloaded now: nobody/nothing (part) for far_off\n"


@pytest.mark.usefixtures("no_network", "index")
def test_tasks_of_the_harness_and_groups_are_kept_by_question(
    subjects: dict[str, Subject], corpora: dict[str, Corpus]
) -> None:
    subject, corpus = subjects["causal_lm"], corpora["causal_lm"]
    measure = _measure(tasks=["close"], limit=None)
    (scores,) = measure.results(["close"], subject, corpus).values()
    assert set(scores.rows) == {"near_by_acc", "close_acc"} <= set(scores.figures)
    for name, row in scores.rows.items():
        assert len(row.tops) == len(set(row.questions.tolist())) == 6 and row.figure == scores.figures[name]
    settings = [_measure(tasks=["close"], limit=limit).tests(subject, corpus)["close"] for limit in (None, 3)]
    assert settings[0]["versions"] == {"near_by": "2"} and settings[0] != settings[1]


def test_a_figure_of_whole_texts_is_kept_by_text(trained: tuple[str, Family, list[Any]]) -> None:
    task, family, tasks = trained
    if task == "seq2seq":
        pytest.skip("whole texts are for causal models")
    loaded = harness_tasks._manager(False).load(tasks[1:])
    with lm_eval._quiet():
        scores = harness_tasks.scores_of(_measure()._evaluate(family, loaded, 4))
    assert set(scores.rows) == {"texts_word_perplexity", "texts_byte_perplexity", "texts_bits_per_byte"}
    bits, words = scores.rows["texts_bits_per_byte"], scores.rows["texts_word_perplexity"]
    assert bits.bottoms.tolist() == [len("def value(x):\n    return x\n" * n) for n in (1, 3, 40, 2)]
    assert not bits.exponential and words.exponential
    for name, row in scores.rows.items():
        assert row.figure == pytest.approx(scores.figures[name], rel=1e-12)


def test_wrong_kind_of_model_is_said_before_training() -> None:
    with pytest.raises(ValueError, match=r"drop measure\.lm_eval"):
        _measure().validate("classification")
    with pytest.raises(ValueError, match="'next_line' is for causal_lm models"):
        _measure(tasks=["next_line"]).validate("seq2seq")
    _measure().validate("seq2seq")
    with pytest.raises(ValueError, match="num_fewshot=5: the bundled task next_line has no worked examples; leave it"):
        _measure(tasks=["next_line"], num_fewshot=5).validate("causal_lm")


@pytest.mark.fast
@pytest.mark.parametrize(
    "bad", [{"tasks": []}, {"split": "train"}, {"limit": 1}, {"choices": 1}, {"batch_size": 0}, {"num_fewshot": -1}]
)
def test_refuses(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(bad))} must"):
        _measure(**bad)


def _texts(task: str) -> dict[str, Any]:
    """A task of the harness over whole texts, some longer than the models read at once."""
    from datasets import Dataset

    rows = [{"text": "def value(x):\n    return x\n" * n} for n in (1, 3, 40, 2)]
    return {
        "task": task,
        "custom_dataset": lambda **_: {"test": Dataset.from_list(rows)},
        "test_split": "test",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": name} for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")],
    }


@pytest.fixture(scope="module", params=[pytest.param("t5_spelling", marks=pytest.mark.slow), "llama_python_source"])
def trained(request: pytest.FixtureRequest) -> tuple[str, Family, list[Any]]:
    """Task, a model of the zoo, and tasks of the harness that it serves."""
    task = {"t5_spelling": "seq2seq", "llama_python_source": "causal_lm"}[request.param]
    family = from_folder(ZOO / request.param, task, 128)
    node = compose([f"model={request.param}", f"data={request.param.split('_', 1)[1]}"]).data
    measure = _measure(limit=12, choices=4)
    (name,) = measure._names(task)
    items = measure._items(name, build(node), 128)
    return task, family, [harness_tasks.inline(name, items), *([_texts("texts")] if task == "causal_lm" else [])]


def _results(model: Any, tasks: list[Any], *, backwards: bool = False) -> Any:
    """Figures of all tasks, and each score of each request."""
    from lm_eval import evaluate

    loaded = harness_tasks._manager(False).load(tasks)
    for one in loaded["tasks"].values():
        one.set_config(key="num_fewshot", value=0)
        if backwards:
            one.dataset = {split: rows.select(range(len(rows))[::-1]) for split, rows in one.dataset.items()}
    results = evaluate(model, loaded, log_samples=True, bootstrap_iters=100)
    scores = {
        (name, sample["doc_hash"]): sample["filtered_resps"]
        for name, samples in results["samples"].items()
        for sample in samples
    }
    return results["results"], scores


@pytest.mark.usefixtures("no_network")
def test_scores_are_those_of_the_harness_to_the_last_bit(trained: tuple[str, Family, list[Any]]) -> None:
    """Whatever the batch, and in whatever order the questions are asked."""
    from lm_eval.models.huggingface import HFLM

    task, family, tasks = trained
    options = {"backend": lm_eval._BACKENDS[task], **lm_eval._tokens(family)}
    theirs = HFLM(
        pretrained=family.model, tokenizer=family.tokenizer, max_length=family.max_length, batch_size=1, **options
    )
    with lm_eval._quiet():
        expected, scores = _results(theirs, tasks)
        for batch_size in (1, 7):
            ours = _results(HarnessModel(family, batch_size=batch_size, **options), tasks)
            assert ours == (expected, scores)
        _, backwards = _results(HarnessModel(family, batch_size=7, **options), tasks, backwards=True)
    assert backwards == scores and [*backwards][:12] == [*scores][:12][::-1]
    assert len(scores) >= 12 and len({str(score) for score in scores.values()}) > 6


@pytest.mark.slow
def test_short_requests_score_as_in_the_harness_too(trained: tuple[str, Family, list[Any]]) -> None:
    """Products of few rows, for which libraries have kernels of their own."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    task, family, _ = trained
    options = {"backend": lm_eval._BACKENDS[task], **lm_eval._tokens(family)}
    pairs = [(letter * n, f" {answer}") for n in (1, 2, 3, 30) for letter in "abcdefg" for answer in ("x", "y z")]
    requests = [Instance("loglikelihood", {}, pair, 0) for pair in pairs]
    theirs = HFLM(pretrained=family.model, tokenizer=family.tokenizer, max_length=128, batch_size=1, **options)
    expected = theirs.loglikelihood(requests, True)
    for batch_size in (1, 7, 64):
        assert HarnessModel(family, batch_size=batch_size, **options).loglikelihood(requests, True) == expected


def test_answers_score_alike_where_all_logits_are_computed(
    subjects: dict[str, Subject], corpora: dict[str, Corpus], monkeypatch: pytest.MonkeyPatch
) -> None:
    subject, corpus = subjects["causal_lm"], corpora["causal_lm"]
    seen: list[list[tuple[float, bool]]] = []
    score = HarnessModel._loglikelihood_tokens

    def thrice(self: HarnessModel, requests: list[Any], *args: Any, **options: Any) -> Any:
        seen.append(score(self, requests))
        with monkeypatch.context() as patch:
            patch.setattr(harness_model, "keeps_some", lambda _: False)
            seen.append(score(self, requests))
            patch.setattr(base, "LOGITS", 1)
            seen.append(score(self, requests))
        return seen[0]

    monkeypatch.setattr(HarnessModel, "_loglikelihood_tokens", thrice)
    _measure(limit=None).measure(subject, subject, corpus)
    assert len(seen[0]) > 6 and seen[0] == seen[1] == seen[2]


@pytest.mark.parametrize("kind", ["loglikelihood", "loglikelihood_rolling", "generate_until"])
@pytest.mark.parametrize("task", ["causal_lm", "seq2seq"])
def test_requests_are_counted(
    task: str, kind: str, subjects: dict[str, Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval.api.instance import Instance

    begun: list[Work] = []
    begin = progress.reporter.begin
    monkeypatch.setattr(progress.reporter, "begin", lambda *args: begun.append(begin(*args)) or begun[-1])
    family = subjects[task].family
    model = HarnessModel(family, backend=lm_eval._BACKENDS[task], batch_size=2)
    more = {
        "loglikelihood": (" b",),
        "loglikelihood_rolling": (),
        "generate_until": ({"until": ["."], "max_gen_toks": 2},),
    }
    requests = [Instance("any", {}, (text * 9, *more[kind]), 0) for text in ("a b ", "c ", "d e f ")]
    hook = model.cache_hook
    assert len(getattr(model, kind)(requests)) == 3
    (work,) = begun
    assert (str(work), work.total, work.done) == ("request 3 of 3", 3, 3) and model.cache_hook is hook


def test_a_batch_that_does_not_fit_is_halved(
    subjects: dict[str, Subject], corpora: dict[str, Corpus], capfd: pytest.CaptureFixture[str]
) -> None:
    subject, corpus = subjects["causal_lm"], corpora["causal_lm"]
    expected = _measure().measure(subject, subject, corpus)

    def limited(_: Any, args: Any, options: dict[str, Any]) -> None:
        if len(options["input_ids"]) > 2:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")

    hook = subject.family.model.register_forward_pre_hook(limited, with_kwargs=True)
    try:
        assert _measure().measure(subject, subject, corpus) == pytest.approx(expected)
    finally:
        hook.remove()
    assert capfd.readouterr().out == "  out of memory with measure.lm_eval.batch_size=4: went on with 2\n"
