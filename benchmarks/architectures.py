"""Which architectures can what: a table of model types by actions, every cell by a run.

    python -m benchmarks.architectures
    python -m benchmarks.architectures --only llama phi3 --out table.md

Models are of random weights, built from configs: three blocks, 64 channels. Nothing is downloaded. Every action is a
run of ``slimexp.pipeline.pipeline`` as any other, with its checks, artifact and measures; what trains takes 2 steps.
``remove`` takes half of one axis (of three layers, one) by structured pruning. ``reload`` has plain transformers load
every artifact that the other actions left, and compares its logits with slimexp's. A cell that does not work says why,
by a number below the table. Exit status 1 where one ends by anything but a refusal.
"""

import argparse
import contextlib
import io
import re
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

WORKS = "yes"
LONGEST = 160  # characters of a reason
TOLERANCE = 1e-3  # of the deviation of the logits

DECODER = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
GPT = {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_inner": 96, "n_positions": 64}
T5 = {"d_model": 64, "d_kv": 16, "d_ff": 96, "num_heads": 4, "num_layers": 3, "num_decoder_layers": 3}
BART = {
    "d_model": 64, "encoder_layers": 3, "decoder_layers": 3, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_position_embeddings": 64,
}  # fmt: skip
BERT = {key: value for key, value in DECODER.items() if key != "num_key_value_heads"}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
DEEPSEEK = {
    "num_key_value_heads": 4, "kv_lora_rank": 32, "q_lora_rank": 32, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16,
    "v_head_dim": 16, "moe_intermediate_size": 32, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 2, "topk_group": 1,
}  # fmt: skip
SLIDING = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
DEBERTA = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 16}

MODELS: Mapping[str, tuple[str, dict[str, Any]]] = {  # type -> task, config
    "llama": ("causal_lm", DECODER),
    "mistral": ("causal_lm", DECODER),
    "qwen2": ("causal_lm", DECODER),
    "qwen3": ("causal_lm", DECODER | {"head_dim": 16}),
    "gemma": ("causal_lm", DECODER | {"head_dim": 16}),
    "gemma2": ("causal_lm", DECODER | SLIDING | {"head_dim": 16}),
    "gemma3_text": ("causal_lm", DECODER | SLIDING | {"head_dim": 16}),
    "granite": ("causal_lm", DECODER),
    "olmo2": ("causal_lm", DECODER),
    "phi3": ("causal_lm", DECODER),
    "phi": ("causal_lm", DECODER),
    "stablelm": ("causal_lm", DECODER),
    "starcoder2": ("causal_lm", DECODER),
    "smollm3": ("causal_lm", DECODER | {"pad_token_id": 0}),
    "cohere": ("causal_lm", DECODER),
    "gpt2": ("causal_lm", GPT),
    "gptj": ("causal_lm", GPT | {"rotary_dim": 8}),
    "gpt_neox": ("causal_lm", BERT),
    "falcon": ("causal_lm", BERT | {"ffn_hidden_size": 96}),
    "bloom": ("causal_lm", {"hidden_size": 64, "n_layer": 3, "n_head": 4}),
    "opt": ("causal_lm", BERT | {"ffn_dim": 96, "word_embed_proj_dim": 64}),
    "mixtral": ("causal_lm", DECODER | {"num_local_experts": 4}),
    "qwen2_moe": ("causal_lm", DECODER | EXPERTS | {"shared_expert_intermediate_size": 32, "mlp_only_layers": [0]}),
    "qwen3_moe": ("causal_lm", DECODER | EXPERTS | {"head_dim": 16, "mlp_only_layers": [0]}),
    "deepseek_v2": ("causal_lm", DECODER | DEEPSEEK),
    "deepseek_v3": ("causal_lm", DECODER | DEEPSEEK),
    "t5": ("seq2seq", T5),
    "mt5": ("seq2seq", T5 | {"feed_forward_proj": "gated-gelu"}),
    "umt5": ("seq2seq", T5),
    "longt5": ("seq2seq", T5 | {"local_radius": 8}),
    "bart": ("seq2seq", BART),
    "mbart": ("seq2seq", BART),
    "m2m_100": ("seq2seq", BART),
    "pegasus": ("seq2seq", BART),
    "marian": ("seq2seq", BART),
    "bert": ("classification", BERT),
    "roberta": ("classification", BERT | {"max_position_embeddings": 66}),
    "xlm-roberta": ("classification", BERT | {"max_position_embeddings": 66}),
    "distilbert": (
        "classification",
        {"dim": 64, "hidden_dim": 96, "n_layers": 3, "n_heads": 4, "max_position_embeddings": 64},
    ),
    "electra": ("classification", BERT | {"embedding_size": 32}),
    "albert": ("classification", BERT | {"embedding_size": 32}),
    "mpnet": ("classification", BERT | {"max_position_embeddings": 66}),
    "deberta-v2": ("classification", BERT | DEBERTA),
    "modernbert": ("classification", BERT),
}

