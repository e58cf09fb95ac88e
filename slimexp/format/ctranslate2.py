"""CTranslate2: T5, BERT, Llama and others on CPUs and GPUs, integers of 8 bits as they are packed."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from slimexp.architecture.base import HEADS
from slimexp.file.bounded import one_line, read_object
from slimexp.format.base import Artifact, Facts, Format, Ids, Logits, Running
from slimexp.host.extra import require
from slimexp.kernel.base import Packed
from slimexp.model.base import Family
from slimexp.model.loading import Pretrained
from slimexp.model.serving import stored_type
from slimexp.model.tokenizer import save_tokenizer
from slimexp.serialization.unpack import unpacked

if TYPE_CHECKING:
    import ctranslate2
    from ctranslate2.specs.model_spec import LayerSpec, ModelSpec

COMPUTE_TYPES = ("float32", "int8")
HEAD = "classifier.safetensors"


class Ctranslate2(Format):
    """What CTranslate2 loads, by its own converter of transformers models.

    Floats are stored in the type that the artifact stores them in. The engine chooses a type of its own to compute in
    where its user gives none: for a file of integers int8, which rounds more than the artifact does.

    Args:
        compute_type: What the engine computes in when it is compared: ``float32``, or ``int8``, for which it rounds
            all weights (embeddings and the head too) and the inputs of all layers.
        tolerance: Largest difference of a logit from PyTorch's in float32, as a share of the standard deviation of
            logits.
    """

    sized_by_config = (HEADS,)  # the sizes of other layers are those of their weights

    def __init__(self, *, compute_type: str, tolerance: float) -> None:
        if compute_type not in COMPUTE_TYPES:
            raise ValueError(f"compute_type must be {' or '.join(COMPUTE_TYPES)}, got '{compute_type}'")
        if not 0 < tolerance < math.inf:
            raise ValueError(f"tolerance must be a positive number, got {tolerance}")
        self.compute_type = compute_type
        self.tolerance = tolerance

    def require(self) -> None:
        require("ctranslate2", extra="ctranslate2", by="format=ctranslate2")

    def refusal(self, model: Artifact) -> str | None:
        kind = read_object(model.folder / "config.json").get("model_type")
        if model.task == "classification" and kind != "bert":
            return f"the engine has no classifier, and that of a {kind} is more than one layer"
        if model.lacks_layers:
            return "it has blocks without attention or feed-forward layers, which the engine would look for"
        if model.content["cache_bits"]:
            return "the engine keeps keys and values in floats, not in integers"
        if not model.bits:
            rounds = "its weights are floats, which int8 would round: quantize it first, or take compute_type=float32"
            return rounds if self.compute_type == "int8" else None
        for scheme in model.schemes:
            if why := _unheld(scheme):
                return why
        if model.rounds_activations and self.compute_type != "int8":
            return (
                "float32 does not round activations, which the model does: take "
                "format.compute_type=int8, whose steps are others (format.tolerance)"
            )
        return None

    def write(self, model: Artifact, folder: Path) -> Facts:
        source = Pretrained(path=str(model.folder), max_length=model.content["max_length"])
        family = source.load(task=model.task, texts=tuple, labels=())  # the converter takes it apart
        layers = unpacked(model.folder)
        if (tied := _tied(family.model)) in layers:
            raise ValueError(f"'{tied}' is the head too, whose input the engine rounds where its weights are integers")
        for number, (name, packed) in enumerate(layers.items()):
            marked = _marked(packed, number)
            family.model.get_submodule(name).weight = nn.Parameter(marked, requires_grad=False)
        family.model.tie_weights()
        _convert(model, family, list(layers), folder)
        save_tokenizer(family.tokenizer, folder)
        if model.task == "classification":
            save_file({key: value.contiguous() for key, value in _head(family.model).items()}, folder / HEAD)
        return {"dynamic_shapes": True, "compute_type": self.compute_type}

    def load(self, model: Artifact, folder: Path) -> Running:
        import ctranslate2

        kinds: dict[str, tuple[Callable[..., Any], Callable[[Any, Path], Running]]] = {
            "seq2seq": (ctranslate2.Translator, _Translator),
            "causal_lm": (ctranslate2.Generator, _Generator),
            "classification": (ctranslate2.Encoder, _Encoder),
        }
        engine, running = kinds[model.task]
        try:
            options = {"compute_type": self.compute_type, "intra_threads": torch.get_num_threads()}
            return running(engine(str(folder), device="cpu", **options), folder)
        except RuntimeError as error:
            raise ValueError(f"ctranslate2 cannot load what it converted ({one_line(error)})") from error


class _Generator(Running):
    decodes = True

    def __init__(self, engine: "ctranslate2.Generator", folder: Path) -> None:
        self.engine = engine
        self.tokens = json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))

    def logits(self, source: Ids, target: Ids) -> Logits:
        return np.array(self.engine.forward_batch([list(source)]))[0]

    def greedy(self, source: Ids, start: Ids, count: int) -> list[int]:
        prompt = [self.tokens[token] for token in source]
        options = {"beam_size": 1, "max_length": count, "end_token": [], "include_prompt_in_result": False}
        ids: list[int] = self.engine.generate_batch([prompt], **options)[0].sequences_ids[0]
        return ids


class _Translator(Running):
    decodes = True

    def __init__(self, engine: "ctranslate2.Translator", folder: Path) -> None:
        self.engine = engine
        files = {side: folder / f"{side}_vocabulary.json" for side in ("shared", "source", "target")}
        tokens = {side: json.loads(file.read_text(encoding="utf-8")) for side, file in files.items() if file.exists()}
        self.source: list[str] = tokens.get("source") or tokens["shared"]
        self.target: list[str] = tokens.get("target") or tokens["shared"]

    def logits(self, source: Ids, target: Ids) -> Logits:
        result = self._written(source, target, len(target), return_logits_vocab=True)
        return np.stack([np.array(step) for step in result.logits[0]])

    def greedy(self, source: Ids, start: Ids, count: int) -> list[int]:
        return [self.target.index(token) for token in self._written(source, start, count).hypotheses[0]]

    def _written(self, source: Ids, target: Ids, count: int, **options: Any) -> Any:
        """The engine's result for the likeliest ``count`` tokens, of which ``target`` tells the first."""
        given = [[self.target[token] for token in target[1:]]]  # the engine starts by itself
        options |= {"beam_size": 1, "max_decoding_length": count, "end_token": [], "max_input_length": 0}
        return self.engine.translate_batch([[self.source[token] for token in source]], given, **options)[0]


