"""Where the model of a ``model.path`` is: a folder on this machine, the zoo, or the hub."""

from pathlib import Path

from slimexp.serialization.gguf import MAGIC

ZOO = Path(__file__).parent.parent / "zoo"


def local_or_hub(path: str) -> str:
    """The hub id or folder that transformers loads.

    Args:
        path: A hub id, a local folder in the hub's format, or ``zoo:NAME``.

    Raises:
        ValueError: The zoo has no such model, or what is at ``path`` is no folder that holds one.
    """
    if path.startswith("zoo:"):
        folder = ZOO / path.removeprefix("zoo:")
        if not (folder / "config.json").exists():
            names = sorted(entry.parent.name for entry in ZOO.glob("*/config.json"))
            raise ValueError(f"no model '{path}': the zoo holds {', '.join('zoo:' + n for n in names) or 'none'}")
        return str(folder)
    place = Path(path)
    if place.is_file():
        way_out = f"give its folder, {place.parent}"
        if is_gguf(place):
            way_out = f"add model=gguf, which takes such a file (model=gguf model.path={path})"
        raise ValueError(f"'{path}' is a file, and model.path takes a folder or a hub id: {way_out}")
    if place.is_dir() and not (place / "config.json").exists():
        if held := sorted(place.glob("*.gguf")):
            raise ValueError(
                f"folder '{path}' holds no config.json, but {held[0].name}: add model=gguf, which takes the file "
                f"(model=gguf model.path={held[0]})"
            )
        raise ValueError(f"folder '{path}' holds no config.json: give a folder in the hub's format")
    return path


def is_gguf(path: Path) -> bool:
    """Whether a file is a GGUF, by its first bytes."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC
