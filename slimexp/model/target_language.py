"""The target language of a translator, which its tokenizer and its generation settings must agree on."""

import logging
import re
from functools import cache

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from slimexp.model.special_tokens import holders

log = logging.getLogger(__name__)

_CODE = re.compile(r"[a-z]{2,3}(_[A-Za-z]{2,4})?|__\w+__")  # en_XX, eng_Latn, __en__


def align_target_language(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Make the language that the model writes the one that its tokenizer encodes targets in, in place.

    Only tokenizers with a ``tgt_lang`` (mBART, NLLB, M2M100, PLBart) are concerned. The language that generation is
    forced to begin with, or that the decoder starts from, becomes the tokenizer's; where there is none, the tokenizer's
    is put into the generation config, and so into every folder that the model is saved in.

    Args:
        model: A translator.
        tokenizer: The model's tokenizer.

    Raises:
        ValueError: The two name different languages, or the tokenizer names one that it lacks.
    """
    generation = getattr(model, "generation_config", None)
    if not hasattr(tokenizer, "tgt_lang") or generation is None:
        return
    holders(model)  # checks that ids are whole numbers
    configured = generation.forced_bos_token_id, generation.decoder_start_token_id, model.config.decoder_start_token_id
    forced = next((i for i in configured if i is not None and _is_language(i, tokenizer)), None)
    if forced is not None and tokenizer.tgt_lang is None:
        tokenizer.tgt_lang = tokenizer.convert_ids_to_tokens(forced).strip("_")
    if tokenizer.tgt_lang is None:
        _warn_unnamed(str(getattr(tokenizer, "src_lang", None)))
        return
    ids = tokenizer(text_target="")["input_ids"]
    language = next((i for i in ids if _is_language(i, tokenizer)), None)
    if language is None:
        raise ValueError(
            f"the tokenizer knows no language '{tokenizer.tgt_lang}': name one of its own as tgt_lang in "
            "tokenizer_config.json"
        )
    if forced is not None and forced != language:
        raise ValueError(
            f"the tokenizer writes '{tokenizer.convert_ids_to_tokens(language)}' (tgt_lang in tokenizer_config.json), "
            f"generation '{tokenizer.convert_ids_to_tokens(forced)}' (generation_config.json): name one language"
        )
    if forced is None and ids[0] == language:
        generation.forced_bos_token_id = language
    elif forced is None and model.config.decoder_start_token_id is None:
        generation.decoder_start_token_id = language  # mBART ends targets with their language, and starts from the end


def _is_language(token_id: int, tokenizer: PreTrainedTokenizerBase) -> bool:
    token = tokenizer.convert_ids_to_tokens(token_id)
    return isinstance(token, str) and _CODE.fullmatch(token) is not None


@cache
def _warn_unnamed(source: str) -> None:
    log.warning(
        "the tokenizer names no language to write (tgt_lang in tokenizer_config.json): targets are taken for '%s', "
        "the language that is read",
        source,
    )
