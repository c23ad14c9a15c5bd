"""One of our objectives on a batch, and TRL's loss methods on the log-probs of that batch.

TRL's methods run unbound, on a stand-in for the trainer and a model that returns our log-probs.
"""

from collections import defaultdict
from types import SimpleNamespace

import torch
from torch.nn.utils.rnn import pad_sequence
from trl import DPOTrainer, KTOTrainer, RewardTrainer

from lit_pref.functional.supervised import log1mexp
from lit_pref.testing.batches import coupled, forward_stats, make_batch
from lit_pref.testing.objective_tester import ObjectiveTester
from lit_pref.testing.tiny import tiny_groups
from lit_pref.types import FlatTokens

TOLERANCE = 1e-5
PROMPT = 0


def groups_of(length=None, *, responses=4):
    """Eight groups of ragged responses, or of responses of one length."""
    groups = tiny_groups(groups=8, responses=responses, seed=3)
    for response in (r for g in groups for r in g.responses if length):
        response.ids = (response.ids * length)[:length]
    return groups


class Ours:
    """One of our objectives on one float32 batch, after the policy has moved on."""

    def __init__(self, objective, options, *, groups=None):
        tester = ObjectiveTester()
        tester.objective, tester.options = objective, options
        self.module = tester.module(dtype=torch.float32)
        self.round = tester.round(self.module, groups or groups_of())
        self.batch = coupled(self.module, make_batch(self.round))
        self.stats = forward_stats(self.module, self.batch.tokens)
        for name in ("logps", "entropy", "final_hidden"):
            value = getattr(self.stats, name)
            if value is not None:
                setattr(self.stats, name, value.detach().requires_grad_())
        self.logps, self.lengths = self.stats.logps, self.batch.tokens.lengths
        self.loss = self.module.batch_loss(self.stats, self.batch)
        ref = self.batch.notes.token.get("ref_logps")
        self.ref = None if ref is None else ref.float()
        pairs = self.batch.view.pairs
        self.rows = None if pairs is None else pairs.T.reshape(-1).tolist()

    def padded(self, values, rows=None):
        """[N, L] flat token values of some responses (all), zeros on the right."""
        parts = values.split(self.lengths)
        rows = range(len(parts)) if rows is None else rows
        return pad_sequence([parts[i] for i in rows], batch_first=True)

    def agrees(self, theirs, leaf=None):
        """Loss and gradient are TRL's."""
        leaf = self.logps if leaf is None else leaf
        return all(close(*pair) for pair in ((self.loss, theirs), self.slopes(theirs, leaf)))

    def slopes(self, theirs, leaf=None):
        leaf = self.logps if leaf is None else leaf
        return tuple(
            torch.autograd.grad(loss, leaf, retain_graph=True)[0] for loss in (self.loss, theirs)
        )


def close(mine, theirs):
    assert mine.dtype == theirs.dtype == torch.float32
    assert torch.isfinite(theirs).all() and theirs.abs().max() > 0
    gap, size = (float(x.detach().abs().max()) for x in (mine - theirs, theirs))
    return gap <= TOLERANCE * size + 1e-7


class Model:
    """What TRL's fused forward returns, for given log-probs.

    ``other`` are the log-probs of sequences that start with another token than ``PROMPT``.
    """

    training = True
    is_gradient_checkpointing = False

    def __init__(self, logps=None, *, log_squares=None, other=None):
        self.logps, self.log_squares, self.other = logps, log_squares, other

    def __call__(self, *, input_ids, **inputs):
        logps = self.logps if int(input_ids[0, 0]) == PROMPT else self.other
        zeros = torch.zeros_like(logps)
        return SimpleNamespace(
            log_probs=logps,
            log_sum_sq_probs=self.log_squares,
            entropy=zeros,
            mean_logits=zeros,
            is_top1=zeros.bool(),
        )


