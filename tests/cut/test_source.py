from collections.abc import Callable
from typing import Any

import pytest
import torch

from slimexp.config.build import build
from slimexp.config.composition import compose
from slimexp.cut.keep import Keep
from slimexp.cut.source import CutOut
from slimexp.model.base import Family
from slimexp.model.loading import Pretrained

Tiny = Callable[..., Any]


def cut(**retained: Any) -> Keep:
    widths = dict.fromkeys(name for name in Keep.__dataclass_fields__ if name != "calibration_batches")
    return Keep(**widths | {"calibration_batches": 0} | retained)


def load(source: Any) -> Family:
    family: Family = source.load(task="seq2seq", texts=lambda: iter(["teh cat"]), labels=())
    return family


@torch.no_grad()
def logits(family: Family) -> torch.Tensor:
    return family.forward(family.encode([("one", "two!", None), ("three", "4", None)]))[0]


def test_without_a_size_it_is_the_model_that_its_source_loads(tiny_folder: Tiny) -> None:
    source = Pretrained(path=str(tiny_folder("seq2seq")), max_length=32)
    whole = CutOut(source=source, cut=cut())
    assert len(whole.load_tokenizer(lambda: iter(["teh cat"]))) == 259
    whole.validate("seq2seq")
    assert whole.max_length == 32 and whole.fingerprint() == source.fingerprint()
    assert whole.is_trained("seq2seq") == source.is_trained("seq2seq")
    assert torch.equal(logits(load(whole)), logits(load(source)))


def test_a_size_is_that_of_the_model_loaded(tiny_folder: Tiny) -> None:
    source = CutOut(source=Pretrained(path=str(tiny_folder("seq2seq")), max_length=32), cut=cut(ffn=16))
    assert load(source).model.config.d_ff == 16


def test_a_size_that_cannot_be_is_refused_before_anything_is_loaded(tiny_folder: Tiny) -> None:
    source = CutOut(source=Pretrained(path=str(tiny_folder("seq2seq")), max_length=32), cut=cut(ffn=49))
    with pytest.raises(ValueError, match=r"cut\.ffn must be in 1\.\.48, the model's own; got 49"):
        source.validate("seq2seq")


def test_from_conf() -> None:
    source = build(compose(["model=cut_out", "model.source.path=somewhere", "model.cut.ffn=16"]).model)
    assert isinstance(source, CutOut) and source.cut == cut(ffn=16, calibration_batches=8)
