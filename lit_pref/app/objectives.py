"""``lit-pref objectives``: every objective by its own declarations."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.utils import get_object
from omegaconf import OmegaConf

from lit_pref.app.preflight import config_dir

__all__ = ["Declaration", "declarations", "main", "markdown_table", "text_table"]

COLUMNS = (
    "objective", "family", "negative gradient", "reference", "rewards", "pairs", "fresh samples",
    "reuse", "paper",
)  # fmt: skip


@dataclass(frozen=True)
class Declaration:
    """What an objective says of itself.

    Attributes:
        name: its configuration name.
        kind: its class.
        paper: arXiv id: of the YAML's first comment, else of the class.
    """

    name: str
    kind: Any
    paper: str

    def cells(self) -> list[str]:
        """The row of the table, in the order of ``COLUMNS``."""
        needs = self.kind.needs
        return [
            self.name,
            self.kind.family,
            _mark(self.kind.negative_gradient),
            _mark(needs.reference),
            _mark(needs.rewards),
            _mark(needs.pairs),
            _mark(needs.fresh),
            _mark(self.kind.reuse),
            self.paper,
        ]


def declarations(folders: Sequence[Path] = ()) -> list[Declaration]:
    """All objectives of the configuration folders, by family and name."""
    found = []
    for root in (config_dir(), *folders):
        for file in sorted((root / "objective").glob("*.yaml")):
            kind = get_object(OmegaConf.select(OmegaConf.load(file), "_target_"))
            cited = re.search(r"arXiv (\d{4}\.\d{4,5})", file.read_text().splitlines()[0])
            found.append(Declaration(file.stem, kind, cited[1] if cited else kind.paper))
    return sorted(found, key=lambda d: (d.kind.family, d.name))


def text_table() -> str:
    """The table for a terminal."""
    rows = [list(COLUMNS), *(d.cells() for d in declarations())]
    widths = [max(len(r[i]) for r in rows) for i in range(len(COLUMNS))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows]
    return "\n".join(lines)


def markdown_table(*, link: bool = True) -> str:
    """The table for the documentation."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for declaration in declarations():
        cells = declaration.cells()
        if link:
            cells[0] = f"[`{cells[0]}`]({cells[0]}.md)"
        if cells[-1]:
            cells[-1] = f"[{cells[-1]}](https://arxiv.org/abs/{cells[-1]})"
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


_HELP = """lit-pref objectives: every objective, by what its class declares

  negative gradient   the update lowers the log-prob of some response tokens
  reference, rewards, pairs   what it needs
  fresh samples       only right on samples of the present policy: stored ones are refused
  reuse               right for data.reuse above 1; others warn and go on
"""


def main(arguments: Sequence[str] = ()) -> None:
    """``lit-pref objectives``: print the table.

    Args:
        arguments: ``--help`` explains the columns; there are no others.
    """
    if set(arguments) & {"-h", "--help"}:
        print(_HELP, end="")
    elif arguments:
        print(
            f"Refused: lit-pref objectives takes no arguments, got {arguments[0]}", file=sys.stderr
        )
        sys.exit(2)
    else:
        print(text_table())


def _mark(value: bool) -> str:
    return "yes" if value else "-"
