"""A task small enough to list every response, and a policy and a reference for it."""

from types import SimpleNamespace

import torch

from lit_pref.policies import FrozenReference
from lit_pref.tasks.base import Task
from lit_pref.testing import TinyPolicy
from lit_pref.types import Prompt

VOCABULARY = 5


class FewResponses(Task):
    """Responses of two tokens out of five: all 25 can be listed. The reward counts token 0."""

    name = "few_responses"
    max_new_tokens = 2
    offline_prompts = 6

    def prompts(self):
        return [Prompt(id=i, text=str(i), ids=[i]) for i in range(4)]

    def validation(self):
        return self.prompts()

    def decode(self, ids):
        return " ".join(map(str, ids))

    def true_reward(self):
        return SimpleNamespace(
            name="zeros", version="1",
            score=lambda groups: [r.ids.count(0) + 0.1 * r.ids[0] for g in groups for r in g.responses],
        )  # fmt: skip


def policy(seed=0):
    return TinyPolicy(vocab_size=VOCABULARY, seed=seed, dtype=torch.float32)


class Reference(FrozenReference):
    """Other weights than the policy's, so that there is a distance from the start."""

    def prepare(self, policy):
        if self.copy is None:
            self.copy = policy.frozen_copy().perturb(0.3, seed=1)

    @property
    def fingerprint(self):
        return "other"
