"""What a stage's teacher says is kept for other runs: one pass of it serves every trial of a sweep."""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from slimexp.config import secret
from slimexp.data.base import Corpus
from slimexp.host import process_group
from slimexp.host.console import phase, printable
from slimexp.host.progress import duration, working
from slimexp.model.base import Family
from slimexp.model.tokenizer import digest as tokenizer_digest
from slimexp.pipeline import machine
from slimexp.record.settings import flat
from slimexp.record.stage import key
from slimexp.teacher_cache import identity
from slimexp.teacher_cache.base import Form
from slimexp.teacher_cache.cached import CachedTeacher
from slimexp.teacher_cache.fill import Found, TeacherPass, look_up
from slimexp.teacher_cache.store import ABOUT, FOLDER, FORMAT, Store, check_folder, described, differences
from slimexp.technique.finetune import Finetune
from slimexp.technique.objective import runs_in
from slimexp.technique.teacher import low_precision

_MIXED = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}  # precision -> type that products are cast to


def keep(technique: Finetune, cfg: DictConfig) -> None:
    """Have a prepared technique learn from what is kept of its teacher, which leaves it; the rest is made first.

    Args:
        technique: The technique, after ``prepare``.
        cfg: The run's configuration.

    Raises:
        ValueError: The teacher's outputs cannot be kept, the cache is of something else, or the disk has no room.
    """
    cache, teacher = technique.cache, technique.teacher_family
    assert cache is not None and teacher is not None
    form = cache.form(teacher, technique.family)
    with working("looking for the teacher cache"):
        about = _about(form, teacher, technique, cfg)
    named = Path(cfg.runs) / FOLDER / key(about)
    store = Store(Path(cache.folder) if cache.folder else named, about)
    technique.cache_figures = process_group.by_first(partial(_fill, store, form, technique, teacher, cfg))
    store.look()
    device = machine.device(cfg.trainer)  # all processes have the type in which the first one's pass left its head
    form.to(device, low_precision(str(cfg.trainer.get("precision")), device))
    technique.teacher_family, technique.cached = None, CachedTeacher(store, form)


def check_folders(techniques: Mapping[str, Finetune], corpus: Corpus, max_length: int, cfg: DictConfig) -> None:
    """Refuse, before anything is loaded, named folders whose cache is of other text, another length or form.

    Args:
        techniques: Techniques of the stages that are to be trained, by the stage's name.
        corpus: The text.
        max_length: Most tokens of a row of their students.
        cfg: The run's configuration.

    Raises:
        ValueError: A folder holds something else; says what differs.
    """
    for name, technique in techniques.items():
        if technique.cache is not None and technique.cache.folder:
            known = {**_corpus(cfg.data), "split": "train", "max_length": max_length}
            known["kept"] = {"form": technique.cache.name}
            if technique.completion is None:  # else it is a text that a teacher has still to write
                known["text"] = identity.text_digest(corpus)[:16]
            try:
                check_folder(Path(technique.cache.folder), known)
            except ValueError as error:
                raise ValueError(f"pipeline.{name}.cache.folder: {error}") from error


def _about(form: Form, teacher: Family, technique: Finetune, cfg: DictConfig) -> dict[str, Any]:
    """All that what is kept depends on, but for the rows themselves, each of which has a key of its own."""
    return {
        "format": FORMAT,
        "teacher": identity.teacher_digest(teacher)[:16],
        "tokenizer": tokenizer_digest(technique.family.tokenizer)[:16],
        **_corpus(cfg.data),
        "text": identity.text_digest(technique.corpus)[:16],
        "split": "train",
        "max_length": technique.family.max_length,
        "kept": form.settings(),
        "computed": {
            "device": machine.device(cfg.trainer).type,
            "precision": str(cfg.trainer.get("precision")),
            "weights": str(teacher.model.dtype).removeprefix("torch."),
        },
    }


def _corpus(node: DictConfig) -> dict[str, Any]:
    """The corpus' settings as they may be written; of values that may not, their digest."""
    about: dict[str, Any] = {"corpus": secret.written(node)}
    if secret.hides(node):
        about["corpus_values"] = key({"corpus": OmegaConf.to_container(node, resolve=True)})
    return about


