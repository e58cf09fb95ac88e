"""Where a sweep's trials are written down: a journal file in its folder, or a database; and who may write there."""

import fcntl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from slimexp.sweeper.extra import require

ANSWER_S = 5  # that a database has to answer
_DRIVER = "postgresql+psycopg"  # whichever SQLAlchemy takes by default
_ELSEWHERE = "wait for it, or give name=... for another sweep"


class _Unlocked(JournalFileOpenLock):
    """For a journal that ``alone`` guards already: Optuna's own lock outlives a killed process by half a minute."""

    def __init__(self) -> None:
        pass

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


def open_storage(url: str | None, folder: Path) -> BaseStorage:
    """The database at ``url``; ``None`` for the journal file in ``folder``.

    Raises:
        ValueError: Its driver is not installed, or it does not answer.
    """
    if url is None:
        return JournalStorage(JournalFileBackend(str(folder / "journal.jsonl"), lock_obj=_Unlocked()))
    with _answering(url) as (address, settings):
        return RDBStorage(address, engine_kwargs={**settings, "pool_pre_ping": True})


def alone(url: str | None, folder: Path) -> ExitStack:
    """Be the only controller of a sweep until what is returned is closed, or the process dies.

    In a folder by a lock on a file; in PostgreSQL by one that the server holds as long as the connection lives, so that
    the same command on another machine, which would be another folder with this one's name, is refused too.

    Raises:
        ValueError: Another is at work, or the database does not answer.
    """
    with ExitStack() as held:
        folder.mkdir(parents=True, exist_ok=True)
        file = held.enter_context((folder / "lock").open("a"))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"another process is at work on the sweep in {folder}: {_ELSEWHERE}") from error
        if url is not None and url.startswith("postgres"):
            _lock_in_database(held, url, str(folder))
        return held.pop_all()


def _lock_in_database(held: ExitStack, url: str, study: str) -> None:
    import sqlalchemy

    with _answering(url) as (address, settings):
        engine = sqlalchemy.create_engine(address, isolation_level="AUTOCOMMIT", **settings)
        held.callback(engine.dispose)
        connection = held.enter_context(engine.connect())
    # so that the server lets go of a machine that lost its power after two minutes, not hours
    for setting, value in {"idle": 60, "interval": 10, "count": 6}.items():
        connection.execute(sqlalchemy.text(f"SET tcp_keepalives_{setting} = {value}"))
    query = sqlalchemy.text("SELECT pg_try_advisory_lock(hashtextextended(:study, 0))")
    if not connection.execute(query, {"study": study}).scalar():
        raise ValueError(f"another machine is at work on the sweep '{study}' in this database: {_ELSEWHERE}")


@contextmanager
def _answering(url: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """What SQLAlchemy is to be given for a URL; an error of the database as one for the user, without the password.

    Raises:
        ValueError: Its driver is not installed, or it does not answer.
    """
    import sqlalchemy

    try:
        parsed = sqlalchemy.make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError) as error:  # its text is not shown: there may be a password in it
        raise ValueError(
            "hydra.sweeper.storage must be like postgresql://USER@HOST:PORT/DATABASE, it is not"
        ) from error
    settings: dict[str, Any] = {}
    if parsed.drivername in ("postgres", "postgresql", _DRIVER):
        require("psycopg", extra="postgres", by="hydra.sweeper.storage=postgresql://...")
        parsed = parsed.set(drivername=_DRIVER)
        settings = {"connect_args": {"connect_timeout": ANSWER_S, "keepalives_idle": 60}}
    try:
        yield parsed.render_as_string(hide_password=False), settings
    except ImportError as error:
        raise ValueError(f"hydra.sweeper.storage: {parsed.drivername} needs a driver ({error}): install it") from error
    except sqlalchemy.exc.SQLAlchemyError as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        where = parsed.set(query={})  # which may hold a password too
        raise ValueError(f"hydra.sweeper.storage: no database answers at {where!r} ({said})") from error
