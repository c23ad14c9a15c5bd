"""The parts of the report page that are words and numbers. All text is escaped here."""

from __future__ import annotations

import re
from html import escape
from typing import Any

from lit_pref.report.read import RunRecord
from lit_pref.report.table import duration, measures_accuracy, measures_reward, number

__all__ = ["configuration", "heading", "problems", "samples", "tiles", "versions"]

_KEY = re.compile(r"^(\s*(?:- )*)([^\s#:'\"][^:'\"]*)(:)(?=\s|$)")


def heading(run: RunRecord) -> str:
    """Objective, data, task, model, seed and status in one line."""
    names = {key: escape(value) for key, value in run.identity().items()}
    kind = {"finished": "good", "unknown": ""}.get(run.status, "bad")
    reason = run.summary.get("reason") or run.summary.get("error")
    facts = "".join(f"<span>{key} <b>{names[key]}</b></span>" for key in ("task", "model", "seed"))
    return (
        f'<header><p class="kicker">Run report</p>'
        f"<h1>{names['objective']} <small>on</small> {names['data']} <small>data</small></h1>"
        f'<div class="facts">{facts}'
        f'<span class="status {kind}">{escape(run.status)}</span></div>'
        + (f'<p class="note"><b>Reason:</b> {escape(str(reason))}</p>' if reason else "")
        + "</header>"
    )


def problems(run: RunRecord) -> str:
    """What is missing or damaged, or nothing."""
    if not run.problems:
        return ""
    items = "".join(f"<li>{escape(problem)}</li>" for problem in run.problems)
    return f'<div class="note"><b>Not everything could be read.</b><ul>{items}</ul></div>'


# --------------------------------------------------------------------------- headline


def tiles(run: RunRecord) -> str:
    """The numbers of the run; those that the summary lacks come from the logged rows."""
    start = _value(run, "reward_start", "val/reward", 0)
    final = _value(run, "reward_final", "val/reward", -1)
    kl = _value(run, "kl_final", "val/kl", -1)
    rounds = run.summary.get("rounds")
    reward = _change(start, final)
    if start is None and final is None and not measures_reward(run.summary):
        reward = "<span>not measured</span>"
    heads = [
        _tile("True reward on validation prompts", reward, wide=True),
        _tile("KL to the initial policy", number(kl), "nats per response"),
    ]
    if measures_accuracy(run.summary):
        ends = (run.summary.get("accuracy_start"), run.summary["accuracy_final"])
        loss = _value(run, "", "val/loss", -1)
        heads = [
            _tile("Accuracy on held-out pairs", _change(*ends), wide=True),
            _tile("Loss on held-out pairs", number(loss), "nats per pair"),
        ]
    cells = [
        *heads,
        _tile("Optimizer steps", number(_value(run, "steps", "step", -1))),
        _tile("Rounds", number(_last_round(run) if rounds is None else rounds)),
        _tile("Passes", number(run.summary.get("passes"))),
        _tile("Responses sampled", number(_value(run, "samples", "samples", -1))),
        _tile("Reward queries", number(_value(run, "reward_queries", "reward_queries", -1))),
        _tile("Evaluation queries", number(run.summary.get("eval_queries"))),
        _tile("Wall time", duration(run.summary.get("wall_seconds"))),
    ]  # fmt: skip
    return f'<dl class="tiles card">{"".join(cells)}</dl>'


def _value(run: RunRecord, key: str, column: str, index: int) -> Any:
    value = run.summary.get(key)
    if value is None:
        logged = [c for c in run.metrics.column(column) if isinstance(c, (int, float))]
        # One evaluation is a start and no end.
        known = len(logged) > 1 if column.startswith("val/") and index < 0 else bool(logged)
        value = logged[index] if known else None
    return value


def _last_round(run: RunRecord) -> int | None:
    logged = [c for c in run.metrics.column("round") if isinstance(c, (int, float))]
    return int(max(logged)) + 1 if logged else None


def _tile(name: str, value: str, under: str = "", *, wide: bool = False) -> str:
    small = f"<small>{escape(under)}</small>" if under else ""
    kind = ' class="wide"' if wide else ""
    value = value if value.startswith("<") else escape(value)
    return f"<div{kind}><dt>{escape(name)}</dt><dd>{value}{small}</dd></div>"


def _change(start: Any, final: Any) -> str:
    text = f"<span>{escape(number(start))} <i>&rarr;</i> {escape(number(final))}</span>"
    return text + _difference(start, final, "delta")


def _difference(start: Any, final: Any, kind: str) -> str:
    if not _real(start) or not _real(final):
        return ""
    difference = float(final - start)
    # The sign carries the meaning; colour only repeats it.
    tone = "" if difference == 0 else " good" if difference > 0 else " bad"
    sign = "+" if difference > 0 else ""
    return f' <span class="{kind}{tone}">{sign}{escape(number(difference))}</span>'


