"""What a user's function takes: the prompt and what is judged by position, columns by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from lit_pref.types import Refusal

__all__ = ["check_leading", "needed_columns", "parameters_of"]


def check_leading(function: Callable[..., Any], leading: int, *, one: bool, label: str) -> None:
    """Refuse a function that cannot be given the prompt and what is judged, by position."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some built-in functions have no signature
        return
    try:
        signature.bind_partial(*[None] * leading)
    except TypeError as error:
        names = {2: ["prompt", "response"], 3: ["prompt", "first", "second"]}[leading]
        if not one:
            names = ["prompts", *(n if leading == 3 else f"{n}s" for n in names[1:])]
        raise Refusal(
            f"reward.function={label} is called with {', '.join(names)} by position, then columns "
            f"of the prompts by name, and takes {signature}; define it as "
            f"{getattr(function, '__name__', 'function')}({', '.join(names)}, ...)"
        ) from error


def parameters_of(
    function: Callable[..., Any], leading: int
) -> tuple[frozenset[str], frozenset[str] | None]:
    """Names of the first parameters, and those of the others (None: any name)."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # some built-in functions have no signature
        return frozenset(), frozenset()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    taken = frozenset(p.name for p in parameters[:leading] if p.kind in positional)
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return taken, None
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return taken, frozenset(p.name for p in parameters if p.kind in named)


def needed_columns(function: Callable[..., Any], leading: int) -> list[str]:
    """Names of the parameters after the first that have no default."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return []
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    rest = [p for p in parameters[leading:] if p.kind in named]
    return [p.name for p in rest if p.default is inspect.Parameter.empty]
