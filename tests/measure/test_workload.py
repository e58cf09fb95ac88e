"""The request that latency, memory and FLOPs are stated for."""

from dataclasses import replace

import pytest
import torch

from slimexp.decode.base import Decoder
from slimexp.measure.base import Subject
from slimexp.measure.workload import Replayed, Request, Workload, runner

SHAPE = Workload(batch=2, tokens=12, new_tokens=5, seed=0)


@pytest.mark.parametrize("task", ["seq2seq", "causal_lm"])
def test_decoding_with_the_cache_is_greedy_generation(task: str, subjects: dict[str, Subject]) -> None:
    family = subjects[task].family
    prompt = SHAPE.prompt(family)
    request = Request(family)
    decoded = []
    with torch.no_grad():
        request.prefill(prompt)
        for _ in range(SHAPE.new_tokens):
            decoded.append(request.next_ids)
            request.decode(1)
        expected = family.model.generate(
            prompt, attention_mask=torch.ones_like(prompt), do_sample=False, min_new_tokens=5, max_new_tokens=5,
            eos_token_id=None,
        )  # fmt: skip
    assert torch.equal(torch.cat(decoded, dim=1), expected[:, -5:])


def test_a_request_forgets_the_one_before(subjects: dict[str, Subject]) -> None:
    family = subjects["causal_lm"].family
    prompt = SHAPE.prompt(family)
    request = runner(family, SHAPE)
    assert isinstance(request, Request)
    outputs = []
    with torch.no_grad():
        for _ in range(2):
            request.prefill(prompt)
            request.decode(3)
            outputs.append(request.next_ids)
    assert outputs[0] is not None and outputs[1] is not None and torch.equal(outputs[0], outputs[1])


@pytest.mark.gpu
def test_on_a_gpu_one_sequence_decodes_as_a_graph(subjects: dict[str, Subject]) -> None:
    family = subjects["causal_lm"].family
    family.model.cuda()  # type: ignore[call-arg]
    one = replace(SHAPE, batch=1)
    graph = runner(family, one)
    assert isinstance(graph, Decoder) and type(runner(family, SHAPE)) is Request
    prompt = one.prompt(family)
    request = Request(family)
    with torch.no_grad():
        for way in (graph, request):
            way.prefill(prompt)
            way.decode(4)
    last = graph.steps.tokens[0, int(graph.steps.position) - 1]
    assert request.next_ids is not None and int(last) == int(request.next_ids)


@pytest.mark.gpu
@pytest.mark.parametrize("task", ["seq2seq", "classification"])
def test_on_a_gpu_other_models_run_as_graphs(task: str, subjects: dict[str, Subject]) -> None:
    family = subjects[task].family
    family.model.cuda()  # type: ignore[call-arg]
    shape = SHAPE.fitted(family)
    graph, request = runner(family, shape), Request(family)
    assert isinstance(graph, Replayed)
    for seed in (0, 1):  # the second time over what the first left
        prompt = replace(shape, seed=seed).prompt(family)
        with torch.no_grad():
            for way in (graph, request):
                way.prefill(prompt)
            for _ in range(shape.new_tokens):
                assert torch.equal(graph.next_ids, request.next_ids)
                for way in (graph, request):
                    way.decode(1)
        assert (graph.next_ids is None) == (task == "classification")
        if task == "classification":
            torch.testing.assert_close(graph.classes, request.classes)


@pytest.mark.parametrize("task", ["seq2seq", "causal_lm", "classification"])
def test_prompt_is_seeded_and_without_special_tokens(task: str, subjects: dict[str, Subject]) -> None:
    family = subjects[task].family
    prompt = SHAPE.prompt(family)
    assert prompt.shape == (2, 12) and torch.equal(prompt, SHAPE.prompt(family))
    assert not set(prompt.flatten().tolist()) & set(family.tokenizer.all_special_ids)


@pytest.mark.parametrize(
    ("task", "tokens", "new_tokens"), [("seq2seq", 64, 64), ("causal_lm", 32, 32), ("classification", 64, 0)]
)
def test_is_shortened_to_what_the_model_takes(
    task: str, tokens: int, new_tokens: int, subjects: dict[str, Subject]
) -> None:
    shape = Workload(batch=1, tokens=1000, new_tokens=1000, seed=0).fitted(subjects[task].family)
    assert (shape.tokens, shape.new_tokens) == (tokens, new_tokens)
    request = Request(subjects[task].family)
    request.prefill(shape.prompt(subjects[task].family))
    request.decode(shape.new_tokens)


@pytest.mark.fast
@pytest.mark.parametrize("bad", [{"batch": 0}, {"tokens": 0}, {"new_tokens": -1}])
def test_refuses_bad_shapes(bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(bad))} must be >="):
        Workload(**{"batch": 1, "tokens": 1, "new_tokens": 1, "seed": 0, **bad})
