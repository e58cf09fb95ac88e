"""A smaller vocabulary: text of retained tokens is tokenized as before, with new ids."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerFast

from slimexp.cut.vocabulary import renumber, shrunk, tokens_to_keep
from slimexp.model.tokenizer import Bpe

TEXT = ["the cat sat on the mat", "a dog barked at the cat", "never see the unseeable zebra crossing there"] * 3
USED = TEXT[:2]
UNSEEN = "zebra, the unseen dog!"


def bpe() -> PreTrainedTokenizerFast:
    return Bpe(vocab_size=330, characters=10_000).build(TEXT)


def wordpiece() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(TEXT, trainers.WordPieceTrainer(vocab_size=90, special_tokens=special))
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return wrapped(tokenizer, pad="[PAD]", unk="[UNK]", eos="[SEP]")


def unigram() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=70, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>")
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return wrapped(tokenizer, pad="<pad>", unk="<unk>", eos="</s>")


def wrapped(tokenizer: Tokenizer, *, pad: str, unk: str, eos: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=pad, unk_token=unk, eos_token=eos)


KINDS = {"bpe": bpe, "wordpiece": wordpiece, "unigram": unigram}


def used(tokenizer: PreTrainedTokenizerFast) -> set[int]:
    return {i for ids in tokenizer(USED)["input_ids"] for i in ids}


@pytest.mark.parametrize("kind", KINDS)
def test_text_of_surviving_tokens_reads_as_before(kind: str, tmp_path: Path) -> None:
    tokenizer = KINDS[kind]()
    ids = tokens_to_keep(tokenizer, used(tokenizer), rows=len(tokenizer)).tolist()
    small = shrunk(tokenizer, ids)
    assert len(small) == len(ids) < len(tokenizer)
    small.save_pretrained(tmp_path)
    for again in (small, AutoTokenizer.from_pretrained(tmp_path)):
        assert [[ids[i] for i in row] for row in again(USED)["input_ids"]] == tokenizer(USED)["input_ids"]
        assert again.pad_token_id == ids.index(tokenizer.pad_token_id)
        assert again.batch_decode(again(USED)["input_ids"]) == tokenizer.batch_decode(tokenizer(USED)["input_ids"])


@pytest.mark.parametrize("kind", KINDS)
def test_other_text_can_still_be_written(kind: str) -> None:
    tokenizer = KINDS[kind]()
    small = shrunk(tokenizer, tokens_to_keep(tokenizer, used(tokenizer), rows=len(tokenizer)).tolist())
    before, after = (t(UNSEEN)["input_ids"] for t in (tokenizer, small))
    assert len(after) > len(before)
    assert after.count(small.unk_token_id) == before.count(tokenizer.unk_token_id)


def test_the_large_tokenizer_stays_as_it_was() -> None:
    tokenizer = bpe()
    before = tokenizer.backend_tokenizer.to_str()
    shrunk(tokenizer, tokens_to_keep(tokenizer, used(tokenizer), rows=len(tokenizer)).tolist())
    assert tokenizer.backend_tokenizer.to_str() == before


def test_rows_without_a_token_can_go_alone() -> None:
    tokenizer = bpe()
    assert shrunk(tokenizer, range(len(tokenizer))) is tokenizer


@pytest.mark.parametrize("multiple", [1, 8, 64, 1000])
def test_unused_tokens_fill_up_to_a_multiple(multiple: int) -> None:
    tokenizer = bpe()
    needed = len(tokens_to_keep(tokenizer, used(tokenizer), rows=400))
    kept = len(tokens_to_keep(tokenizer, used(tokenizer), rows=400, multiple=multiple))
    assert kept == min(-(-needed // multiple) * multiple, 400)


def test_configs_follow() -> None:
    config = PretrainedConfig(pad_token_id=0, eos_token_id=[2, 5], bos_token_id=None)  # type: ignore[call-arg]
    renumber(config, [0, 2, 4, 5])
    assert (config.pad_token_id, config.eos_token_id, config.bos_token_id) == (0, [1, 3], None)
    with pytest.raises(ValueError, match="vocabulary must keep eos_token_id=3: see"):
        renumber(config, [0, 1, 2])


def test_special_tokens_must_stay() -> None:
    tokenizer = bpe()
    with pytest.raises(ValueError, match="vocabulary must keep the special token '<pad>'"):
        shrunk(tokenizer, range(1, 200))