_SMALL = ["min_coverage=0.01", "min_block_coverage=0.01"]
ACTIONS: Mapping[str, tuple[str, list[str]]] = {  # action -> pipeline, values of its stage
    "mask": ("prune", ["sparsity=0.5", "steps=2", "min_coverage=0.01"]),
    "layers": ("prune_structured", ["axes=[layers]", "steps=2", "min_coverage=0.001"]),
    "heads": ("prune_structured", ["axes=[heads]", "steps=2", "min_coverage=0.001", "multiple=1"]),
    "ffn": ("prune_structured", ["axes=[ffn]", "steps=2", "min_coverage=0.001", "multiple=1"]),
    "hidden": ("prune_structured", ["axes=[hidden]", "steps=2", "min_coverage=0.001", "multiple=1"]),
    "int8": ("quantize", ["bits=8", "steps=0", *_SMALL]),
    "int4": ("quantize", ["bits=4", "activation_bits=null", "group_size=32", "steps=0", *_SMALL]),
    "cache": ("quantize", ["bits=8", "cache_bits=8", "steps=0", *_SMALL]),
    "distil": ("distill", ["steps=2"]),
}
COLUMNS = ("evaluate", *ACTIONS, "reload")


class Bench:
    """Runs actions on small models.

    Args:
        folder: Folder for models and runs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.table = folder / "table.csv"
        words = ["one", "two words", "and three words", "or even four"]
        lines = [f"{words[i % 4]} {i},{words[i % 4]}!,{words[i % 4]} {i},{('no', 'yes')[i % 2]}" for i in range(40)]
        self.table.write_text("\n".join(["source,target,text,label", *lines]) + "\n")

    def row(self, kind: str) -> dict[str, str]:
        """Action -> ``WORKS``, or why not."""
        self.save_dense(kind)
        cells = {"evaluate": _outcome(lambda: _evaluate(self.folder / kind / "dense", MODELS[kind][0]))}
        cells |= {action: self.cell(kind, action) for action in ACTIONS}
        return cells | {"reload": self.reload(kind, [action for action in ACTIONS if cells[action] == WORKS])}

    def cell(self, kind: str, action: str) -> str:
        """``WORKS``, or why an action cannot be done on the model that ``save_dense`` wrote."""
        return _outcome(lambda: self._run(kind, action))

    def reload(self, kind: str, actions: Sequence[str]) -> str:
        """``WORKS``, or why plain transformers does not load what actions left."""
        return _outcome(lambda: self._reload(kind, actions))

    def save_dense(self, kind: str) -> None:
        """Write the model of a type."""
        import torch

        from slimexp.model.loading import Scratch
        from slimexp.model.tokenizer import Bytes

        task, values = MODELS[kind]
        torch.manual_seed(0)
        source = Scratch(config={"model_type": kind, **values}, tokenizer=Bytes(), max_length=16)
        labels = ("no", "yes") if task == "classification" else ()
        family = source.load(task=task, texts=list, labels=labels)
        folder = self.folder / kind / "dense"
        family.model.save_pretrained(folder)
        family.tokenizer.save_pretrained(folder)

    def _run(self, kind: str, action: str) -> None:
        from slimexp.config.composition import compose
        from slimexp.pipeline.pipeline import Pipeline

        task, _ = MODELS[kind]
        pipeline, settings = ACTIONS[action]
        chosen = [f"pipeline.{pipeline}.{setting}" for setting in settings]
        if action == "distil":
            chosen += self._student(kind)
        if pipeline == "prune_structured":
            chosen.append(f"pipeline.prune_structured.budget.share={self._half(kind, action)}")
            chosen.append("pipeline.prune_structured.rows=8")
        overrides = [
            "model=pretrained", f"model.path={self.folder / kind / 'dense'}", "model.max_length=16",
            "data=files", f"data.path={self.table}", f"data.task={task}", f"pipeline={pipeline}", "logger=none",
            "trainer=fast", f"runs={self.folder / kind}", f"name={action}", "measure=[size,task]",
            f"pipeline.{pipeline}.batch_size=4", *chosen,
        ]  # fmt: skip
        Pipeline(compose(overrides), overrides=overrides).run()

    def _student(self, kind: str) -> list[str]:
        """Overrides that cut a student of half the neurons out of its teacher, or of two layers of three."""
        from transformers import AutoConfig

        from slimexp.cut.recognition import recognize
        from slimexp.cut.shape import FFN, WIDTHS, whole

        config = AutoConfig.from_pretrained(self.folder / kind / "dense")
        recognize(config)
        dense = whole(config)
        stacks = [stack for stack in dense if stack not in WIDTHS]
        what = [f"ffn={dense[FFN] // 2}"] if FFN in dense else [f"{stack}_layers=[0,2]" for stack in stacks]
        return ["+cut@pipeline.distill.cut=keep", *[f"pipeline.distill.cut.{one}" for one in what]]

    def _half(self, kind: str, axis: str) -> float:
        """Share of the parameters with about half of the units of ``axis``; 0.5 where the axis is refused."""
        from slimexp.cut.recognition import recognize
        from slimexp.cut.shape import ParameterCounter, lattice, possible, whole
        from slimexp.model.loading import from_folder

        family = from_folder(self.folder / kind / "dense", MODELS[kind][0], 16)
        config = family.model.config
        recognize(config)
        try:
            options, dense = lattice(config, [axis], multiple=1), whole(config)
        except ValueError:
            return 0.5
        shape = {
            key: min((u for u in units if possible(config, {**dense, key: u})), key=lambda u: abs(2 * u - units[0]))
            if len(units) > 1 and axis != "layers"
            else units[min(1, len(units) - 1)]
            for key, units in options.items()
        }
        counter = ParameterCounter(family.model)
        layers = {stack: list(range(shape[stack])) for stack in family.blocks()}
        every = {stack: list(range(dense[stack])) for stack in family.blocks()}
        return counter.count(layers, shape) / counter.count(every, dense) + 1e-6

    def _reload(self, kind: str, actions: Sequence[str]) -> None:
        from slimexp import artifact

        failed: dict[str, list[str]] = {}
        for action in actions:
            folder = next((self.folder / kind / action).glob(f"{ACTIONS[action][0]}-*")) / "artifact"
            try:
                _agree(folder, artifact.deployed(folder), MODELS[kind][0])
            except Exception as error:  # whatever transformers raises
                failed.setdefault(_short(error), []).append(action)
        if failed:
            raise ValueError("; ".join(f"{', '.join(names)}: {reason}" for reason, names in failed.items()))


def _agree(folder: Path, family: Any, task: str) -> None:
    """Plain transformers, without slimexp, gives the logits that slimexp has."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

    from slimexp.model.cache import float_cache

    auto = {
        "causal_lm": AutoModelForCausalLM,
        "seq2seq": AutoModelForSeq2SeqLM,
        "classification": AutoModelForSequenceClassification,
    }[task]
    plain = auto.from_pretrained(folder, dtype=torch.float32).eval()
    batch = family.encode([("one", "two", 0), ("three words", "four", 1)])
    with torch.no_grad(), float_cache(family.model):  # plain transformers caches floats
        expected = family.forward(batch)[0]
        given = type(family)(plain, family.tokenizer, max_length=16).forward(batch)[0]
    off = float((given - expected).abs().max() / expected.std())
    if not off <= TOLERANCE:
        raise ValueError(f"its logits are {off:.0e} off")


