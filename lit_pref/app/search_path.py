"""Where Hydra looks for the configurations of other packages."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from lit_pref.errors import Refusal

__all__ = ["search_folder"]


def search_folder(place: str) -> str:
    """The folder of an entry of hydra.searchpath: ``pkg://package.module`` or ``file://folder``."""
    scheme, _, rest = place.rpartition("://")
    if scheme != "pkg":
        return str(Path(rest).resolve())
    try:
        spec = importlib.util.find_spec(rest)
    except ModuleNotFoundError:
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise Refusal(
            f"hydra.searchpath: there is no package {rest!r} to find configurations in; install "
            "it, or name a folder with --config-dir FOLDER"
        )
    return str(next(iter(spec.submodule_search_locations)))
