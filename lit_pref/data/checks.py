"""Sizes that fit together, and objectives that fit a source: refused before a weight is loaded."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from lit_pref.data.stored import StoredGroups, place_of
from lit_pref.rewards.comparing import is_oracle
from lit_pref.types import Group, Refusal, RoundClient

if TYPE_CHECKING:
    from lit_pref.data.datamodule import RoundDataModule

__all__ = [
    "check_combination", "check_sizes", "fresh_per_batch", "need_reward", "reuse_warning",
    "sampling_warning",
]  # fmt: skip

log = logging.getLogger(__name__)


def check_sizes(
    sizes: dict[str, Any], *, micro_batch_tokens: int | None, max_age: int | None, order: str
) -> None:
    """Whole numbers from 1, and a batch size that divides the round.

    Args:
        sizes: ``prompts_per_round``, ``batch_size`` and others, by name.
        micro_batch_tokens: None or at least 1.
        max_age: None or at least 0.
        order: of prompts.

    Raises:
        Refusal: sizes that do not fit.
    """
    for name, value in sizes.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise Refusal(f"data.{name} must be a whole number from 1, got {value!r}")
    prompts, batch = sizes["prompts_per_round"], sizes["batch_size"]
    if prompts % batch:
        good = [b for b in range(1, prompts + 1) if prompts % b == 0]
        near = sorted(good, key=lambda b: abs(b - batch))[:3]
        raise Refusal(
            f"data.batch_size={batch} does not divide "
            f"data.prompts_per_round={prompts}; nearest values that do: "
            f"{', '.join(map(str, sorted(near)))}"
        )
    if micro_batch_tokens is not None and micro_batch_tokens < 1:
        raise Refusal(f"data.micro_batch_tokens must be at least 1, got {micro_batch_tokens}")
    if max_age is not None and (not isinstance(max_age, int) or max_age < 0):
        raise Refusal(
            f"data.max_age is a number of steps from 0, got {max_age!r}; null sets no limit"
        )
    if order not in ("shuffled", "fixed"):
        raise Refusal(f"data.prompt_order must be shuffled or fixed, got {order!r}")


def need_reward(source: str) -> Refusal:
    """There is nothing to score samples with."""
    return Refusal(
        f"data={source} needs a reward to score samples with; give reward=length, "
        "reward=callable reward.function=package.module.name, or a task with a true "
        "reward (reward=task)"
    )


def fresh_per_batch(fraction: float, batch_size: int) -> int:
    """Groups of every batch that come from the policy.

    Args:
        fraction: share of them, in [0, 1].
        batch_size: groups of a batch.

    Raises:
        Refusal: the share is no whole number of groups; the nearest ones are named.
    """
    if not 0 <= fraction <= 1:
        raise Refusal(f"data.onpolicy_fraction is a share in [0, 1], got {fraction}")
    wanted = fraction * batch_size
    # A third of three groups can only be written as 0.333.
    if abs(wanted - round(wanted)) < 2e-3:
        return round(wanted)
    low, high = (count / batch_size for count in (int(wanted), int(wanted) + 1))
    raise Refusal(
        f"data.onpolicy_fraction={fraction:g} of data.batch_size={batch_size} is {wanted:g} "
        f"groups, which is not whole; nearest values: {low:.6g} and {high:.6g}"
    )


def check_combination(data: RoundDataModule, client: RoundClient) -> None:
    """Whether an objective can be trained on a source.

    Raises:
        Refusal: it cannot; the message says what to change.
    """
    needs, name = client.needs, type(client).__name__
    stored = data.fresh_groups < data.prompts_per_round
    if needs.fresh and stored:
        otherwise = f", or set {needs.unless}" if needs.unless else ""
        raise Refusal(
            f"{name} trains on fresh samples of the policy, but data={data.source} gives "
            f"stored ones; use data=onpolicy{otherwise}"
        )
    if not needs.policy and data.fresh_groups:
        raise Refusal(
            f"{name} trains no policy that could sample; use data=offline instead of "
            f"data={data.source}"
        )
    check = getattr(data.sampler, "check", None)
    if data.fresh_groups and check is not None:
        strategy = type(getattr(data.trainer, "strategy", None)).__name__
        policy = getattr(client, "policy", None)
        check(policy, sharded=strategy == "ModelParallelStrategy")
    present = _least_responses(data)
    if needs.responses > present:
        wanted = f"set data.responses_per_prompt={needs.responses} or more"
        if stored and data.stored is not None and not data.stored.sampled:
            wanted = "use data with more responses to each prompt, or data=onpolicy"
            present_as = f"and data={data.source} has groups of {present}"
        else:
            present_as = f"got data.responses_per_prompt={present}"
        raise Refusal(
            f"{name} needs at least {needs.responses} responses to each prompt, "
            f"{present_as}; {wanted}"
        )
    if needs.behaviours and not _behaviours_known(data):
        raise Refusal(
            f"{name} weighs samples by what produced them, but the data of data={data.source} "
            f"has no behaviour log-probs{_where(data, 'unknown')}; use data=onpolicy, or a "
            "samples.jsonl of an earlier run with data=replay"
        )
    if data.fresh_groups and is_oracle(data.reward) and data.responses_per_prompt < 2:
        raise Refusal(
            f"reward {data.reward.name!r} compares the responses to a prompt with each other, "
            f"and data.responses_per_prompt={data.responses_per_prompt}; set it to 2 or more"
        )
    if needs.rewards and not _scored(data):
        raise Refusal(
            f"{name} needs a reward for every response, but the data of data={data.source} "
            f"has none{_where(data, 'unscored')}; use data=onpolicy with a reward, or an "
            "objective on pairs"
        )


def _known(data: RoundDataModule) -> StoredGroups | None:
    """The stored groups, where they are there to be looked at."""
    return None if data.stored is None or data.stored.groups is None else data.stored


def _least_responses(data: RoundDataModule) -> int:
    """Fewest responses in a group."""
    stored = _known(data)
    found = [] if stored is None else [stored.facts.least_responses]
    if data.fresh_groups or stored is None:
        found.append(data.responses_per_prompt)
    return min(found)


def _behaviours_known(data: RoundDataModule) -> bool:
    """Whether every response has the log-probs of what sampled it; ours have."""
    stored = _known(data)
    return stored is None or stored.facts.unknown is None


def _scored(data: RoundDataModule) -> bool:
    """Whether every response has, or will have, a reward."""
    stored = _known(data)
    if (data.fresh_groups or stored is None) and data.reward is None:
        return False
    return stored is None or stored.facts.unscored is None


def _where(data: RoundDataModule, what: str) -> str:
    """The first stored group at fault, in parentheses."""
    stored = _known(data)
    group: Group | None = None if stored is None else getattr(stored.facts, what)
    return "" if group is None else f" ({place_of(group)})"


def reuse_warning(data: RoundDataModule, client: RoundClient) -> str | None:
    """What to say of several passes with a loss that is right for one; None for nothing.

    A warning and no refusal: how much it costs is something to be measured.
    """
    if client.reuse or data.reuse == 1:
        return None
    otherwise = f"set {client.needs.unless}, or " if client.needs.unless else ""
    return (
        f"{type(client).__name__} is right for samples that are used once, and "
        f"data.reuse={data.reuse} uses each {data.reuse} times: its gradient is biased from the "
        f"second pass on. To avoid it, {otherwise}use data.reuse=1."
    )


def sampling_warning(data: RoundDataModule, client: RoundClient) -> str | None:
    """What to say of samples that are not of the policy itself, with a loss that is right for such.

    None for nothing. A warning and no refusal, as for ``reuse_warning``.
    """
    if not client.needs.fresh or not data.fresh_groups:
        return None
    values = {name: getattr(data.sampler, name, 1.0) for name in ("temperature", "top_p")}
    odd = [f"sampler.{name}={value:g}" for name, value in values.items() if value != 1.0]
    if not odd:
        return None
    otherwise = f"set {client.needs.unless}, or " if client.needs.unless else ""
    return (
        f"{type(client).__name__} is right for samples of the policy itself, and {', '.join(odd)} "
        "samples from another distribution: its gradient is biased. To avoid it, "
        f"{otherwise}use sampler.temperature=1 and sampler.top_p=1."
    )
