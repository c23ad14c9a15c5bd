"""The user's own Python function as a reward."""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import json
import pkgutil
import sys
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType
from typing import Any

from lit_pref.rewards.base import settings_version
from lit_pref.types import Group, Refusal

__all__ = ["CallableReward", "resolve_function"]


class CallableReward:
    """Scores with ``function(prompts, responses, **columns) -> list of numbers``.

    All arguments are lists with one entry per response: ``prompts`` (text or chat messages),
    ``responses`` (text), and each further column of the prompts' rows under its name (``None``
    where a row lacks it). A function without ``**kwargs`` gets only the columns it names::

        def exact(prompts, responses, answer):
            return [float(r.strip() == a) for r, a in zip(responses, answer)]

    The version is a digest of the function's source, so it changes when the function does.

    Args:
        function: the function, or its dotted path (``my_package.rewards.exact``).
        name: name in logs and provenance; by default the function's own.

    Raises:
        Refusal: the path does not lead to a function, or the function is async.
    """

    def __init__(self, function: str | Callable[..., Any], *, name: str | None = None) -> None:
        self.function = resolve_function(function) if isinstance(function, str) else function
        if not callable(self.function):
            raise Refusal(
                "reward.function must be a dotted path (package.module.function) or a callable; "
                f"got {function!r}"
            )
        call = type(self.function).__call__
        if inspect.iscoroutinefunction(self.function) or inspect.iscoroutinefunction(call):
            raise Refusal(
                f"reward function {_label(self.function)} is async; expected a plain function. "
                "Wrap it: def score(prompts, responses): return asyncio.run(...)"
            )
        self._taken, self._accepted = _parameters(self.function)
        self.name = name or _label(self.function)
        self.version = settings_version(
            function=_label(self.function), source=_describe(self.function)
        )

    def score(self, groups: Sequence[Group]) -> list[float]:
        """What the function returns, as a list; ``checked_scores`` checks it.

        Raises:
            TypeError: the function returned something that is not a sequence.
        """
        flat = [(group.prompt, r) for group in groups for r in group.responses]
        names = dict.fromkeys(name for group in groups for name in group.prompt.columns)
        columns = {
            name: [prompt.columns.get(name) for prompt, _ in flat]
            for name in names
            if name not in self._taken and (self._accepted is None or name in self._accepted)
        }
        prompts, responses = [p.text for p, _ in flat], [r.text for _, r in flat]
        out = self.function(prompts, responses, **columns)
        if isinstance(out, (str, bytes)) or not isinstance(out, Iterable):
            raise TypeError(
                f"expected a list of {len(flat)} numbers, one per response; the function "
                f"returned {type(out).__name__}"
            )
        return list(out)


def resolve_function(path: str) -> Callable[..., Any]:
    """The function at a dotted path.

    Args:
        path: ``package.module.function``.

    Raises:
        Refusal: no such module or name (the nearest one is suggested), the module fails to
            import, or the name is not callable.
    """
    module_path, _, name = path.rpartition(".")
    if not module_path or not all(part.isidentifier() for part in path.split(".")):
        raise Refusal(
            f"reward.function must be a dotted path like package.module.function; got {path!r}"
        )
    module = _import(module_path, path)
    function = getattr(module, name, None)
    if function is None:
        known = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise Refusal(
            f"reward.function={path}: module {module_path} has no function {name!r}"
            f"{_nearest(name, known, prefix=module_path + '.')}"
        )
    if not callable(function):
        raise Refusal(f"reward.function={path}: expected a function, got {type(function).__name__}")
    return function


def _import(module_path: str, path: str) -> ModuleType:
    try:
        return importlib.import_module(module_path)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if not (module_path == missing or module_path.startswith(missing + ".")):
            raise Refusal(
                f"reward.function={path}: importing {module_path} needs the module {missing!r}, "
                "which is not installed"
            ) from error
        parent, _, leaf = missing.rpartition(".")
        known = _submodules(parent)
        raise Refusal(
            f"reward.function={path}: there is no module {missing!r}"
            f"{_nearest(leaf, known, prefix=parent + '.' if parent else '')}. "
            "The module must be installed, or its folder be on PYTHONPATH"
        ) from error
    except Exception as error:
        raise Refusal(
            f"reward.function={path}: importing {module_path} failed with "
            f"{type(error).__name__}: {error}"
        ) from error


def _submodules(package: str) -> list[str]:
    """Names of modules that can be imported from a package ("" for top-level ones)."""
    if not package:
        return [m.name for m in pkgutil.iter_modules()] + list(sys.builtin_module_names)
    search = getattr(sys.modules.get(package), "__path__", None)
    return [] if search is None else [m.name for m in pkgutil.iter_modules(search)]


def _nearest(name: str, known: Iterable[str], *, prefix: str) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {prefix}{close[0]}?" if close else ""


def _parameters(function: Callable[..., Any]) -> tuple[frozenset[str], frozenset[str] | None]:
    """Names of the two first parameters, and those of the others (None: any name)."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # some built-in functions have no signature
        return frozenset(), frozenset()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    taken = frozenset(p.name for p in parameters[:2] if p.kind in positional)
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return taken, None
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return taken, frozenset(p.name for p in parameters if p.kind in named)


def _label(function: Callable[..., Any]) -> str:
    if isinstance(function, functools.partial):
        return _label(function.func)
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def _describe(function: Callable[..., Any]) -> str:
    """The source of a function, or of the class of a callable object; its label without one."""
    if isinstance(function, functools.partial):
        fixed = [*function.args, *sorted(function.keywords.items())]
        # default: objects by type, because their repr may hold an address
        return _describe(function.func) + json.dumps(fixed, default=lambda v: type(v).__qualname__)
    named = function if hasattr(function, "__qualname__") else type(function)
    try:
        return inspect.getsource(named)
    except (OSError, TypeError):
        return _label(function)