class _Encoder(Running):
    def __init__(self, engine: "ctranslate2.Encoder", folder: Path) -> None:
        self.engine = engine
        self.head = {name: tensor.numpy() for name, tensor in load_file(folder / HEAD).items()}

    def logits(self, source: Ids, target: Ids) -> Logits:
        pooled = np.array(self.engine.forward_batch([list(source)]).pooler_output)[0]
        logits: Logits = self.head["weight"] @ pooled + self.head["bias"]
        return logits


def _unheld(scheme: dict[str, Any]) -> str | None:
    """What of layers of one compressed-tensors scheme the engine's integers cannot hold, or ``None``."""
    weights, inputs = scheme["weights"], scheme.get("input_activations")
    if weights["type"] != "int":
        return "the engine has no float8"
    if weights["num_bits"] != 8:
        return f"the engine has integers of 8 bits, the model has some of {weights['num_bits']}"
    if not weights["symmetric"]:
        return "the engine has no zero points, which the model has"
    if weights["strategy"] not in ("channel", "tensor"):
        return f"the engine has one scale for a row, the model has one for each {weights['group_size']} weights"
    if inputs is not None and not inputs["dynamic"]:
        return "the engine takes the steps of activations from each token, those of the model are fixed"
    return None


def _tied(model: PreTrainedModel) -> str | None:
    """Name of the embeddings that are the head too, if there are any."""
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is None or not model.config.tie_word_embeddings:
        return None
    return next(name for name, module in model.named_modules() if module is embeddings)