def _evaluate(folder: Path, task: str) -> None:
    from slimexp.model.loading import from_folder

    family = from_folder(folder, task, 16)
    predictions = family.predict([("one", "two", 0), ("three words", "four", 1)], batch_size=2)
    assert len(predictions) == 2 and None not in predictions


def _outcome(act: Callable[[], None]) -> str:
    silent = io.StringIO()
    try:
        with contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
            act()
    except ValueError as error:
        return _short(error)
    except Exception as error:  # a gap: no action may end so
        return f"FAILED {type(error).__name__}: {_short(error)}"
    return WORKS


def _short(error: Exception) -> str:
    """The reason of a refusal, without the name of the type and the way out."""
    text = " ".join(str(error).split())
    text = re.sub(r"^pipeline\.\w+: ", "", text)
    text = re.sub(r"axes of a model of type \S+ that can be cut are ([\w, ]+); got '(\w+)': ", "", text)
    text = re.sub(r"\bof type [\w-]+", "of this type", text)
    text = re.sub(rf"\ban? ({'|'.join(map(re.escape, MODELS))})\b", "this type", text)
    return text if len(text) <= LONGEST else f"{text[:LONGEST].rpartition(',')[0]}, ..."


def markdown(rows: Mapping[str, Mapping[str, str]]) -> str:
    """The table, and the reasons by their numbers."""
    reasons: dict[str, int] = {}
    lines = [f"| type | {' | '.join(COLUMNS)} |", f"| --- | {' | '.join('---' for _ in COLUMNS)} |"]
    for kind, cells in rows.items():
        shown = [
            WORKS if cells[c] == WORKS else f"no ({reasons.setdefault(cells[c], len(reasons) + 1)})" for c in COLUMNS
        ]
        lines.append(f"| {kind} | {' | '.join(shown)} |")
    works = sum(cell == WORKS for cells in rows.values() for cell in cells.values())
    listed = [f"{number}. {reason}" for reason, number in reasons.items()]
    total = len(rows) * len(COLUMNS)
    return "\n".join([*lines, "", f"{works} of {total} cells work. The others say why:", "", *listed])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(MODELS), metavar="TYPE", help="model types, all by default")
    parser.add_argument("--out", type=Path, help="file for the table")
    arguments = parser.parse_args()
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    rows: dict[str, dict[str, str]] = {}
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        for kind in arguments.only or MODELS:
            rows[kind] = bench.row(kind)
            refused = {action: cell for action, cell in rows[kind].items() if cell != WORKS}
            print(f"{kind}: {len(COLUMNS) - len(refused)} of {len(COLUMNS)} work ({time.monotonic() - start:.0f} s)")
            for action, cell in refused.items():
                print(f"    {action}: {cell}", flush=True)
    text = markdown(rows)
    print(f"\n{text}")
    if arguments.out:
        arguments.out.write_text(text + "\n")
    return int(any(cell.startswith("FAILED") for cells in rows.values() for cell in cells.values()))


if __name__ == "__main__":
    sys.exit(main())