def trainer(**attributes):
    """The attributes of a trainer that its loss reads."""
    same = lambda value, *args, **kwargs: value  # noqa: E731
    accelerator = SimpleNamespace(
        device=torch.device("cpu"),
        num_processes=1,
        gather=same,
        gather_for_metrics=same,
        reduce=same,
    )
    common = {
        "accelerator": accelerator,
        "model": Model(),
        "aux_loss_enabled": False,
        "precompute_ref_logps": False,
        "_metrics": defaultdict(lambda: defaultdict(list)),
        "_total_train_tokens": 0,
        "_tp_size": 1,
    }
    return SimpleNamespace(**{**common, **attributes})


def trl_dpo(run, loss_type, *, beta=0.3, **attributes):
    """TRL's DPO loss of the pairs of a batch, after a prompt of one token."""
    mask = run.padded(torch.ones_like(run.logps), run.rows)
    mask = torch.nn.functional.pad(mask, (1, 0)).long()
    squares = run.stats.sum_squares
    self = trainer(
        **{
            "loss_types": [loss_type] if isinstance(loss_type, str) else loss_type,
            "loss_weights": [1.0, 0.7],
            "beta": beta,
            "label_smoothing": 0.0,
            "ld_alpha": None,
            "f_divergence_type": "reverse_kl",
            "f_alpha_divergence_coef": 0.5,
            "use_weighting": False,
            "ref_model": Model(run.padded(run.ref, run.rows)),
            "args": SimpleNamespace(gradient_checkpointing_kwargs=None, discopop_tau=0.2),
            **attributes,
        }
    )
    self.loss_weights = self.loss_weights[: len(self.loss_types)]
    inputs = {
        "input_ids": torch.zeros_like(mask),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
    }
    model = Model(
        run.padded(run.logps, run.rows),
        log_squares=None if squares is None else run.padded(squares.detach().log(), run.rows),
    )
    return DPOTrainer._compute_loss(self, model, inputs, False)


def trl_kto(run):
    """TRL's KTO loss; its foreign completions are those of the example before (rotated by one)."""
    tokens = run.batch.tokens
    prompts = tokens.prompt_ids.split(tokens.prompt_lengths)
    ids = tokens.response_ids.split(tokens.lengths)
    count = len(ids)
    foreign = FlatTokens(
        prompt_ids=torch.cat([prompts[p] for p in tokens.prompt_of]),
        prompt_lengths=[len(prompts[p]) for p in tokens.prompt_of],
        response_ids=torch.cat([ids[i - 1] for i in range(count)]),
        lengths=[len(ids[i - 1]) for i in range(count)],
        prompt_of=list(range(count)),
    )

    def kl_logps(scorer):
        logps = scorer.token_logps(foreign).logps.detach().float()
        return pad_sequence(logps.split(foreign.lengths), batch_first=True)

    mask = torch.nn.functional.pad(run.padded(torch.ones_like(run.logps)), (1, 0)).long()
    main = torch.full_like(mask, PROMPT)
    desirable = run.batch.view.response["desirable"] > 0
    self = trainer(
        beta=0.3,
        loss_type="kto",
        desirable_weight=1.0,
        undesirable_weight=1.3,
        calculate_KL=True,
        ref_model=Model(run.padded(run.ref), other=kl_logps(run.module.reference)),
        args=SimpleNamespace(gradient_checkpointing_kwargs=None),
    )
    self._compute_kl_logps = lambda *args: KTOTrainer._compute_kl_logps(self, *args)
    wide = torch.nn.functional.pad(kl_logps(run.module.policy) != 0, (1, 0)).long()
    inputs = {
        "input_ids": main,
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "KL_input_ids": torch.full_like(wide, PROMPT + 1),
        "KL_attention_mask": torch.ones_like(wide),
        "KL_completion_mask": wide,
        "label": desirable,
    }
    model = Model(run.padded(run.logps), other=kl_logps(run.module.policy))
    return KTOTrainer._compute_loss(self, model, inputs, False)