def _marked(packed: Packed, number: int) -> Tensor:
    """Integers [out, in] as floats, with three columns more: scale, number of the layer, and infinity as a mark.

    Converters put the rows of layers together, some in another order: so what belongs to a row goes with it.
    """
    scale = packed.scale
    return torch.cat(
        [packed.numbers.float(), scale, torch.full_like(scale, number), torch.full_like(scale, math.inf)], dim=1
    )


def _convert(model: Artifact, family: Family, layers: Sequence[str], folder: Path) -> None:
    """Write the model by the engine's converter.

    Raises:
        ValueError: The converter does not know the model, or leaves packed integers out.
    """
    from ctranslate2.converters import TransformersConverter

    class Converter(TransformersConverter):
        def load_model(self, *_: Any, **__: Any) -> PreTrainedModel:
            return _converted(family.model)

        def load_tokenizer(self, *_: Any, **__: Any) -> Any:
            return family.tokenizer

    try:
        spec: ModelSpec = Converter(str(model.folder))._load()
        if width := getattr(family.model.config, "head_dim", None):
            for layer in spec.decoder.layer:  # not all loaders say it: the engine divides the hidden size by the heads
                vars(layer.self_attention).setdefault("head_dim", np.int32(width))
        spec.validate()
        spec.optimize()  # tied weights become one, before their scales are apart
        _store(spec, stored_type(model.folder), layers)
        for token in ("bos_token", "eos_token", "unk_token"):
            if getattr(spec.config, token, "") is None:  # as of the tokenizer; the engine reads text alone
                setattr(spec.config, token, "")
        if model.task == "classification":
            spec.config.add_attribute("id2label", family.model.config.id2label)
        spec.save(str(folder))
    except Exception as error:  # of the converters, which do not check what they are given
        kind = family.model.config.model_type
        raise ValueError(f"ctranslate2 cannot convert this {kind} ({one_line(error)}): take another format") from error


def _converted(model: PreTrainedModel) -> PreTrainedModel:
    """What the engine's loader of the model's type takes."""
    config = model.config
    if config.model_type == "t5":  # transformers 5 ties all T5s and scales by another key
        config.tie_word_embeddings = getattr(config, "scale_decoder_outputs", config.tie_word_embeddings)
    if config.model_type == "bert":
        config.position_embedding_type = "absolute"  # transformers 5 has no other, and no such key
        return cast(PreTrainedModel, model.base_model)
    return model


def _store(spec: "ModelSpec", dtype: torch.dtype, layers: Sequence[str]) -> None:
    """Put marked weights into ``spec`` as integers and scales, and floats in ``dtype`` where it holds them exactly.

    Raises:
        ValueError: Weights of ``layers`` got lost.
    """
    from ctranslate2.specs.model_spec import NumpyVariable, PyTorchVariable, Variable, visit_spec

    found: set[float] = set()

    def store(layer: "LayerSpec", name: str, value: Any) -> None:
        if not isinstance(value, Variable) or value.is_scalar() or value.dtype != "float32":
            return
        key, tensor = name.rpartition("/")[-1], torch.as_tensor(value.numpy())
        if tensor.ndim == 2 and tensor[:, -1].isinf().all():
            scale = tensor[:, -3]
            setattr(layer, f"{key}_scale", NumpyVariable(torch.where(scale == 0, 1, scale).reciprocal().numpy()))
            setattr(layer, key, NumpyVariable(tensor[:, :-3].to(torch.int8).numpy()))
            found.update(tensor[:, -2].tolist())
        elif torch.equal(tensor.to(dtype).float(), tensor):
            setattr(layer, key, PyTorchVariable(tensor.to(dtype)))

    visit_spec(spec, store)
    if left := [name for number, name in enumerate(layers) if number not in found]:
        raise ValueError(f"the engine has no integers for '{left[0]}'")


def _head(model: nn.Module) -> dict[str, Tensor]:
    """Weight [classes, hidden] and bias of the layer that reads the pooled token."""
    head = model.get_submodule("classifier")
    return {name: tensor.detach() for name, tensor in head.named_parameters()}
