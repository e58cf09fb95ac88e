"""A teacher reads what its student reads, also where the student's vocabulary was pruned."""

import json

import pytest
import torch
from tokenizers import Tokenizer

from slimexp.architecture.base import VOCABULARY
from slimexp.cut.remove import remove
from slimexp.cut.vocabulary import tokens_to_keep
from slimexp.model.base import Family
from slimexp.model.loading import Scratch
from slimexp.model.tokenizer import Bpe
from slimexp.technique.teacher import check_vocabularies, low_precision, reading_like

TEXTS = ["one", "two words", "and three words", "or even four words"] * 3


@pytest.fixture
def dense() -> Family:
    config = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
              "num_attention_heads": 2}  # fmt: skip
    torch.manual_seed(0)
    source = Scratch(config=config, tokenizer=Bpe(vocab_size=290, characters=10_000), max_length=32)
    family = source.load(task="causal_lm", texts=lambda: [*TEXTS, "an unseen zebra"], labels=())
    family.model.eval()
    return family


def pruned(family: Family, *, multiple: int = 1) -> Family:
    used = {i for ids in family.token_ids(TEXTS, truncate=False, target=False) for i in ids}
    kept = tokens_to_keep(family.tokenizer, used, rows=family.model.config.vocab_size, multiple=multiple)
    return remove(
        family, {stack: range(len(blocks)) for stack, blocks in family.blocks().items()}, {VOCABULARY: {"": kept}}
    )


@pytest.mark.parametrize("multiple", [1, 4])
def test_the_dense_model_teaches_a_smaller_vocabulary(dense: Family, multiple: int) -> None:
    student = pruned(dense, multiple=multiple)
    assert len(student.tokenizer) < len(dense.tokenizer)
    check_vocabularies(student.tokenizer, dense.tokenizer)
    teacher = reading_like(student, dense)
    batch = student.encode([(text, None, None) for text in TEXTS[:4]])
    with torch.no_grad():
        assert torch.equal(teacher.forward(batch)[0], student.forward(batch)[0])
    assert reading_like(teacher, student) is student


def test_a_vocabulary_that_is_split_otherwise_is_no_part_of_it(dense: Family) -> None:
    """Tokens of the same names are not enough."""
    student = pruned(dense)
    state = json.loads(student.tokenizer.backend_tokenizer.to_str())
    assert state["model"]["merges"].pop()
    student.tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))
    with pytest.raises(ValueError, match="teacher and student read different vocabularies"):
        reading_like(student, dense)


@pytest.mark.parametrize(
    ("precision", "device", "sharded", "expected"),
    [
        ("bf16-mixed", "cuda", False, torch.bfloat16),
        ("bf16-true", "cuda", False, torch.bfloat16),
        ("16-mixed", "cuda", False, None),  # whose range a teacher may leave
        ("bf16-mixed", "cuda", True, None),
        ("bf16-mixed", "cpu", False, None),
    ],
)
def test_a_teacher_runs_in_bfloat16_where_a_gpu_trains_in_it(
    precision: str, device: str, sharded: bool, expected: torch.dtype | None
) -> None:
    assert low_precision(precision, torch.device(device), sharded=sharded) == expected
