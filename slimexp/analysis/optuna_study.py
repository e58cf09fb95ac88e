"""Trials of an Optuna study of others, as rows of published points."""

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slimexp.file import regular

if TYPE_CHECKING:
    from optuna.study import Study

DATABASES, JOURNALS = (".db", ".sqlite", ".sqlite3"), (".log",)  # ends of the names of files
LONGEST = 1 << 28  # bytes of a file
_TEXTS = ("label", "corpus")  # columns that hold no number


def trials(path: Path) -> Iterator[dict[str, Any]]:
    """Finished trials as rows: values by the study's metric names, and attributes that are numbers.

    Texts in ``label`` and ``corpus`` are columns too; a trial without a label is named by its parameters.

    The file is copied first: opening a study may write to its storage.

    Args:
        path: A database of SQLite or a journal of Optuna, which holds one study.

    Raises:
        ValueError: It is none, holds several studies, or its study does not name its metrics.
    """
    import optuna

    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, path.name)
        copy.write_bytes(regular.content(path, LONGEST))
        try:
            storage = _storage(copy)
            names = sorted(optuna.get_all_study_names(storage))
            if len(names) != 1:
                raise ValueError(f"{path} must hold one study, and holds {', '.join(names) or 'none'}")
            study = optuna.load_study(study_name=names[0], storage=storage)
            rows = list(_rows(study, path))
        except ValueError:
            raise
        except Exception as error:  # of Optuna, SQLAlchemy, JSON: whatever a damaged file makes of them
            raise ValueError(f"{path} is no study of Optuna: {type(error).__name__}") from error
    yield from rows


def _storage(path: Path) -> Any:
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend

    if path.suffix in DATABASES:
        return RDBStorage(f"sqlite:///{path}")
    return JournalStorage(JournalFileBackend(str(path)))


def _rows(study: "Study", path: Path) -> Iterator[dict[str, Any]]:
    from optuna.trial import TrialState

    if (names := study.metric_names) is None:
        raise ValueError(
            f"the study in {path} does not name its values: set_metric_names(['cer', 'disk_mb']) of the study does, by "
            "their names in report.csv"
        )
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        settings = " ".join(f"{name}={value}" for name, value in trial.params.items())
        label = f"trial {trial.number} ({settings})" if settings else f"trial {trial.number}"
        yield {"label": label, **_columns(trial.user_attrs), **dict(zip(names, trial.values, strict=True))}


def _columns(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes that are columns of a file of points: numbers, and the texts ``label`` and ``corpus``."""
    texts = {name: attributes[name] for name in _TEXTS if isinstance(attributes.get(name), str)}
    numbers = {name: value for name, value in attributes.items() if type(value) in (int, float) and name not in _TEXTS}
    return texts | numbers