def _fill(store: Store, form: Form, technique: Finetune, teacher: Family, cfg: DictConfig) -> dict[str, float]:
    """Make what is lacking; returns figures of the cache for the record."""
    _say_what_differs(store)
    _say_epochs(technique)
    with store.alone():
        batches = partial(technique.batches, 0, technique.steps, workers=technique.workers, unseen=True)
        found = look_up(store, batches())
        before = _seconds(store)
        if found.lacking and store.is_fixed:
            raise ValueError(
                f"the teacher cache in {store.folder} cannot be written to, and lacks {len(found.lacking):,} of "
                f"{found.rows:,} rows: make it writable, or name another folder"
            )
        if found.lacking:
            device = machine.device(cfg.trainer)
            autocast = _moved(teacher, device, str(cfg.trainer.get("precision")))
            work = TeacherPass(store, form, teacher, technique.family, device=device, autocast=autocast)
            work.run(batches(), found)
        figures = _figures(store, found, passed=_seconds(store) - before)
    _say(store, found, figures)
    return figures


def _moved(teacher: Family, device: torch.device, precision: str) -> Callable[[], AbstractContextManager[Any]]:
    """Bring the teacher to the device and into the type in which training would run it; returns its context."""
    nn.Module.to(teacher.model, device)
    half, mixed = low_precision(precision, device), _MIXED.get(precision)
    casts = half is None or not runs_in(teacher, half)
    return nullcontext if mixed is None else partial(torch.autocast, device.type, dtype=mixed, enabled=casts)


def _seconds(store: Store) -> float:
    return sum(float(part.about["seconds"]) for part in store.parts)


def _figures(store: Store, found: Found, *, passed: float) -> dict[str, float]:
    """Figures of the cache.

    Args:
        store: The cache, with all rows of the training.
        found: What it held of them before.
        passed: Seconds of the teacher's pass over those that it did not hold.
    """
    labels = sum(int(part.about["labels"]) for part in store.parts)
    size = sum(part.values.nbytes for part in store.parts)
    held = found.labels - found.lacking_labels
    figures = {
        "cache_mb": size / 1e6,
        "cache_labels": float(labels),
        "cache_bytes_per_label": size / max(labels, 1),
        "cache_hit_ratio": 1 - len(found.lacking) / max(found.rows, 1),
        "cache_pass_seconds": passed,
        "cache_saved_seconds": _seconds(store) * held / max(labels, 1),
    }
    return figures | {f"cache_kl_error_t{name}": error for name, error in kl_errors(store).items()}


def kl_errors(store: Store) -> dict[str, float]:
    """Temperature -> how far the estimated divergence of the student is from the exact one, as a share of that."""
    sums: dict[str, list[float]] = {}
    for part in store.parts:
        for name, pair in part.about["estimates"].items():
            held = sums.setdefault(name, [0.0, 0.0])
            sums[name] = [held[0] + pair[0], held[1] + pair[1]]
    return {name: abs(estimated / exact - 1) for name, (estimated, exact) in sums.items() if exact > 0}


def _say_what_differs(store: Store) -> None:
    """Where there is no such cache yet, but others of its form, say by what the nearest is another, if it is."""
    others: list[Mapping[str, Any]] = []
    if not (store.folder / ABOUT).exists():
        others = [about for path in store.folder.parent.glob(f"*/{ABOUT}") if (about := described(path)) is not None]
    alike = [about for about in others if _form(about) == _form(store.about)]
    nearest = min((differences(other, store.about) for other in alike), key=len, default=())
    if nearest:  # none where the same cache lies in a folder beside a new one that was named
        phase(f"a new teacher cache; the nearest one differs in {'; '.join(printable(line) for line in nearest)}")


def _form(about: Mapping[str, Any]) -> object:
    return dict(flat(about)).get("kept.form")


def _say_epochs(technique: Finetune) -> None:
    assert technique.cache is not None
    rows = len(technique.corpus.splits["train"])
    epochs = technique.steps * technique.accumulate * technique.batch_size / rows
    if not technique.corpus.is_fixed and math.ceil(epochs) > technique.cache.epochs:
        phase(
            f"the text is new in every epoch: the teacher cache keeps {technique.cache.epochs}, and training goes over "
            f"the same again, {epochs / technique.cache.epochs:.1f} times in all"
        )


def _say(store: Store, found: Found, figures: Mapping[str, float]) -> None:
    made = len(found.lacking)
    size = f"{figures['cache_mb']:.1f} MB, {figures['cache_bytes_per_label']:.0f} bytes a label, in {store.folder}"
    errors = {name.removeprefix("cache_kl_error_t"): error for name, error in figures.items() if "kl_error" in name}
    off = f"; its KL is off by {', '.join(f'{error:.2%} at T = {name}' for name, error in errors.items())}"
    phase(
        f"teacher cache: {found.rows - made} of {found.rows} rows were there"
        + (f" ({duration(figures['cache_saved_seconds'])} saved)" if made < found.rows else "")
        + (f", {made} made in {duration(figures['cache_pass_seconds'])}" if made else "")
        + f": {size}{off if errors else ''}"
    )