def trl_unreferenced(cls, run, *, prompt=1, **attributes):
    """TRL's loss of a two-token vocabulary in which token 0 has our log-probs."""
    real = run.padded(torch.ones_like(run.logps), run.rows).bool()
    logps = torch.where(real, run.padded(run.logps, run.rows), -0.7)
    odds = torch.stack([logps, log1mexp(logps)], -1)
    head, tail = odds.new_zeros(len(odds), prompt - 1, 2), odds.new_zeros(len(odds), 1, 2)
    logits = torch.cat([head, odds, tail], 1)
    labels = torch.nn.functional.pad(torch.where(real, 0, -100), (prompt, 0), value=-100)
    attention = torch.nn.functional.pad(real, (prompt, 0), value=True).long()
    batch = {}
    for side, rows in zip(("chosen", "rejected"), (slice(0, 8), slice(8, 16)), strict=True):
        batch[f"{side}_input_ids"] = torch.zeros_like(attention[rows])
        batch[f"{side}_attention_mask"] = attention[rows]
        batch[f"{side}_labels"] = labels[rows]
    self = trainer(
        **{
            "is_encoder_decoder": False,
            "pad_token_id": 0,
            "padding_value": 0,
            "label_smoothing": 0.0,
            "loss_type": "sigmoid",
            "alpha": 0.0,
            "cpo_alpha": 0.0,
            "concatenated_inputs": cls.concatenated_inputs,
            "get_batch_logps": cls.get_batch_logps,
            **attributes,
        }
    )
    for name in ("cpo_loss", "odds_ratio_loss", "concatenated_forward"):
        if hasattr(cls, name):
            setattr(self, name, getattr(cls, name).__get__(self))

    def model(*args, **kwargs):
        return SimpleNamespace(logits=logits)

    return cls.get_batch_loss_metrics(self, model, batch)[0]


def trl_reward(run, margin, centering):
    """TRL's reward-model loss of the scores of a batch's pairs."""
    scores = run.module.scores(run.stats)[run.rows]
    self = trainer(args=SimpleNamespace(center_rewards_coefficient=centering))
    inputs = {"attention_mask": torch.ones(len(scores), 3), "margin": margin}
    return RewardTrainer.compute_loss(
        self, lambda **kwargs: SimpleNamespace(logits=scores[:, None]), inputs
    )


def trl_policy_gradient(cls, run, **attributes):
    """TRL's loss of a batch with our advantages, old and reference log-probs."""
    mask = run.padded(torch.ones_like(run.logps)).long()
    entropy = torch.zeros_like(run.logps) if run.stats.entropy is None else run.stats.entropy
    self = trainer(
        **{
            "loss_type": "grpo",
            "importance_sampling_level": "token",
            "epsilon_low": 0.2,
            "epsilon_high": 0.2,
            "beta": 0.0,
            "top_entropy_quantile": 1.0,
            "off_policy_mask_threshold": None,
            "use_vllm": False,
            "current_gradient_accumulation_steps": 1,
            "max_completion_length": 9,
            "_entropy_bonus_enabled": False,
            "use_adaptive_entropy": False,
            "args": SimpleNamespace(
                delta=None, use_bias_correction_kl=False, steps_per_generation=1
            ),
            **attributes,
        }
    )
    self.accelerator.sync_gradients = False
    self._get_per_token_logps_and_entropies = lambda *args, **kwargs: (
        run.padded(run.logps),
        run.padded(entropy),
        None,
    )
    old = run.batch.notes.token.get("old_logps", run.logps.detach()).float()
    inputs = {
        "prompt_ids": torch.zeros(len(mask), 1),
        "prompt_mask": torch.ones(len(mask), 1),
        "completion_ids": mask,
        "completion_mask": mask,
        "advantages": run.batch.view.response["advantage"],
        "old_per_token_logps": run.padded(old),
        "old_logps": run.padded(old).sum(1),
        "ref_per_token_logps": None if run.ref is None else run.padded(run.ref),
        "num_items_in_batch": mask.sum(),
    }
    return cls._compute_loss(self, None, inputs)
