"""The user's own Python functions: found by their path, called as they want to be called."""

from __future__ import annotations

import asyncio
import difflib
import functools
import importlib
import inspect
import json
import pkgutil
import sys
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType
from typing import Any, Literal

from lit_pref.rewards.background import run, run_limited
from lit_pref.types import Prompt, Refusal

__all__ = ["Takes", "UserFunction", "resolve_function"]

Takes = Literal["batch", "one"]
_ASYNC_CALLS = 16


class UserFunction:
    """A plain or async function that is given rows, all at once or one by one.

    Args:
        function: the function, or its dotted path.
        leading: how many arguments come before the columns (the prompt and what is judged).
        takes: ``batch``: lists with one entry per row, returns a list; ``one``: one row, returns
            one number.
        concurrency: calls at the same time. None: 1 for a plain function (which need not be safe
            in threads), 16 for an async one.

    Raises:
        Refusal: the path does not lead to a function, or an argument is out of range.
    """

    def __init__(
        self,
        function: str | Callable[..., Any],
        *,
        leading: int,
        takes: Takes = "batch",
        concurrency: int | None = None,
    ) -> None:
        self.function = resolve_function(function) if isinstance(function, str) else function
        if not callable(self.function):
            raise Refusal(
                "reward.function must be a dotted path (package.module.function) or a callable; "
                f"got {function!r}"
            )
        if takes not in ("batch", "one"):
            raise Refusal(f"reward.takes must be batch or one, got {takes!r}")
        if concurrency is not None and concurrency < 1:
            raise Refusal(f"reward.concurrency must be at least 1, got {concurrency}")
        call = type(self.function).__call__
        self.is_async = inspect.iscoroutinefunction(self.function) or inspect.iscoroutinefunction(
            call
        )
        self.takes = takes
        self.concurrency = concurrency or (_ASYNC_CALLS if self.is_async else 1)
        self._limit = asyncio.Semaphore(self.concurrency)
        self._taken, self._accepted = _parameters(self.function, leading)
        self._needed = _needed(self.function, leading)
        self._known: set[str] = set()

    @property
    def label(self) -> str:
        """Module and name."""
        return _label(self.function)

    @property
    def source(self) -> str:
        """Its source text, which its version is made of."""
        return _describe(self.function)

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Whether they have the columns that the function asks for; one row may lack them.

        Raises:
            Refusal: an argument without a default that is a column of no prompt.
        """
        names: dict[str, None] = {}
        for prompt in prompts if self._needed else ():
            names |= dict.fromkeys(prompt.columns)
            if all(name in names for name in self._needed):
                break  # there may be millions of rows
        else:
            if prompts and (problem := self._missing(names)):
                file = next((p.file for p in prompts if p.file), None)
                place = "" if file is None else f", prompts of {file}"
                raise Refusal(f"reward.function={self.label}{place}: {problem}")
        self._known.update(names)

    def __call__(self, prompts: Sequence[Prompt], *leading: Sequence[Any]) -> list[Any]:
        """What the function returns for some rows.

        Args:
            prompts: of each row; their text is the first argument, their columns the named ones.
            leading: further arguments, one entry per row.

        Raises:
            TypeError: a batch function returned something that is not a sequence.
        """
        texts = [p.text for p in prompts]
        columns = self._columns(prompts)
        if self.takes == "one":
            return self._one_by_one([texts, *leading], columns)
        out = self.function(texts, *(list(x) for x in leading), **columns)
        if inspect.isawaitable(out):
            out = run(_awaited(out))
        if isinstance(out, (str, bytes)) or not isinstance(out, Iterable):
            one = "" if out is None else "; for a function of one response set reward.takes=one"
            raise TypeError(
                f"expected a list of {len(texts)} numbers, one per response; the function "
                f"returned {type(out).__name__}{one}"
            )
        return _no_coroutines(list(out))

    def _one_by_one(self, leading: Sequence[Sequence[Any]], columns: dict[str, list]) -> list[Any]:
        calls = [
            functools.partial(self.function, *row, **{k: v[n] for k, v in columns.items()})
            for n, row in enumerate(zip(*leading, strict=True))
        ]
        if self.is_async:
            return run(run_limited(calls, self._limit))
        first = [call() for call in calls[:1]]
        if first and inspect.isawaitable(first[0]):  # a plain function around an async one
            self.is_async = True
            rest = run(run_limited(calls[1:], self._limit))
            return [run(_awaited(first[0])), *rest]
        return [*first, *(call() for call in calls[1:])]

    def _columns(self, prompts: Sequence[Prompt]) -> dict[str, list[Any]]:
        names = dict.fromkeys(name for prompt in prompts for name in prompt.columns)
        if problem := self._missing([*names, *self._known]):
            raise TypeError(problem)
        names |= dict.fromkeys(n for n in self._needed if n in self._known)
        return {
            name: [prompt.columns.get(name) for prompt in prompts]
            for name in names
            if name not in self._taken and (self._accepted is None or name in self._accepted)
        }

    def _missing(self, names: Iterable[str]) -> str | None:
        """What to say of a needed argument that is no column of the prompts; None for nothing."""
        names = dict.fromkeys(names)
        for name in self._needed:
            if name not in names:
                have = f"they have {', '.join(names)}" if names else "they have none"
                return (
                    f"the function's argument {name!r} is no column of these prompts ({have}"
                    f"{_nearest(name, names, prefix='')}). Rename it, give it a default, or add "
                    "the column to the prompt file"
                )
        return None


def _no_coroutines(values: list[Any]) -> list[Any]:
    """The values; an error where the function made calls of an async one and awaited none."""
    unawaited = [v for v in values if inspect.isawaitable(v)]
    if not unawaited:
        return values
    for value in unawaited:
        if inspect.iscoroutine(value):
            value.close()  # or Python warns of each of them
    raise TypeError(
        "expected numbers, one per response; the function returned calls of an async function that "
        "nobody awaited. Declare it with async def and await them, or name the async function of "
        "one response itself and set reward.takes=one"
    )


async def _awaited(value: Any) -> Any:
    return await value


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
            f"{_nearest(leaf, known, prefix=parent + '.' if parent else '') or '.'} "
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


def _parameters(
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


def _needed(function: Callable[..., Any], leading: int) -> list[str]:
    """Names of the parameters after the first that have no default."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return []
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    rest = [p for p in parameters[leading:] if p.kind in named]
    return [p.name for p in rest if p.default is inspect.Parameter.empty]


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
