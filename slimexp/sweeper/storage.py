"""The storage of a sweep's trials, a journal file in its folder or a database, and the lock of its one controller."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, RDBStorage

from slimexp.config.password import masked_message
from slimexp.file import integrity, regular
from slimexp.host.extra import require
from slimexp.sweeper.journal import FILE, open_journal
from slimexp.sweeper.repair import Expected

ANSWER_S = 5  # seconds within which a database must answer
_NAME = "study"  # file in a sweep's folder: the study's name, which stays when the folder is moved
_LONGEST = 1 << 16  # bytes of that file
_LOCK = "lock"
_DRIVER = "postgresql+psycopg"  # whichever SQLAlchemy takes by default
_ELSEWHERE = "wait for it, or give name=... for another sweep"


def open_storage(url: str | None, folder: Path, sweep: Expected) -> BaseStorage:
    """The database at ``url``; ``None`` for the journal file in ``folder``.

    Raises:
        ValueError: Its driver is not installed, it does not answer, or the journal is no file.
    """
    if url is None:
        return open_journal(folder / FILE, sweep)
    with _answering(url) as (address, settings):
        template = address.replace("{", "{{").replace("}", "}}")  # Optuna formats it
        return RDBStorage(template, engine_kwargs={**settings, "pool_pre_ping": True})


@contextmanager
def lasting(url: str | None) -> Iterator[None]:
    """Turn the loss of a database in the midst of a sweep into an error for the user, without its address.

    Raises:
        ValueError: It does not answer any more.
    """
    try:
        yield
    except Exception as error:
        if url is None or not (isinstance(error, StorageInternalError) or type(error).__module__.startswith("sqlalch")):
            raise
        kind = type(error.__cause__ or error).__name__
        raise ValueError(
            f"hydra.sweeper.storage: the database does not answer any more ({kind}): what is finished is kept, the "
            "same command goes on from there"
        ) from None


def study_name(storage: BaseStorage, folder: Path, *, journal: bool) -> str:
    """Name of the sweep's study, which it got when it began; wherever its folder lies now.

    A study of an older slimexp, which wrote no name down, is looked up by every way to say where the folder is; in a
    journal, which is that of one sweep, it may have any name.
    """
    try:
        written = regular.content(folder / _NAME, _LONGEST).decode().strip()
    except (OSError, ValueError):
        written = ""
    studies = {study.study_name: study._study_id for study in storage.get_all_studies()}
    ways = [folder, os.path.relpath(folder), folder.absolute(), folder.resolve(), os.path.relpath(folder.resolve())]
    names = [name for name in (written, *map(str, ways)) if name]
    existing = next((name for name in names if name in studies), None)
    if existing is None and journal and studies:
        existing = max(studies, key=lambda name: storage.get_n_trials(studies[name]))
    name = existing or names[0]
    if name != written:
        integrity.write(folder / _NAME, name + "\n")
    return name


def alone(folder: Path) -> ExitStack:
    """Become the only controller of a sweep, until the returned stack is closed or the process dies.

    Raises:
        ValueError: Another process is at work on the sweep, or something in the place of its files is no file.
    """
    with ExitStack() as lock:
        folder.mkdir(parents=True, exist_ok=True)
        for path in (folder / _LOCK, folder / _NAME):
            if integrity.is_other_kind(path):
                raise ValueError(f"{path} is a link, a pipe or a folder, and must be a file: remove it")
        file = regular.descriptor(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)
        lock.callback(os.close, file)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"another process is at work on the sweep in {folder}: {_ELSEWHERE}") from error
        return lock.pop_all()


def lock_in_database(lock: ExitStack, url: str | None, study: str) -> None:
    """Become the only controller of a study in PostgreSQL, by a lock that lives as long as the connection.

    So the same command on another machine, which would be another folder with this one's name, is refused too.

    Raises:
        ValueError: Another process is at work on the study, or the database does not answer.
    """
    if url is None or not url.startswith("postgres"):
        return
    import sqlalchemy

    with _answering(url) as (address, settings):
        engine = sqlalchemy.create_engine(address, isolation_level="AUTOCOMMIT", **settings)
        lock.callback(engine.dispose)
        connection = lock.enter_context(engine.connect())
    # so that the server lets go of a machine that lost its power after two minutes, not hours
    for setting, value in {"idle": 60, "interval": 10, "count": 6}.items():
        connection.execute(sqlalchemy.text(f"SET tcp_keepalives_{setting} = {value}"))
    query = sqlalchemy.text("SELECT pg_try_advisory_lock(hashtextextended(:study, 0))")
    if not connection.execute(query, {"study": study}).scalar():
        raise ValueError(f"another machine is at work on the sweep '{study}' in this database: {_ELSEWHERE}")


@contextmanager
def _answering(url: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Address and engine settings for SQLAlchemy; an error of the database becomes one for the user, password masked.

    Raises:
        ValueError: Its driver is not installed, or it does not answer.
    """
    import sqlalchemy

    try:
        parsed = sqlalchemy.make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError):  # their text is not shown: there may be a password in it
        raise ValueError("hydra.sweeper.storage must be like postgresql://USER@HOST:PORT/DATABASE, it is not") from None
    settings: dict[str, Any] = {}
    if parsed.drivername in ("postgres", "postgresql", _DRIVER):
        require("psycopg", extra="postgres", by="hydra.sweeper.storage=postgresql://...")
        parsed = parsed.set(drivername=_DRIVER)
        settings = {"connect_args": {"connect_timeout": ANSWER_S, "keepalives_idle": 60}}
    try:
        yield parsed.render_as_string(hide_password=False), settings
    except ImportError as error:
        why = masked_message(str(error), parsed)
        raise ValueError(f"hydra.sweeper.storage: {parsed.drivername} needs a driver ({why}): install it") from None
    except (sqlalchemy.exc.SQLAlchemyError, StorageInternalError, TypeError) as error:
        message = masked_message((str(error).splitlines() or [type(error).__name__])[0], parsed)
        where = parsed.set(query={})  # which may hold a password too
        raise ValueError(f"hydra.sweeper.storage: no database answers at {where!r} ({message})") from None