def _real(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


# --------------------------------------------------------------------------- samples


def samples(run: RunRecord) -> str:
    """The matched prompts, each with its first response before and after."""
    pairs, source = run.samples.pairs, escape(run.samples.source)
    if not pairs and measures_accuracy(run.summary):  # it samples nothing
        return ""
    if not pairs:
        why = "No prompt has samples from before and after training; see the notes at the top."
        return f'<section><div class="head"><h2>Before and after</h2><p>{why}</p></div></section>'
    rewards = [(_reward(p.before), _reward(p.after)) for p in pairs]
    known = [(a, b) for a, b in rewards if _real(a) and _real(b)]
    mean = ""
    if known:
        first, last = (sum(side) / len(known) for side in zip(*known, strict=True))
        mean = f" Mean reward of those shown: {number(first)} &rarr; {number(last)}."
    cards = "".join(_pair(run, n) for n in range(len(pairs)))
    return (
        '<section><div class="head"><h2>Before and after</h2>'
        f"<p>The first {len(pairs)} {source}, in file order, not picked.{mean}</p></div>"
        f"{cards}</section>"
    )


def _pair(run: RunRecord, index: int) -> str:
    pair = run.samples.pairs[index]
    a, b = _reward(pair.before), _reward(pair.after)
    change = ""
    if _real(a) and _real(b):
        change = f"reward {number(a)} &rarr; {number(b)}{_difference(a, b, '')}"
    return (
        f'<article class="pair card"><header><div class="prompt">'
        f'<span class="role">prompt {escape(str(pair.prompt_id))}</span>'
        f"{_prompt(pair.before)}</div>"
        f'<div class="change">{change}</div></header><div class="sides">'
        f"{_side('Before', run.samples.before, pair.before)}"
        f"{_side('After', run.samples.after, pair.after)}</div></article>"
    )


def _reward(group: dict[str, Any]) -> Any:
    return group["responses"][0].get("reward")


def _prompt(group: dict[str, Any]) -> str:
    prompt = group.get("prompt")
    if isinstance(prompt, list):
        return "\n" + "\n".join(
            f'<span class="role">{escape(str(m.get("role", "")))}</span>'
            f"{escape(str(m.get('content', '')))}"
            for m in prompt
            if isinstance(m, dict)
        )
    if prompt:
        return escape(str(prompt))
    return _ids(group.get("prompt_ids")) or '<span class="empty">empty prompt</span>'


def _side(title: str, when: str, group: dict[str, Any]) -> str:
    response = group["responses"][0]
    ids, text = response.get("ids"), response.get("text")
    facts = [
        f"<b>{title}</b>, {escape(when)}",
        f"reward <b>{escape(number(response.get('reward')))}</b>",
    ]
    if isinstance(ids, list):
        facts.append(f"{len(ids)} tokens")
    if len(group["responses"]) > 1:
        facts.append(f"response 1 of {len(group['responses'])}")
    head = "".join(f"<span>{fact}</span>" for fact in facts)
    body = escape(str(text)) if text else _ids(ids)
    if response.get("finished") is False and body and text:
        body += ' <span class="cut">[cut at the length limit]</span>'
    body = body or '<span class="empty">empty response</span>'
    return f'<div class="side"><h3>{head}</h3><div class="text">{body}</div></div>'


def _ids(ids: Any) -> str:
    if not isinstance(ids, list) or not ids:
        return ""
    return f'<span class="ids">{escape(" ".join(map(str, ids)))}</span>'


# --------------------------------------------------------------------------- configuration


def configuration(run: RunRecord) -> str:
    """The resolved configuration, folded, keys in colour."""
    if not run.config_text.strip():
        return ""
    lines = "\n".join(_yaml_line(line) for line in run.config_text.splitlines())
    return (
        '<div class="head"><h2>Configuration</h2></div><details class="card" style="margin:0">'
        f"<summary>config.yaml<span>resolved</span></summary><pre>{lines}</pre></details>"
    )


def _yaml_line(line: str) -> str:
    match = _KEY.match(line)
    if match is None:
        return escape(line)
    indent, key, colon = match.groups()
    return f"{escape(indent)}<b>{escape(key)}</b>{colon}{escape(line[match.end() :])}"


def versions(run: RunRecord) -> str:
    """What ran: package versions, commit, machine."""
    rows = _flat(run.environment)
    if not rows:
        return ""
    cells = "".join(f"<tr><td>{escape(k)}</td><td>{escape(v)}</td></tr>" for k, v in rows)
    return (
        '<details class="card"><summary>Versions<span>environment.json</span></summary>'
        f'<div class="scroll"><table>{cells}</table></div></details>'
    )


def _flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    if isinstance(value, dict):
        return [
            row for k, v in value.items() for row in _flat(v, f"{prefix}.{k}" if prefix else str(k))
        ]
    if isinstance(value, list):
        value = ", ".join(map(str, value))
    return [(prefix, str(value))] if prefix else []
