"""The x axis that a reader picks: radio buttons and style rules, no script."""

from __future__ import annotations

from collections.abc import Sequence

from lit_pref.report.charts import AXES

__all__ = ["axis_rules", "axis_switch"]

Axis = tuple[str, str, str]


def axis_rules() -> str:
    """One picked radio button shows its drawings and darkens its label."""
    rules = []
    for column, _, _ in AXES:
        pick = f"#x-{column}"
        rules.append(f'{pick}:checked~* .plot[data-axis="{column}"]{{display:block}}')
        rules.append(
            f'{pick}:checked~.head label[for="x-{column}"]'
            "{background:var(--ink);color:var(--card)}"
        )
        rules.append(
            f'{pick}:focus-visible~.head label[for="x-{column}"]'
            "{outline:2px solid var(--c0);outline-offset:-4px}"
        )
    return "\n".join(rules)


def axis_switch(axes: Sequence[Axis]) -> tuple[str, str]:
    """The buttons, to be put first in their section, and their labels, for its ``head``."""
    picks = "".join(
        f'<input class="pick" type="radio" name="x" id="x-{column}"{" checked" if n == 0 else ""}>'
        for n, (column, _, _) in enumerate(axes)
    )
    labels = "".join(f'<label for="x-{column}">{button}</label>' for column, _, button in axes)
    return picks, f'<div class="switch">x axis<span>{labels}</span></div>'
