"""One inspection: read the file as training would, and print what was found."""

from __future__ import annotations

import io
import logging
import os
import shutil
import sys
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lit_pref.app.build import make_spec, make_task
from lit_pref.app.inspect_view import Page
from lit_pref.errors import Refusal
from lit_pref.formats import Reading, check_columns, find_layout, open_source
from lit_pref.formats.survey import survey

__all__ = ["inspect_file"]


def inspect_file(cfg: DictConfig, file: str) -> None:
    """Print what training would see of a file.

    Args:
        cfg: the configuration ``inspect``.
        file: what the user named.

    Raises:
        Refusal: the file is not what it should be, or an option is wrong.
    """
    for name in ("rows", "tokens"):
        if not isinstance(cfg[name], int) or isinstance(cfg[name], bool) or cfg[name] < 0:
            raise Refusal(f"{name}={cfg[name]}: expected a whole number from 0")
    if "columns" not in cfg.task:
        raise Refusal(f"task={cfg.task.name} reads no files of yours; leave task=... out")
    logging.getLogger("lit_pref.formats").setLevel(logging.WARNING)  # the page says it all
    source = open_source(file)  # before a model's tokenizer is made
    task: Any = make_task(cfg, make_spec(cfg))
    encoder = getattr(task, "text", task).encoder  # of a task with shipped prompts: of its texts
    columns = check_columns(OmegaConf.to_container(cfg.task.columns) if cfg.task.columns else {})  # type: ignore[arg-type]
    reading = Reading(
        source, encoder=encoder, columns=columns, want=_want(cfg.read_as, source, columns)
    )
    found = survey(reading, rows=cfg.rows)
    page = Page(colour=_colour(), width=shutil.get_terminal_size((100, 24)).columns)
    text = page.render(
        reading,
        found,
        model=str(cfg.model.name),
        tokens=cfg.tokens,
        max_dropped=cfg.task.max_dropped,
    )
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal of few characters shows escapes
        sys.stdout.reconfigure(errors="backslashreplace")
    print(text)


def _want(read_as: str, source: Any, columns: dict[str, str]) -> Any:
    if read_as in ("responses", "prompts"):
        return read_as
    if read_as != "auto":
        raise Refusal(f"read_as={read_as}: expected responses, prompts or auto")
    first = next(source.rows(), None)
    if first is None:
        raise Refusal(f"{source.name} has no rows. Expected at least one.")
    try:
        find_layout(first, columns, want="responses")
    except Refusal as refusal:
        try:
            find_layout(first, columns, want="prompts")
        except Refusal:
            raise refusal from None
        return "prompts"
    return "responses"


def _colour() -> bool:
    """Whether to colour: https://no-color.org, then FORCE_COLOR, then whether it is a terminal."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
