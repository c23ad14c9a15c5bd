"""One evaluation: measure, write ``evaluation.json``, print the table."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lit_pref.app.build import make
from lit_pref.app.policy import (
    PolicyWork,
    load_weights,
    policy_of,
    reference_of,
    reward_of,
    work_on,
)
from lit_pref.app.request import Request, new_output
from lit_pref.app.terminal import Bars, lines
from lit_pref.data.evaluation import (
    Measured,
    measure,
    pair_margins,
    pairs_by_reward,
    sequence_logps,
    win_shares,
)
from lit_pref.data.generate import generate_groups
from lit_pref.functional.pairing import order_scores
from lit_pref.functional.statistics import mean_interval, wilson_interval
from lit_pref.report.table import number
from lit_pref.tasks.base import Task
from lit_pref.types import Group, Refusal, RewardSource

__all__ = ["evaluate_request"]

log = logging.getLogger(__name__)

_HOW = (
    "95 per cent. reward, kl, mean_length: mean +- 1.96 standard errors over prompts. win_rate "
    "(all comparisons of a prompt's responses with the reference's, ties half) and finished: "
    "Wilson score, n = prompts. preference_accuracy (ties half): Wilson score, n = pairs."
)


def evaluate_request(request: Request) -> dict[str, Any]:
    """Measure what is asked for; writes the files, prints the table.

    Returns:
        What ``evaluation.json`` holds.

    Raises:
        Refusal: something asked for cannot be measured.
    """
    cfg = request.cfg
    if not isinstance(cfg.responses, int) or cfg.responses < 1:
        raise Refusal(f"responses must be a whole number from 1, got {cfg.responses!r}")
    folder = Path(cfg.output).expanduser() if cfg.output else new_output("evaluate")
    if (folder / "evaluation.json").exists():
        raise Refusal(f"{folder} has an evaluation.json already; choose another with output=FOLDER")
    _make(folder)
    task, policy = policy_of(request)
    reward = reward_of(cfg, task, prefer_true="reward" not in request.chosen, measure=True)
    sampler = make(cfg.sampler)
    if hasattr(sampler, "check"):
        sampler.check(policy)
    policy.load()
    reference, reference_name = reference_of(request, policy)
    weights = load_weights(policy, request.source)
    job = _Evaluation(cfg, task, sampler, reward)
    module = PolicyWork(
        policy, reference, micro_batch_tokens=cfg.model.micro_batch_tokens, work=job
    )
    metrics, missing = work_on(cfg, module)
    result = {
        "model": request.source.name or policy.spec.name,
        **weights,
        "reference": reference_name,
        "task": cfg.task.name,
        "reward": None if reward is None else f"{reward.name}@{reward.version}",
        "prompts": len(job.prompts),
        "responses_per_prompt": cfg.responses,
        "sampling": job.groups[0].sampling,
        "metrics": metrics,
        "not_measured": missing,
        "intervals": _HOW,
    }
    if module.trainer.is_global_zero:
        _write(folder, cfg, result, job)
        print(_table(result, folder))
    return result


class _Evaluation:
    """The measurement itself, called in every process with the models on their devices."""

    def __init__(
        self, cfg: DictConfig, task: Task, sampler: Any, reward: RewardSource | None
    ) -> None:
        self.cfg, self.task, self.sampler, self.reward = cfg, task, sampler, reward
        self.prompts = task.validation()
        self.groups: list[Group] = []
        self.reference_groups: list[Group] = []
        # KL is the mean of log-ratios over samples of the policy itself, no other distribution.
        self.plain = (
            getattr(sampler, "temperature", 1.0) == getattr(sampler, "top_p", 1.0) == 1.0
            and getattr(sampler, "precision", "policy") == "policy"
        )

    def __call__(self, module: PolicyWork) -> tuple[dict[str, Any], dict[str, str]]:
        names = ["policy"] + ([] if module.reference is None else ["reference"])
        bars = Bars("policy")
        measured = measure(
            module.policy,
            self.prompts,
            task=self.task,
            sampler=self.sampler,
            reward=self.reward,
            key=("validation",),
            responses=self.cfg.responses,
            forward=module.forward_pass(),
            models=names,
            progress=bars,
            **module.where(),
        )
        bars.close()
        self.groups = measured.groups
        metrics, missing = self._of_samples(measured)
        self._against_reference(module, metrics, missing)
        self._on_pairs(module, names, metrics, missing)
        return metrics, missing

    def _of_samples(self, measured: Measured) -> tuple[dict[str, Any], dict[str, str]]:
        flat = [r for g in measured.groups for r in g.responses]
        values: dict[str, Sequence[float]] = {}
        missing = {}
        if self.reward is None:
            missing["reward"] = "no reward was given; add reward=length, reward=callable, ..."
        else:
            values["reward"] = [float(r.reward) for r in flat]  # type: ignore[arg-type]
        if not self.plain:
            missing["kl"] = (
                "it needs sampler.temperature=1, sampler.top_p=1 and sampler.precision=policy"
            )
        elif "reference" not in measured.logps:
            missing["kl"] = "there is no reference; add reference_model=FOLDER"
        else:
            values["kl"] = measured.kl()
        values["mean_length"] = [float(len(r.ids)) for r in flat]
        values["finished"] = [float(r.finished) for r in flat]
        out: dict[str, Any] = {}
        for name, numbers in values.items():
            by_prompt = measured.by_group(numbers)
            mean, share = sum(by_prompt) / len(by_prompt), name == "finished"
            interval = wilson_interval(mean, len(by_prompt)) if share else mean_interval(by_prompt)
            out[name] = _entry(mean, interval)
        if self.plain:
            out["entropy"] = {"mean": measured.metrics()["entropy"][0]}
        return out, missing

    def _against_reference(
        self, module: PolicyWork, metrics: dict[str, Any], missing: dict[str, str]
    ) -> None:
        if module.reference is None or self.reward is None:
            lacking = "reference_model=FOLDER" if module.reference is None else "a reward"
            missing["win_rate"] = f"it needs {lacking}"
            return
        bars = Bars("reference")
        self.reference_groups = generate_groups(
            module.reference,
            self.prompts,
            task=self.task,
            sampler=self.sampler,
            reward=self.reward,
            # Draws of its own: with the policy's, a policy near the reference would only tie.
            key=("validation", "reference"),
            responses=self.cfg.responses,
            progress=bars,
            **module.where(),
        )
        bars.close()
        for group in self.reference_groups:
            for response in group.responses:
                response.behaviour = "reference"
        shares = win_shares(self.groups, self.reference_groups)
        share = sum(shares) / len(shares)
        metrics["win_rate"] = _entry(share, wilson_interval(share, len(shares)))
        theirs = [[r.reward for r in g.responses] for g in self.reference_groups]
        means = [sum(x) / len(x) for x in theirs]  # type: ignore[arg-type]
        metrics["reference_reward"] = _entry(sum(means) / len(means), mean_interval(means))

    def _on_pairs(
        self,
        module: PolicyWork,
        names: list[str],
        metrics: dict[str, Any],
        missing: dict[str, str],
    ) -> None:
        stored = self.task.offline()
        if stored is not None:
            origin = "the task's pairs"
            pairs = list(islice(_chosen_first(stored), self.cfg.max_pairs))
        elif self.reference_groups:
            origin = "best and worst reference response to each prompt"
            pairs = pairs_by_reward(self.reference_groups)
        else:
            origin, pairs = "", []
        pairs = pairs[: self.cfg.max_pairs]
        if not pairs:
            missing["preference_accuracy"] = "there are no pairs; add task.pairs=FILE"
            return
        where = module.where()
        logps = sequence_logps(
            module.forward_pass(), names, pairs, rank=where["rank"], world=where["world"]
        )
        margins = pair_margins(logps)
        share = sum((m > 0) + 0.5 * (m == 0) for m in margins) / len(margins)
        metrics["preference_accuracy"] = {
            **_entry(share, wilson_interval(share, len(margins))),
            "pairs": len(margins),
            "pairs_from": origin,
            "compares": "log-ratios to the reference" if len(names) == 2 else "log-probs",
        }


def _chosen_first(groups: Iterable[Group]) -> Iterator[Group]:
    """Best and last response of stored groups by rank, reward or label; ties give no pair."""
    for group in groups:
        scores = order_scores(
            [r.rank for r in group.responses],
            [r.reward for r in group.responses],
            [r.label for r in group.responses],
        )
        if not scores or max(scores) == min(scores):
            continue
        best = scores.index(max(scores))
        last = max(n for n, score in enumerate(scores) if score == min(scores))
        pair = [group.responses[best], group.responses[last]]
        yield Group(prompt=group.prompt, responses=pair)


def _entry(mean: float, interval: tuple[float, float]) -> dict[str, Any]:
    return {"mean": mean, "interval": list(interval)}


def _write(folder: Path, cfg: DictConfig, result: dict[str, Any], job: _Evaluation) -> None:
    files = [("samples.jsonl", job.groups), ("reference_samples.jsonl", job.reference_groups)]
    for name, groups in files:
        if groups:
            text = [json.dumps(g.to_json(), ensure_ascii=False) + "\n" for g in groups]
            (folder / name).write_text("".join(text), encoding="utf-8")
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True))
    part = folder / "evaluation.json.part"
    part.write_text(json.dumps(result, indent=2) + "\n")
    os.replace(part, folder / "evaluation.json")


def _make(folder: Path) -> None:
    """The folder of the result, before anything is computed."""
    if os.environ.get("LOCAL_RANK", "0") != "0":  # the first process writes
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError("it cannot be written to")
    except OSError as error:
        raise Refusal(
            f"the result cannot be written to {folder} ({error}); choose another folder with "
            "output=FOLDER"
        ) from error


_UNITS = {
    "reward": "",
    "reference_reward": "of the reference's responses",
    "kl": "nats per response, to the reference",
    "win_rate": "of comparisons with the reference's responses",
    "mean_length": "tokens",
    "finished": "of the responses end by themselves",
    "entropy": "nats per token",
}


def _table(result: dict[str, Any], folder: Path) -> str:
    checkpoint = result["checkpoint"]
    rows = [("model", str(result["model"]) + (f", {checkpoint}" if checkpoint else ""))]
    rows.append(("reference", result["reference"] or "none"))
    many = f"{result['prompts']} prompts x {result['responses_per_prompt']} responses"
    reward = f"reward {result['reward']}" if result["reward"] else "no reward"
    rows.append(("measured on", f"{many}, task {result['task']}, {reward}"))
    for name, entry in result["metrics"].items():
        text = number(float(entry["mean"]))
        if "interval" in entry:
            low, high = (number(float(x)) for x in entry["interval"])
            text += f"  [{low}, {high}]"
        unit = _UNITS.get(name) or ""
        if name == "preference_accuracy":
            unit = f"of {entry['pairs']} pairs ({entry['pairs_from']})"
        rows.append((name, f"{text}  {unit}".rstrip()))
    rows += [(name, f"-  {why}") for name, why in result["not_measured"].items()]
    rows.append(("result", str(folder / "evaluation.json")))
    return lines(rows)
