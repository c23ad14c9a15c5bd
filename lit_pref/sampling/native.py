"""Sampling on the policy's live weights: plans, random coordinates and records over ``decode``."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, get_args

from lit_pref.engine.decode import DecodedRow, decode
from lit_pref.engine.packed_weights import packed_weights
from lit_pref.engine.recorded import recorded_steps
from lit_pref.functional.rng import uniforms
from lit_pref.policies.sharding import gathered, is_sharded
from lit_pref.sampling.precision import Precision, check_precision, faster_precision, rounded
from lit_pref.types import Group, Policy, Prompt, Refusal, Response

__all__ = ["NativeSampler"]


class NativeSampler:
    """Samples with our own decode loop.

    Args:
        max_new_tokens: length limit of a response, in tokens.
        temperature: divides the logits; 1 samples from the policy itself, 0 is greedy.
        top_p: keeps the likeliest tokens with at least this mass (1: all).
        stop_ids: further token ids that end a response, besides the end-of-sequence tokens.
        max_rows: responses decoded at the same time; bounds memory, never changes a sample. None:
            as many as fit into 1 GiB or half the memory of the weights, from 32 to 512.
        refill: prompts that wait enter as soon as a part of the rows has ended, not only when all
            have; never changes a sample. Of models whose prompts cannot be shared while decoding
            they wait for all.
        precision: ``policy`` samples with the policy's own weights; ``bfloat16`` with a rounded
            copy of them, made anew for each round; ``auto`` with the copy if a probe at the first
            round finds it faster on this processor. Rounded weights sample from another
            distribution: its log-probs are ``behaviour_logps``, and ratios are to log-probs of the
            training forward all the same.
        cuda_graphs: on a GPU a decoding step is recorded and replayed (``engine.recorded``), where
            prompts are shared and a replay was found to be right.

    Raises:
        Refusal: an argument out of range.
    """

    def __init__(
        self,
        *,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        stop_ids: Sequence[int] = (),
        max_rows: int | None = None,
        refill: bool = True,
        precision: Precision = "policy",
        cuda_graphs: bool = True,
    ) -> None:
        if max_new_tokens < 1:
            raise Refusal(f"sampler.max_new_tokens must be at least 1, got {max_new_tokens}")
        if not 0 <= temperature < float("inf"):
            raise Refusal(f"sampler.temperature must be 0 (greedy) or larger, got {temperature}")
        if not 0 < top_p <= 1:
            raise Refusal(f"sampler.top_p must be in (0, 1], got {top_p}; 1 keeps all tokens")
        if max_rows is not None and max_rows < 1:
            raise Refusal(f"sampler.max_rows must be at least 1, got {max_rows}")
        if precision not in get_args(Precision):
            known = ", ".join(get_args(Precision))
            raise Refusal(f"sampler.precision must be one of {known}, got {precision!r}")
        self.precision = precision
        self.picked: str | None = None if precision == "auto" else precision
        """What ``auto`` chose; part of checkpoints, so that a resumed run goes on with it."""
        self.max_new_tokens = max_new_tokens
        self.temperature = float(temperature)
        self.top_p = float(top_p)
        self.stop_ids = tuple(stop_ids)
        self.max_rows = max_rows
        self.refill = refill
        self.cuda_graphs = cuda_graphs

    def plain(self) -> NativeSampler:
        """The same at temperature 1, with all tokens and the policy's own weights."""
        return NativeSampler(
            max_new_tokens=self.max_new_tokens,
            stop_ids=self.stop_ids,
            max_rows=self.max_rows,
            refill=self.refill,
            cuda_graphs=self.cuda_graphs,
        )

    @property
    def settings(self) -> dict[str, Any]:
        """What decided the sampling distribution; recorded with every group."""
        rounded = {} if self.picked == "policy" else {"precision": self.picked}
        return {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_new_tokens": self.max_new_tokens,
            "stop_ids": list(self.stop_ids),
            **rounded,
        }

    def check(self, policy: Any, *, sharded: bool = False) -> None:
        """Whether a policy can be sampled from; before its weights are loaded.

        Args:
            policy: the policy.
            sharded: no process has its whole weights.

        Raises:
            Refusal: it cannot be in this precision.
        """
        check_precision(self.precision, policy, sharded=sharded)

    def state_dict(self) -> dict[str, Any]:
        """What was found out while running."""
        return {"picked": self.picked} if self.precision == "auto" else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with what another run has found out."""
        if self.precision == "auto" and state.get("picked") is not None:
            self.picked = state["picked"]

    def sample(
        self,
        policy: Policy,
        prompts: Sequence[Prompt],
        *,
        key: tuple[int | str, ...],
        occurrences: Sequence[int],
        responses: int,
        end_ids: Collection[int] = (),
        text: Callable[[list[int]], str] = lambda ids: " ".join(map(str, ids)),
        on_group: Callable[[int, Group], None] | None = None,
    ) -> list[Group]:
        """Responses to each prompt.

        Args:
            policy: the model; must be in eval mode.
            prompts: prompts, repeated ones included.
            key: coordinates of this call, for example ``(seed, "sample", round)``.
            occurrences: how often the same prompt came earlier in the round, for each prompt.
            responses: responses per prompt.
            end_ids: end-of-sequence tokens.
            text: decodes token ids for people and rewards.
            on_group: called with (position, group) when all responses of a prompt are there, so
                that scoring can begin while others are still sampled.

        Returns:
            One group per prompt, in order.
        """
        policy = self._in_precision(policy)
        # Prompts of similar length go together: less padding in the prefill. Draws depend on
        # coordinates alone, so the plan changes nothing else.
        order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i].ids), i))
        most = self._rows(policy, [len(p.ids) for p in prompts], responses)
        chunk = max(most // responses, 1)
        width = None
        if self.refill and responses <= most and getattr(policy, "can_enter", False):
            chunk, width = max(len(order), 1), most
        by_place: dict[int, Group] = {}
        graphs = self.cuda_graphs and not is_sharded(policy)
        # all once, however many steps each process decodes
        with (
            gathered(policy),
            packed_weights(policy, tokens=self.max_new_tokens),
            recorded_steps(policy, wanted=graphs, tokens=self.max_new_tokens),
        ):
            for start in range(0, len(order), chunk):
                part = order[start : start + chunk]
                rows: list[dict[int, DecodedRow]] = [{} for _ in part]

                def finished(n: int, copy: int, row: DecodedRow) -> None:
                    mine, i = rows[n], part[n]  # noqa: B023  (called within this turn alone)
                    mine[copy] = row
                    if len(mine) == responses:
                        inside = [mine[k] for k in range(responses)]
                        by_place[i] = self._group(prompts[i], inside, end_ids, text)
                        if on_group is not None:
                            on_group(i, by_place[i])

                for first in range(0, responses, most):  # one prompt may have more
                    copies = range(first, min(first + most, responses))
                    keys = [(*key, prompts[i].id, occurrences[i], k) for i in part for k in copies]
                    self._decode(
                        policy, [prompts[i].ids for i in part], keys, copies, end_ids, finished,
                        early=on_group is not None, width=width,
                    )  # fmt: skip
        return [by_place[i] for i in range(len(prompts))]

    def _rows(self, policy: Policy, prompts: Sequence[int], responses: int) -> int:
        """Responses decoded at the same time; a prompt's memory is shared by its responses."""
        load = getattr(policy, "load", None)
        if load is not None:
            load()  # then it is known what it can
        if self.max_rows is not None:
            return self.max_rows
        fitting = getattr(policy, "rows_that_fit", None)
        if fitting is None or not prompts:
            return 512
        sharing = responses if getattr(policy, "can_enter", False) else 1
        rows: int = fitting(self.max_new_tokens + -(-max(prompts) // sharing))
        return rows

    def _in_precision(self, policy: Policy) -> Policy:
        if self.precision == "policy":
            return policy
        self.check(policy, sharded=is_sharded(policy))
        if self.picked is None:
            self.picked = faster_precision(policy)
        return policy if self.picked == "policy" else rounded(policy)

    def _decode(
        self,
        policy: Policy,
        prompts: Sequence[Sequence[int]],
        keys: Sequence[tuple[int | str, ...]],
        copies: range,
        end_ids: Collection[int],
        finished: Callable[[int, int, DecodedRow], None],
        *,
        early: bool,
        width: int | None,
    ) -> None:
        """Tell ``finished`` of one row per key: (prompt, copy, row); at the end if not early."""
        told: set[int] = set()

        def tell(index: int, row: DecodedRow) -> None:
            told.add(index)
            n, k = divmod(index, len(copies))
            finished(n, copies[k], row)

        decoded = decode(
            policy,
            prompts,
            copies=len(copies),
            uniforms=uniforms(keys, self.max_new_tokens),
            max_new_tokens=self.max_new_tokens,
            end_ids={*end_ids, *self.stop_ids},
            temperature=self.temperature,
            top_p=self.top_p,
            on_row=tell if early else None,
            width=width,
        )
        for index, row in enumerate(decoded):
            if index not in told:
                tell(index, row)

    def _group(
        self,
        prompt: Prompt,
        rows: Iterable[DecodedRow],
        end_ids: Collection[int],
        text: Callable[[list[int]], str],
    ) -> Group:
        ends = {*end_ids, *self.stop_ids}
        responses = [
            Response(
                ids=row.ids,
                text=text([i for i in row.ids if i not in ends] if ends else row.ids),
                behaviour="policy",
                behaviour_logps=row.behaviour_logps,
                policy_logps=row.policy_logps,
                finished=row.finished,
            )
            for row in rows
        ]
        return Group(prompt=prompt, responses=responses, source="onpolicy", sampling=self.settings)
