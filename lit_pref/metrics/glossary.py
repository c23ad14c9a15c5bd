"""Every logged name: what it is, its unit, its healthy range, and what to do when it is not.

Two prefixes say when: bare names are means over a logging window of training steps, weighted by
count; ``round/``, ``data/`` and ``completions/`` describe a round when it is made; ``val/`` is
measured on the validation prompts, ``probe/`` on fixed pairs, at every evaluation.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["GLOSSARY", "Entry", "entry", "glossary_page"]


@dataclass(frozen=True)
class Entry:
    """One metric.

    Attributes:
        meaning: what it is, with its formula.
        unit: of its values.
        healthy: the range to expect.
        remedy: what to do outside of it.
    """

    meaning: str
    unit: str
    healthy: str = ""
    remedy: str = ""


_LR = "lower optimizer.lr"


def _interval(name: str, of: str, unit: str, *, exact: str = "") -> dict[str, Entry]:
    """Both ends of a 95 % interval."""
    wide = "narrow beside the changes that matter", "more validation prompts or responses"
    return {
        f"{name}_low": Entry(f"lower end of the 95 % interval of {of}{exact}", unit, *wide),
        f"{name}_high": Entry(f"upper end of that interval{exact}", unit, *wide),
    }


def _rate(name: str, judged: str) -> dict[str, Entry]:
    """A win rate against the reference's samples, with intervals, as it is and at equal length."""
    rising = "0.5 before training, then rising"
    return {
        name: Entry(
            f"share of comparisons with the reference's samples that the policy's win by {judged}, "
            "ties half", "share", rising,
        ),
        **_interval(name, name, "share"),
        f"{name}_lc": Entry(
            f"{name} at equal length: sigmoid(theta) of the logistic regression of wins on "
            "theta + phi tanh(length difference / its standard deviation)", "share", rising,
            f"far below {name}: the wins come from length",
        ),
        **_interval(f"{name}_lc", f"{name}_lc", "share"),
    }  # fmt: skip


