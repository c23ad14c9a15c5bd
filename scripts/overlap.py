"""How long a round takes with a reward that sleeps, scored after, beside and at once.

    python scripts/overlap.py

The sampler and the reward only sleep, so that the numbers say what overlaps, on any machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lit_pref.data.generate import generate_groups
from lit_pref.rewards import CallableReward, assess
from lit_pref.types import Group, Prompt, Response

PROMPTS, RESPONSES, SAMPLING = 16, 4, 0.1


class Sampler:
    """Finishes a group every ``SAMPLING`` seconds."""

    max_new_tokens = 1

    def sample(self, policy: Any, prompts: Any, *, on_group: Any, **rest: Any) -> list[Group]:
        out = []
        for n, prompt in enumerate(prompts):
            time.sleep(SAMPLING)
            answers = [Response(ids=[k], text=str(k)) for k in range(RESPONSES)]
            out.append(Group(prompt=prompt, responses=answers))
            on_group(n, out[-1])
        return out


class Task:
    eos_ids = ()

    def decode(self, ids: list[int]) -> str:
        return ""


def round_seconds(reward: Any, *, afterwards: bool = False) -> float:
    began = time.perf_counter()
    groups = generate_groups(
        object(),  # type: ignore[arg-type]
        [Prompt(id=n, text="", ids=[n]) for n in range(PROMPTS)],
        task=Task(),  # type: ignore[arg-type]
        sampler=Sampler(),
        reward=None if afterwards else reward,
        key=(0,),
        responses=RESPONSES,
        context=contextlib.nullcontext,
    )
    if afterwards:
        for group in groups:
            assess(reward, [group])
    return time.perf_counter() - began


def main() -> None:
    print("| one response takes | after sampling | beside it, one call at a time | 16 at a time |")
    print("|---|---|---|---|")
    for seconds in (0.02, 0.1, 0.3):

        async def sleeping(prompt: str, response: str, seconds: float = seconds) -> float:
            await asyncio.sleep(seconds)
            return 0.0

        one = CallableReward(sleeping, takes="one", concurrency=1)
        many = CallableReward(sleeping, takes="one", concurrency=16)
        times = [round_seconds(one, afterwards=True), round_seconds(one), round_seconds(many)]
        print(f"| {seconds:g} s | " + " | ".join(f"{t:.1f}" for t in times) + " |", flush=True)


if __name__ == "__main__":
    main()
