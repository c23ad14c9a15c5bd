"""One battery of tests for every objective; subclass it for yours.

    class TestMyObjective(ObjectiveTester):
        objective = MyObjective
        options = {"beta": 0.1}

Batches come through the real path: round, ``select``, ``annotate``, ``view``, ``RoundTensors``.
Expected values are not here: derive them by hand beside the subclass (``pair_numbers`` and
``whole_loss`` of ``testing.batches`` help).
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, cast

import lightning as L
import torch
from torch import Tensor

from lit_pref.engine.forward import micro_batches
from lit_pref.functional.rng import generator
from lit_pref.objectives.base import ObjectiveModule
from lit_pref.policies.reference import FrozenReference
from lit_pref.testing.batches import (
    HeldConstants,
    StandInTrainer,
    assert_close,
    cotangents,
    coupled,
    extremes,
    fill_sampled,
    flat_gradient,
    forward_stats,
    gradients,
    make_batch,
    make_round,
    moved,
    trainable,
)
from lit_pref.testing.tiny import TinyPolicy, tiny_groups
from lit_pref.types import Group, Round

__all__ = ["ObjectiveTester"]


def _attach(module: ObjectiveModule, trainer: StandInTrainer) -> None:
    module.trainer = cast(L.Trainer, trainer)


class ObjectiveTester:
    """Subclass, name your objective, and pytest runs the battery.

    Attributes:
        objective: the class under test.
        options: its keyword arguments.
        group_count, response_count: size of the test rounds.
        order_free: whether the order of groups and of responses does not matter.
        tolerance: relative, of gradients that must be equal.
        seeds: the probes of the negative gradient look at so many random rounds.
    """

    objective: ClassVar[type[ObjectiveModule]]
    options: ClassVar[dict[str, Any]] = {}
    group_count: ClassVar[int] = 8
    response_count: ClassVar[int] = 4
    order_free: ClassVar[bool] = True
    tolerance: ClassVar[float] = 1e-6
    seeds: ClassVar[Sequence[int]] = (0, 1, 2)

    # ------------------------------------------------------------------ override if need be

    def make(self, policy: TinyPolicy, **shared: Any) -> ObjectiveModule:
        """The objective on a policy; override to hand in collaborators (value heads)."""
        return self.objective(policy, **{**self.options, **shared})

    def groups(self, *, seed: int = 0, ranked: bool = False) -> list[Group]:
        """The groups of a test round."""
        count = 2 if ranked else self.response_count
        return tiny_groups(groups=self.group_count, responses=count, seed=seed, ranked=ranked)

    # ------------------------------------------------------------------ helpers

    def module(self, *, dtype: torch.dtype = torch.float64, **shared: Any) -> ObjectiveModule:
        """The objective, ready to take a backward pass without a trainer."""
        policy = TinyPolicy(dtype=dtype)
        module = self.make(policy, **{"reference": FrozenReference(), **shared})
        module.to(dtype)
        _attach(module, StandInTrainer())
        module.configure_model()
        copy = getattr(module.reference, "copy", None)
        if copy is not None:
            copy.perturb(0.2, seed=1)
        return module

    def round(self, module: ObjectiveModule, groups: list[Group]) -> Round:
        """An annotated round, after which the policy has moved on."""
        fill_sampled(module, groups)
        round = make_round(module, groups)
        cast(TinyPolicy, module.policy).perturb(0.1, seed=2)
        return round

    def prepared(
        self, *, dtype: torch.dtype = torch.float64, seed: int = 0, **shared: Any
    ) -> tuple[ObjectiveModule, Round]:
        """A module and a round that it annotated."""
        module = self.module(dtype=dtype, **shared)
        return module, self.round(module, self.groups(seed=seed))

    def gradient_of(self, groups: list[Group]) -> Tensor:
        """Gradient of a fresh module on these groups; must be finite."""
        module = self.module()
        grad = gradients(module, make_batch(self.round(module, groups)))
        assert torch.isfinite(grad).all(), "the gradient is not finite"
        return grad

    # ------------------------------------------------------------------ the gradient is right

    def test_gradient_is_finite_and_not_zero(self) -> None:
        assert self.gradient_of(self.groups()).abs().max() > 0

    def test_gradient_against_finite_differences(self) -> None:
        """Float64, along random directions; stop-gradients are held at their values."""
        module, round = self.prepared()
        batch = make_batch(round)
        grad = gradients(module, batch)
        batch = coupled(module, batch)
        parameters = trainable(module)
        with HeldConstants() as held:
            module.batch_loss(forward_stats(module, batch.tokens), batch)

        def loss(shift: float, direction: list[Tensor]) -> float:
            with moved(parameters, direction, shift):
                with HeldConstants(held.recorded):
                    value = module.batch_loss(forward_stats(module, batch.tokens), batch)
                return value.item()

        for seed in range(3):
            draw = generator(seed, "direction")
            direction = [
                torch.randn(p.shape, generator=draw, dtype=torch.float64).to(p) for p in parameters
            ]
            slope = (loss(1e-5, direction) - loss(-1e-5, direction)) / 2e-5
            expected = float(torch.cat([d.reshape(-1) for d in direction]) @ grad)
            assert math.isclose(slope, expected, rel_tol=1e-5, abs_tol=1e-7), (
                f"slope {slope:.9g}, gradient says {expected:.9g}"
            )

    # ------------------------------------------------------------------ negative gradient

    def test_negative_gradient_flag(self) -> None:
        """The flag says whether some response token is pushed down."""
        found = False
        for seed in self.seeds:
            module, round = self.prepared(seed=seed)
            found = found or bool((cotangents(module, make_batch(round)) > 0).any())
        assert found == module.negative_gradient, (
            f"negative_gradient={module.negative_gradient}, but the probe finds "
            f"{'some' if found else 'no'} token with dLoss/dtoken_logp > 0"
        )

    def test_negative_weight(self) -> None:
        """Weight a takes exactly (1 - a) of the positive entries of dLoss/dtoken_logps away."""
        module, round = self.prepared()
        batch = make_batch(round)
        full = gradients(module, batch)
        positive = cotangents(module, batch).clamp(min=0)
        module.zero_grad(set_to_none=True)
        (module.policy(batch.tokens).logps * positive).sum().backward()
        down = flat_gradient(module)
        for weight in (0.0, 0.3):
            module.negative_weight = weight
            assert_close(
                gradients(module, batch),
                full - (1 - weight) * down,
                self.tolerance,
                f"negative_weight={weight}",
            )

    # ------------------------------------------------------------------ invariances

    def test_micro_batches(self) -> None:
        """Any token budget gives the gradient of the whole batch."""
        module, round = self.prepared()
        batch = make_batch(round)
        whole = gradients(module, batch)
        for budget in (batch.tokens.num_tokens // 2, batch.tokens.num_tokens // 4, 1):
            assert_close(
                gradients(module, replace(batch, micro_batch_tokens=budget)),
                whole,
                self.tolerance,
                f"micro_batch_tokens={budget}",
            )
        parts = micro_batches(batch.tokens, 1, whole_prompts=module.whole_prompts)
        assert len(list(parts)) > 1, "the round is too small to be cut"

    def test_processes(self) -> None:
        """Two processes, imitated, give the gradient of one."""
        module, round = self.prepared()
        alone = gradients(module, make_batch(round))
        batches = [make_batch(round, rank=r, world=2) for r in range(2)]
        sent = []
        for batch in batches:
            trainer = StandInTrainer(world_size=2)
            _attach(module, trainer)
            gradients(module, batch)
            sent.append(trainer.sent)
        sums = [a + b for a, b in zip(*sent, strict=True)]
        total = torch.zeros_like(alone)
        for batch in batches:
            _attach(module, StandInTrainer(world_size=2, sums=sums))
            total += gradients(module, batch) / 2
        assert_close(total, alone, self.tolerance, "two processes")

    def test_order(self) -> None:
        """Neither the order of groups nor that of their responses matters."""
        if not self.order_free:
            return
        expected = self.gradient_of(self.groups())
        assert_close(
            self.gradient_of(self.groups()[::-1]), expected, self.tolerance, "groups reversed"
        )
        swapped = self.groups()
        for group in swapped:
            group.responses.reverse()
        assert_close(self.gradient_of(swapped), expected, self.tolerance, "responses reversed")

    # ------------------------------------------------------------------ odd data

    def test_preference_data(self) -> None:
        """Pairs with ranks and no rewards, as offline data has them."""
        if self.module().needs.rewards:
            return
        assert self.gradient_of(self.groups(ranked=True)).abs().max() > 0

    def test_empty_response(self) -> None:
        groups = self.groups()
        extremes(groups[0])[0].ids = []
        extremes(groups[1])[1].ids = []
        self.gradient_of(groups)
        for response in groups[2].responses:
            response.ids = []
        self.gradient_of(groups)

    def test_equal_responses(self) -> None:
        groups = self.groups()
        for response in groups[0].responses:
            response.ids = list(groups[0].responses[0].ids)
        self.gradient_of(groups)

    def test_equal_rewards(self) -> None:
        """One group, and then all groups, whose rewards do not differ."""
        groups = self.groups()
        for response in groups[0].responses:
            response.reward = 0.5
        self.gradient_of(groups)
        for group in groups:
            for response in group.responses:
                response.reward = 0.5
        self.gradient_of(groups)

    def test_group_of_weight_zero(self) -> None:
        """It keeps its place and changes nothing."""
        groups = self.groups()
        groups[0].weight = 0.0
        before = self.gradient_of(groups)
        for response in groups[0].responses:
            response.ids = [*response.ids[::-1], 1, 2]
        assert_close(self.gradient_of(groups), before, self.tolerance, "a group of weight 0")

    def test_a_batch_in_which_nothing_counts(self) -> None:
        """It has no gradient, and leaves no number that is none."""
        groups = self.groups()
        for group in groups:
            group.weight = 0.0
        found = self.gradient_of(groups)
        assert_close(found, torch.zeros_like(found), self.tolerance, "nothing counts")

    def test_group_of_weight_two(self) -> None:
        """It counts as the same group given twice."""
        if not self.order_free:  # where the second one stands would matter
            return
        groups = self.groups()
        groups[-1].weight = 2.0
        twice = [*self.groups(), self.groups()[-1]]
        assert_close(
            self.gradient_of(groups), self.gradient_of(twice), self.tolerance, "a group of weight 2"
        )

    def test_half_precision(self) -> None:
        module, round = self.prepared(dtype=torch.bfloat16)
        half = gradients(module, make_batch(round)).double()
        assert torch.isfinite(half).all()
        full = self.gradient_of(self.groups())
        cosine = torch.nn.functional.cosine_similarity(half, full, dim=0)
        assert cosine > 0.9, f"bfloat16 gradient points elsewhere (cosine {cosine:.3f})"

    # ------------------------------------------------------------------ state

    def test_state_survives_a_checkpoint(self) -> None:
        """Tensors and primitives only, and the next round goes on as if nothing had happened."""
        module, _ = self.prepared()
        saved: dict[str, Any] = {}
        module.on_save_checkpoint(saved)
        file = io.BytesIO()
        torch.save({**saved, "weights": module.state_dict()}, file)
        file.seek(0)
        loaded = torch.load(file, weights_only=True)
        twin = self.module()
        twin.load_state_dict(loaded["weights"])
        twin.on_load_checkpoint(loaded)
        rounds = [make_round(m, self.groups(seed=5), index=1) for m in (module, twin)]
        results = [gradients(m, make_batch(r)) for m, r in zip((module, twin), rounds, strict=True)]
        assert_close(results[1], results[0], self.tolerance, "after a checkpoint")

    def test_metrics_are_finite(self) -> None:
        module, round = self.prepared()
        gradients(module, make_batch(round))
        values = module.window.flush()
        assert "loss" in values
        bad = {name: x for name, x in values.items() if not math.isfinite(x)}
        assert not bad, f"metrics that are not finite: {bad}"