GLOSSARY: dict[str, Entry] = {
    # the first columns
    "step": Entry("optimizer steps taken", "steps"),
    "samples": Entry("responses sampled for training so far", "responses"),
    "reward_queries": Entry("responses scored for training so far", "responses"),
    "round": Entry("number of the round trained on, from 0", "rounds"),
    "pass": Entry("number of the pass over the round, from 0", "passes"),
    # every step
    "loss": Entry("the objective, averaged as its page says", "nats mostly"),
    "grad_norm": Entry(
        "norm of the gradient before clipping", "1", "steady; spikes are rare",
        f"{_LR} or set optimizer.clip_norm",
    ),
    "learning_rate": Entry("learning rate of the step", "1"),
    "skipped_steps": Entry(
        "steps skipped so far because their gradient was not finite", "steps", "0",
        f"{_LR}, use precision=32-true",
    ),
    "age/mean": Entry(
        "policy version now minus the version that sampled, mean over the batch's groups", "steps",
        "0 when strictly on-policy; below reuse x batches per pass", "lower data.reuse",
    ),
    "age/share_0": Entry(
        "share of the batch's groups sampled by the policy as it is; stored groups age from the "
        "start of the run", "share", "1 when strictly on-policy",
    ),
    "age/share_1_9": Entry("share of the batch's groups of age 1 to 9", "share"),
    "age/share_10_99": Entry("share of the batch's groups of age 10 to 99", "share"),
    "age/share_100_up": Entry(
        "share of the batch's groups of age 100 and more", "share", "0 where ratios are used",
        "more on-policy data, or fewer passes",
    ),
    "age/too_old": Entry(
        "groups of the batch that are older than data.max_age and count for nothing", "groups",
        "0", "raise data.max_age, lower data.reuse",
    ),
    "onpolicy_share": Entry(
        "share of the batch's groups that were sampled in this run (data.onpolicy_fraction)",
        "share",
    ),
    "importance/weight": Entry(
        "mean of w = policy(response) / behaviour(response), over the responses trained on whose "
        "behaviour is known", "1", "near 1", "far from 1: the data is of another policy",
    ),
    "importance/ess": Entry(
        "effective sample size of these weights over the logging window, (sum w)^2 / (n sum w^2)",
        "share of the responses", "above 0.5",
        "fresher data: lower data.reuse or data.max_age, raise data.onpolicy_fraction",
    ),
    "importance/chi_square": Entry(
        "chi-square divergence of the policy from the behaviour: mean of (w - 1)^2", "1",
        "below 1", "see importance/ess",
    ),
    "importance/kl": Entry(
        "KL(behaviour || policy): mean of log behaviour(response) - log policy(response)",
        "nats per response", "0 when strictly on-policy, growing with age", "see importance/ess",
    ),
    "age/max": Entry("the same, largest of the batch", "steps"),
    "uses": Entry("how often the batch's groups were trained on before, in this round and in "
                  "earlier ones; mean", "passes"),
    "sampling/logp_difference": Entry(
        "mean |log-prob while sampling - log-prob in training|, while the policy is unchanged",
        "nats per token", "below 1e-4 in float32; up to 0.5 in bfloat16",
        "sample and train in the same precision",
    ),
    # pairs
    "rewards/chosen": Entry("implicit reward of the chosen: beta (logp - ref_logp)", "nats",
                            "rising or near 0", "falling with rejected: likelihood displacement; "
                            "use data=onpolicy, an NLL term, or a larger beta"),
    "rewards/rejected": Entry("implicit reward of the rejected", "nats", "below rewards/chosen"),
    "rewards/margins": Entry("rewards/chosen - rewards/rejected", "nats",
                             "positive, growing slowly",
                             "large at once: overfitting; fewer passes or a larger beta"),
    "rewards/accuracies": Entry("share of pairs with a positive margin", "share",
                                "0.6 to 0.95 on fresh pairs", "1.0 early: the pairs are too easy"),
    "rewards/shift": Entry("reward shift of BCO (mean implicit reward)", "nats"),
    "logps/chosen": Entry("log-prob of the chosen under the policy, summed over tokens", "nats",
                          "not falling for long", "see rewards/chosen"),
    "logps/rejected": Entry("log-prob of the rejected under the policy", "nats"),
    "logps/mean": Entry("log-prob of the responses trained on", "nats"),
    "nll": Entry("negative log-likelihood of what is imitated: per token; per response where "
                 "objective.nll_reduction=sum", "nats", "falling", "rising: a larger nll_coef"),
    "log_odds_chosen": Entry("log odds of the chosen minus that of the rejected, per token", "nats",
                             "rising"),
    "log_odds_ratio": Entry("log sigmoid of that difference (ORPO's second term, unweighted)",
                            "nats", "rising to 0"),
    "pairs/active": Entry("share of pairs inside the hinge's margin, the only ones with a gradient",
                          "share", "above 0", "0: done with these pairs; take new samples"),
    "wpo/weight": Entry("weight of a pair: how likely the policy is to sample it", "1",
                        "around 1 on the policy's own samples",
                        "near 0: the data is far from the policy"),
    "negative/passed_gate": Entry("share of worse responses still likely enough to be pushed down",
                                  "share", "falling"),
    # advantages and weights
    "advantages/mean": Entry("mean advantage of the batch's responses", "reward",
                             "near 0 with a baseline", "check the baseline"),
    "advantages/magnitude": Entry("mean |advantage|", "reward, 1 if scaled", "steady, above 0",
                                  "0: no signal; more responses, a finer reward"),
    "kl": Entry("log-ratio to the reference of the responses trained on, mean of sums over tokens",
                "nats per response", "growing slower than the reward",
                "raise objective.kl_coef, lower the learning rate"),
    "entropy": Entry("entropy of the next-token distribution where responses are", "nats per token",
                     "falling slowly", "collapse: raise objective.entropy_coef"),
    "ratio/mean": Entry("probability ratio to the policy at the round's start (of the sampler with "
                        "objective.importance), mean over tokens", "1", "0.9 to 1.1",
                        "fewer passes, lower learning rate"),
    "clip_ratio/low": Entry("share of tokens whose ratio is below the clip range", "share",
                            "0 on the first step of a round, else below 0.2 (gspo: often above)",
                            "fewer passes, lower learning rate"),
    "clip_ratio/high": Entry("share of tokens whose ratio is above the clip range", "share",
                             "0 on the first step of a round, else below 0.2 (gspo: often above)",
                             "fewer passes, lower learning rate"),
    "clip_ratio/region": Entry("the two shares together", "share", "see clip_ratio/low"),
    # the critic
    "value/loss": Entry("mean error of the critic: half its square, clipped", "reward squared",
                        "falling", "raise objective.value_coef or value_lr"),
    "value/mean": Entry("mean value of the tokens trained on", "reward", "near round/reward"),
    "value/clip_ratio": Entry("share of tokens whose value moved beyond value_clip", "share",
                              "below 0.2", "fewer passes, a larger value_clip"),
    "value/explained_variance": Entry("1 - Var(return - value) / Var(return), over a round", "1",
                                      "rising from 0 towards 1",
                                      "below 0: worse than a constant; raise value_lr"),
    "weights/mean": Entry("mean weight of the batch's responses", "1"),
    # a round
    "round/reward": Entry("mean reward of the round's responses", "reward", "rising"),
    "round/reward_std": Entry("standard deviation of these rewards", "reward", "above 0",
                              "0: nothing to learn from; more responses, a finer reward"),
    "round/no_signal": Entry("share of groups whose rewards are all equal", "share", "below 0.5",
                             "more responses per prompt, a finer reward"),
    "round/true_reward": Entry("mean true reward of the round's responses, where they were scored "
                               "by another one", "reward", "rising with round/reward",
                               "falling while round/reward rises: the reward is gamed; stop, "
                               "raise beta or kl_coef, train the reward model anew"),
    "round/reward_accuracy": Entry("share of pairs of the round's responses to a prompt that the "
                                   "reward orders as the true reward does", "share",
                                   "near round/reward_held_out_accuracy",
                                   "far below it: the policy has left what the reward knows"),
    "round/reward_held_out_accuracy": Entry("val/accuracy at the end of the learned reward's "
                                            "training", "share", "0.6 to 0.95"),
    "reward/requests": Entry("tries of calls of a remote reward or judge since the round before",
                             "requests"),
    "reward/retries": Entry("tries among these that followed a failure", "requests", "few",
                            "lower reward.concurrency, raise reward.timeout"),
    "reward/cache_hits": Entry("answers of a remote reward taken from the disk", "answers"),
    "reward/cache_damaged": Entry("kept answers found damaged and asked for again", "answers", "0",
                                  "check the disk of reward.cache"),
    "reward/undecided": Entry("comparisons in which the judge's verdict followed the position",
                              "comparisons", "few", "a better judge or reward.instructions"),
    "reward/unclear": Entry("answers without a verdict or mark, counted as reward.unclear",
                            "answers", "0", "raise reward.max_tokens, a better judge"),
    "reward/cut": Entry("texts cut to the classifier's context", "texts", "0",
                        "lower sampler.max_new_tokens"),
    "data/groups_without_pair": Entry("groups of the round that make no pair (ties, min_gap)",
                                      "groups", "few", "more responses, a finer reward"),
    "data/pairs": Entry("pairs that the round's groups make (objective.pairs)", "pairs"),
    "data/pairs_tied": Entry("pairs of responses with equal rewards or ranks; no rule makes a pair "
                             "of them", "pairs", "few", "a finer reward"),
    "data/pairs_below_gap": Entry("pairs of responses that differ by less than objective.min_gap",
                                  "pairs", "few", "lower objective.min_gap"),
    "data/left_out": Entry("stored groups that no whole batch has room for (prompts_per_round=all)",
                           "groups", "0", "a data.batch_size that divides the set"),
    "data/dropped_prompts": Entry("rows of task.prompts that cannot be used; the log has the "
                                  "reasons", "rows", "few", "lit-pref inspect FILE shows them"),
    "data/dropped_pairs": Entry("rows of task.pairs that cannot be used (of the length tasks: "
                                "also ties)", "rows", "few", "lit-pref inspect FILE shows them"),
    "data/dropped_validation": Entry("rows of task.validation that cannot be used", "rows", "few",
                                     "lit-pref inspect FILE shows them"),
    "data/pairs_held_out": Entry("rows of task.pairs left out because their prompt is held out for "
                                 "validation", "rows", "few", "name a file in task.validation"),
    "data/cut_prompts": Entry("prompts of files cut at the length limit", "prompts", "few",
                              "raise task.max_prompt_tokens"),
    "data/cut_responses": Entry("responses of files cut at the length limit, with no end",
                                "responses", "few", "raise task.max_response_tokens"),
    "data/unended_responses": Entry("tokenised responses of files that have no end of sequence",
                                    "responses", "0", "end them with the model's end of sequence"),
    "data/repeated_prompts": Entry("tokenised rows whose responses repeated the prompt, which was "
                                   "removed", "rows"),
    "data/groups_without_signal": Entry("sampled groups whose rewards are all equal, before "
                                        "refilling (data.no_signal=refill)", "groups", "few",
                                        "more responses per prompt, a finer reward"),
    "data/refill_sampled": Entry("further groups sampled to refill the round", "groups",
                                 "below data.refill_limit"),
    "data/refilled": Entry("places of the round that a further group took", "groups"),
    "data/unfilled": Entry("places that stayed without signal and have weight 0", "groups", "0",
                           "raise data.refill_limit"),
    "data/groups_without_label": Entry("groups whose responses get no label", "groups", "0"),
    "data/groups_without_target": Entry("groups without a response to imitate", "groups", "0"),
    "data/desirable_share": Entry("share of responses labelled desirable", "share", "0.3 to 0.7",
                                  "balance with the objective's weights"),
    "completions/mean_length": Entry("mean length of the round's responses", "tokens", "steady",
                                     "growing: a length bias; normalise by length"),
    "completions/min_length": Entry("shortest response of the round", "tokens"),
    "completions/max_length": Entry("longest response of the round", "tokens"),
    "completions/clipped_ratio": Entry("share of responses cut at the limit", "share", "below 0.3",
                                       "raise sampler.max_new_tokens"),
    "round/kl_coef": Entry("weight of the KL penalty in the round, where kl_target adapts it", "1"),
    # validation
    "val/reward": Entry("true reward on the validation prompts", "reward", "rising"),
    "val/kl": Entry("KL(policy || initial policy), mean log-ratio of sampled responses",
                    "nats per response", "growing slower than the reward",
                    "raise the KL weight or beta, stop earlier"),
    "val/entropy": Entry("-mean log-prob of sampled tokens", "nats per token", "falling slowly",
                         "collapse: raise beta, lower the learning rate"),
    "val/mean_length": Entry("mean length of validation responses", "tokens", "steady"),
    "val/accuracy": Entry("share of held-out pairs whose chosen response scores higher", "share",
                          "0.6 to 0.95", "0.5: more data or steps; rewards/accuracies far "
                          "above it: overfitting"),
    "val/margin": Entry("mean score difference of held-out pairs", "score", "positive"),
    "val/loss": Entry("loss on held-out pairs", "nats", "below 0.69",
                      "rising: overfitting, stop earlier"),
    "val/finished": Entry("share of validation responses that ended by themselves", "share",
                          "above 0.7", "raise sampler.max_new_tokens"),
    **_interval("val/reward", "val/reward", "reward"),
    **_interval("val/kl", "val/kl", "nats per response",
                exact="; no width where all responses were enumerated"),
    # instruments: the validation samples
    "val/forward_kl": Entry("KL(reference || policy): mean log-ratio of the reference's samples; "
                            "exact where responses can be enumerated", "nats per response",
                            "of the size of val/kl", "far above val/kl: the policy has dropped "
                            "what the reference says; raise beta or the KL weight"),
    **_interval("val/forward_kl", "val/forward_kl", "nats per response"),
    "val/next_token_entropy": Entry("entropy of the whole next-token distribution, mean over the "
                                    "positions of the samples: -sum_a p(a) log p(a)",
                                    "nats per token", "falling slowly", "see val/entropy"),
    "val/distinct_responses": Entry("share of different responses among the validation samples",
                                    "share", "near 1", "falling: the policy collapses; raise beta, "
                                    "an entropy bonus, stop earlier"),
    "val/distinct_1": Entry("different tokens over all tokens of the validation samples", "share",
                            "steady; compare equal numbers of responses only",
                            "falling: see val/distinct_responses"),
    "val/distinct_2": Entry("different pairs of neighbouring tokens over all of them", "share",
                            "steady", "falling: repetition; see val/distinct_responses"),
    "val/distinct_3": Entry("different runs of three tokens over all of them", "share", "steady",
                            "falling: repetition; see val/distinct_responses"),
    "val/length_std": Entry("standard deviation of validation response lengths", "tokens",
                            "steady", "0 with a limit: all are cut; raise sampler.max_new_tokens"),
    "val/length_p10": Entry("10 % quantile of these lengths", "tokens", "steady"),
    "val/length_p90": Entry("90 % quantile of these lengths", "tokens",
                            "below sampler.max_new_tokens", "raise sampler.max_new_tokens"),
    "val/length_reward_correlation": Entry("Pearson's correlation of length and reward over the "
                                           "validation samples", "1", "-0.5 to 0.5",
                                           "near 1 or -1: the reward is about length; penalise "
                                           "length, or look at val/win_rate_lc"),
    **_rate("val/win_rate", "reward"),
    **_rate("val/judge_win_rate", "the comparer's verdict"),
    # instruments: fixed pairs
    "probe/chosen_change": Entry("log-prob of the chosen responses of the probe now minus under "
                                 "the reference before training: mean of log pi(y+) - "
                                 "log pi_ref(y+)",
                                 "nats per response", "rising, or falling far less than "
                                 "probe/rejected_change", "likelihood displacement; use "
                                 "data=onpolicy, an NLL term, or a larger beta"),
    "probe/rejected_change": Entry("the same of the rejected responses", "nats per response",
                                   "below probe/chosen_change"),
    "probe/chosen_fell": Entry("share of pairs whose chosen response is less likely than before",
                               "share", "below 0.5", "see probe/chosen_change"),
    "probe/coverage": Entry("share of chosen responses with a log-prob per token of at least the "
                            "floor (callbacks.pair_probe.floor)", "share", "not falling",
                            "the policy moves away from the data; use data=onpolicy or a "
                            "larger beta"),
    "probe/samples_change": Entry("log-prob of the policy's own samples to the probe's prompts "
                                  "minus under the reference: where the mass went",
                                  "nats per response", "growing slower than the reward",
                                  "see val/kl"),
    "probe/greedy_change": Entry("the same of the policy's greedy continuation",
                                 "nats per response", "near probe/samples_change",
                                 "far above while probe/chosen_change falls: mass is squeezed into "
                                 "the likeliest response; fewer passes, data=onpolicy"),
    "probe/greedy_logp": Entry("log-prob of the policy's greedy continuation", "nats per response",
                               "rising slowly", "near 0: collapse; see val/entropy"),
    # instruments: parts of the gradient
    "gradient/positive_norm": Entry("norm of the part of the gradient that raises log-probs: sum "
                                    "over tokens with dLoss/dlogp < 0", "1", "steady"),
    "gradient/negative_norm": Entry("norm of the part that lowers log-probs (dLoss/dlogp > 0), "
                                    "objective.negative_weight applied", "1",
                                    "0 for objectives without a negative gradient; else of the "
                                    "size of gradient/positive_norm",
                                    "far larger: lower objective.negative_weight"),
    "gradient/cosine": Entry("cosine of the two parts: whether raising and lowering move the "
                             "weights the same way", "1", "above 0", "near -1: they cancel, "
                             "preferred and dispreferred responses hardly differ; use pairs with a "
                             "larger gap (objective.min_gap)"),
}  # fmt: skip


def entry(name: str) -> Entry | None:
    """The entry of a logged name, None if there is none."""
    return GLOSSARY.get(name)


def glossary_page() -> str:
    """``docs/guide/metrics.md``, made from the entries."""
    lines = [
        "# Metrics",
        "",
        "Bare names are means over a logging window of training steps, weighted by count.",
        "`round/`, `data/` and `completions/` describe a round when it is made, `val/` the",
        "validation prompts and `probe/` fixed pairs at an evaluation; see",
        "[Instruments](instruments.md).",
        "This page is made from `lit_pref/metrics/glossary.py`; a test keeps them equal.",
        "",
        "| name | meaning | unit | healthy | otherwise |",
        "|---|---|---|---|---|",
    ]
    for name, e in GLOSSARY.items():
        meaning = e.meaning.replace("|", "\\|")
        lines.append(f"| `{name}` | {meaning} | {e.unit} | {e.healthy} | {e.remedy} |")
    return "\n".join(lines) + "\n"
