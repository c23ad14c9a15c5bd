"""Records and flat batches that every package speaks, and the protocols between them.

Shape letters used in this project: ``P`` prompts, ``K`` responses per prompt, ``B`` responses,
``N`` pairs, ``T`` response tokens, ``S`` prompt tokens, ``V`` vocabulary, ``H`` hidden.

A *group* is one prompt with its responses. A *round* is the groups made (or loaded) at one time.
A *view* is what an objective sees of a round: pairs, weights, advantages. Tokens live in flat 1-D
tensors with offsets (``FlatTokens``); no padded tensor appears here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import accumulate
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from lit_pref.errors import Refusal
from lit_pref.transfer import moved, sent

__all__ = [
    "Batch",
    "Comparison",
    "FlatTokens",
    "Forward",
    "Group",
    "Needs",
    "Policy",
    "PreferenceOracle",
    "Prompt",
    "Reference",
    "Refusal",
    "Response",
    "RewardSource",
    "Round",
    "RoundClient",
    "Sampler",
    "TokenStats",
    "TrainedPolicy",
    "View",
]


Messages = list[dict[str, str]]


# --------------------------------------------------------------------------- records


@dataclass(kw_only=True, slots=True)
class Prompt:
    """One prompt of a task.

    Attributes:
        id: stable name of the prompt within its task (also a coordinate of every random draw).
        text: the prompt as the user wrote it: a string or chat messages.
        ids: its token ids, chat template and BOS applied.
        file: the file it was read from, as the user named it.
        row: line (counted from 1) in that file.
        columns: further fields of the row, handed to rewards (for example a verifier's answer).
    """

    id: int
    text: str | Messages
    ids: list[int]
    file: str | None = None
    row: int | None = None
    columns: dict[str, Any] = field(default_factory=dict)


@dataclass(kw_only=True, slots=True)
class Response:
    """One sampled or given answer.

    Attributes:
        ids: token ids, the end-of-sequence token included when the response ended by itself.
        text: decoded text without special tokens.
        reward: scalar score, if any.
        label: desirable or not, if the data says so.
        rank: order within the group, 0 is best.
        behaviour: what produced it (``"policy"``, ``"reference"``, or the data's own word).
        behaviour_logps: log-probability of each token under the distribution that sampled it.
        policy_logps: same under the unmodified policy (temperature 1, no truncation) in sampling
            precision. Equal to ``behaviour_logps`` for plain sampling. Not written to files.
        finished: the response ended by itself (end-of-sequence or stop token).
    """

    ids: list[int]
    text: str = ""
    reward: float | None = None
    label: bool | None = None
    rank: int | None = None
    behaviour: str | None = None
    behaviour_logps: list[float] | None = None
    policy_logps: list[float] | None = None
    finished: bool = True

    def to_json(self) -> dict[str, Any]:
        """The fields of one entry of ``responses`` in ``samples.jsonl``."""
        out = {f.name: getattr(self, f.name) for f in fields(self)}
        del out["policy_logps"]
        return out


@dataclass(kw_only=True, slots=True)
class Group:
    """One prompt with its responses, and where all of it comes from (provenance)."""

    prompt: Prompt
    responses: list[Response]
    source: str = "offline"
    """``"offline"``, ``"onpolicy"`` or ``"replay"``."""
    round: int = 0
    policy_version: int = 0
    """Optimizer steps taken by the policy that sampled the group."""
    sampling: dict[str, Any] = field(default_factory=dict)
    reward_source: str | None = None
    """Name and version of what scored the responses, as ``name@version``."""
    margin: float | None = None
    """Preference margin of an offline pair, if the data has one."""
    weight: float = 1.0
    """Weight of the group in the loss; 0 keeps the place of a group that must not count."""
    origin: dict[str, Any] | None = None
    """Of a replayed group: the ``file`` and ``row`` it was read from, and its ``source`` there."""
    comparisons: list[list[Any]] | None = None
    """What a ``PreferenceOracle`` said: ``[first, second, P(first is better)]`` for each pair of
    responses that was compared; None where nothing was compared."""

    @property
    def born(self) -> int:
        """The step of this run from which the age of the group counts.

        Samples of this run's policy are as old as the policy that made them. Stored ones count
        from the start: ``policy_version`` of a replayed group is a step of another run.
        """
        return self.policy_version if self.source == "onpolicy" else 0

    def to_json(self) -> dict[str, Any]:
        """One line of ``samples.jsonl``: primitives only, nothing of time or host."""
        compared = {} if self.comparisons is None else {"comparisons": self.comparisons}
        return {
            "prompt_id": self.prompt.id,
            "prompt": self.prompt.text,
            "prompt_ids": list(self.prompt.ids),
            "round": self.round,
            "policy_version": self.policy_version,
            "source": self.source,
            "file": self.prompt.file,
            "row": self.prompt.row,
            "sampling": dict(self.sampling),
            "reward_source": self.reward_source,
            "responses": [r.to_json() for r in self.responses],
            **compared,
        }

    def state(self) -> dict[str, Any]:
        """Everything needed to build the same group again, as primitives (for checkpoints)."""
        return {
            **self.to_json(),
            "columns": dict(self.prompt.columns),
            "margin": self.margin,
            "weight": self.weight,
            "origin": self.origin,
            "policy_logps": [r.policy_logps for r in self.responses],
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Group:
        """Inverse of ``state`` and, with the defaults, of ``to_json``."""
        prompt = Prompt(
            id=state["prompt_id"],
            text=state["prompt"],
            ids=list(state["prompt_ids"]),
            file=state["file"],
            row=state["row"],
            columns=dict(state.get("columns", {})),
        )
        logps = state.get("policy_logps") or [None] * len(state["responses"])
        responses = [
            Response(**r, policy_logps=p) for r, p in zip(state["responses"], logps, strict=True)
        ]
        return cls(
            prompt=prompt,
            responses=responses,
            source=state["source"],
            round=state["round"],
            policy_version=state["policy_version"],
            sampling=dict(state["sampling"]),
            reward_source=state["reward_source"],
            margin=state.get("margin"),
            weight=state.get("weight", 1.0),
            origin=state.get("origin"),
            comparisons=state.get("comparisons"),
        )


# --------------------------------------------------------------------------- flat tensors


@dataclass(slots=True)
class FlatTokens:
    """Prompts and responses of some groups, ragged, in flat tensors.

    Attributes:
        prompt_ids: [S] prompt tokens, one prompt after the other.
        prompt_lengths: length of each prompt, ``P`` integers on the host.
        response_ids: [T] response tokens, in the order of the responses.
        lengths: length of each response, ``B`` integers on the host.
        prompt_of: index of each response's prompt, ``B`` ascending integers on the host.

    Lengths stay on the host because they are shapes: reading them back would stall the device.
    """

    prompt_ids: Tensor
    prompt_lengths: list[int]
    response_ids: Tensor
    lengths: list[int]
    prompt_of: list[int]

    @classmethod
    def from_groups(
        cls, groups: Sequence[Group], keep: Sequence[Sequence[bool]] | None = None
    ) -> FlatTokens:
        """Flatten groups in order.

        Args:
            groups: the groups.
            keep: for each group, which of its responses to take; all of them by default.
        """
        prompt_ids: list[int] = []
        response_ids: list[int] = []
        prompt_lengths, lengths, prompt_of = [], [], []
        for g, group in enumerate(groups):
            prompt_ids += group.prompt.ids
            prompt_lengths.append(len(group.prompt.ids))
            for k, response in enumerate(group.responses):
                if keep is None or keep[g][k]:
                    response_ids += response.ids
                    lengths.append(len(response.ids))
                    prompt_of.append(g)
        long = torch.long
        return cls(
            prompt_ids=torch.tensor(prompt_ids, dtype=long),
            prompt_lengths=prompt_lengths,
            response_ids=torch.tensor(response_ids, dtype=long),
            lengths=lengths,
            prompt_of=prompt_of,
        )

    @property
    def num_responses(self) -> int:
        return len(self.lengths)

    @property
    def num_tokens(self) -> int:
        """Prompt and response tokens, each prompt counted once."""
        return sum(self.prompt_lengths) + sum(self.lengths)

    def owner(self) -> Tensor:
        """[T] index of the response that owns each response token."""
        device = self.response_ids.device
        counts = sent(self.lengths, device, torch.long)
        index = torch.arange(len(self.lengths), device=device)
        return torch.repeat_interleave(index, counts, output_size=sum(self.lengths))

    def select(self, responses: Sequence[int]) -> FlatTokens:
        """The same prompts without unused ones, and only these responses (ascending indices)."""
        prompts = sorted({self.prompt_of[i] for i in responses})
        place = {p: n for n, p in enumerate(prompts)}
        return FlatTokens(
            prompt_ids=_pieces(self.prompt_ids, self.prompt_lengths, prompts),
            prompt_lengths=[self.prompt_lengths[p] for p in prompts],
            response_ids=_pieces(self.response_ids, self.lengths, responses),
            lengths=[self.lengths[i] for i in responses],
            prompt_of=[place[self.prompt_of[i]] for i in responses],
        )

    def to(self, device: torch.device | str) -> FlatTokens:
        return replace(
            self,
            prompt_ids=moved(self.prompt_ids, device),
            response_ids=moved(self.response_ids, device),
        )


def _pieces(values: Tensor, lengths: Sequence[int], chosen: Sequence[int]) -> Tensor:
    """Some pieces of a flat tensor, one after the other; no tensor is made for the others."""
    ends = list(accumulate(lengths))
    assert sum(lengths) == len(values)
    parts = [values[ends[i] - lengths[i] : ends[i]] for i in chosen]
    return torch.cat(parts) if parts else values.new_zeros((0, *values.shape[1:]))


@dataclass(slots=True)
class View:
    """What an objective sees of a round or of a part of it. Index tensors point at responses.

    Attributes:
        pairs: [N, 2] (chosen, rejected) response indices, or None.
        pair: named [N] tensors (``margin``, ``weight``).
        response: named [B] tensors (``reward``, ``weight``, ``advantage``, ``label``).
        token: named [T] tensors (``advantage``, ``return``).
    """

    pairs: Tensor | None = None
    pair: dict[str, Tensor] = field(default_factory=dict)
    response: dict[str, Tensor] = field(default_factory=dict)
    token: dict[str, Tensor] = field(default_factory=dict)
    _numbers: tuple[Tensor, list[list[int]]] | None = field(default=None, repr=False, compare=False)

    def pair_numbers(self) -> list[list[int]]:
        """``pairs`` as numbers; nobody waits for those of a view that ``to`` has moved."""
        assert self.pairs is not None
        if self._numbers is not None and self._numbers[0] is self.pairs:
            return self._numbers[1]
        numbers: list[list[int]] = self.pairs.tolist()
        return numbers

    def select(self, responses: Sequence[int], lengths: Sequence[int]) -> View:
        """The part that concerns these responses (ascending), re-indexed.

        A pair is kept when both of its responses are. ``lengths`` are those of all responses.
        """
        index = torch.tensor(list(responses), dtype=torch.long)
        out = View(
            response=_taken(self.response, index),
            token={k: _pieces(v, lengths, responses) for k, v in self.token.items()},
        )
        if self.pairs is not None:  # which ones stay is known here; a device would be waited for
            place = {i: n for n, i in enumerate(responses)}
            numbers = self.pair_numbers()
            kept = [n for n, (a, b) in enumerate(numbers) if a in place and b in place]
            mapped = [[place[i] for i in numbers[n]] for n in kept]
            out.pairs = sent(mapped, self.pairs.device, torch.long).reshape(-1, 2)
            out.pair = _taken(self.pair, torch.tensor(kept, dtype=torch.long))
            out._numbers = out.pairs, mapped
        return out

    def state(self) -> dict[str, object]:
        """Tensors and primitives, for checkpoints."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "_numbers"}

    def to(self, device: torch.device | str) -> View:
        def move(columns: dict[str, Tensor]) -> dict[str, Tensor]:
            return {k: moved(v, device) for k, v in columns.items()}

        out = View(
            pairs=None if self.pairs is None else moved(self.pairs, device),
            pair=move(self.pair),
            response=move(self.response),
            token=move(self.token),
        )
        if self.pairs is not None and out.pairs is not None:
            out._numbers = out.pairs, self.pair_numbers()
        return out


def _taken(columns: dict[str, Tensor], index: Tensor) -> dict[str, Tensor]:
    """Entries of columns, by an index on the host; one copy of it for each device."""
    there: dict[torch.device, Tensor] = {}
    for values in columns.values():
        if values.device not in there:
            there[values.device] = moved(index, values.device)
    return {k: v[there[v.device]] for k, v in columns.items()}


@dataclass(slots=True)
class Round:
    """The groups made or loaded at one time, and what was computed about them once.

    Attributes:
        index: number of the round, from 0.
        groups: the groups, in slot order; their number never changes.
        notes: annotations: ``token`` and ``response`` columns over the *kept* responses
            (``ref_logps`` [T], ``old_logps`` [T], ``values`` [T]).
        keep: for each group, which responses the objective uses (``RoundClient.select``).
        view: the objective's view over the kept responses.
        counts: drops and ties by name, for the log.
        strict: every response is used in exactly one step, by the policy that sampled it; then
            the policy at the start of the round is the policy now.
        uses: for each group, how often it was trained on before this round; empty for never.
    """

    index: int
    groups: list[Group]
    keep: list[list[bool]] = field(default_factory=list)
    notes: View = field(default_factory=View)
    view: View = field(default_factory=View)
    counts: dict[str, float] = field(default_factory=dict)
    strict: bool = False
    uses: list[int] = field(default_factory=list)

    def tokens(self) -> FlatTokens:
        """Kept prompts and responses, flat."""
        return FlatTokens.from_groups(self.groups, self.keep or None)

    def group_index(self) -> list[int]:
        """Index of the group of each kept response."""
        return [
            g
            for g, group in enumerate(self.groups)
            for k in range(len(group.responses))
            if not self.keep or self.keep[g][k]
        ]

    def kept(self) -> list[Response]:
        """The kept responses, in the order of the flat tensors."""
        return [
            r
            for g, group in enumerate(self.groups)
            for k, r in enumerate(group.responses)
            if not self.keep or self.keep[g][k]
        ]


@dataclass(slots=True)
class Batch:
    """The groups of one optimizer step that this process trains on.

    Attributes:
        tokens: kept responses of these groups.
        notes: annotations of these responses.
        view: the objective's view of these responses.
        counts: sums over the whole batch and all processes, by which losses are normalised:
            ``groups``, ``responses``, ``tokens``, ``pairs`` (weighted) and
            ``response_weight``.
        info: facts for the log, one number per batch (``age/mean``, ``uses``, ...).
            ``notes.response["age"]`` is the age of each response, in steps.
        micro_batch_tokens: most prompt and response tokens that go through the model at once.
        index: (round, pass, position in the pass).
    """

    tokens: FlatTokens
    notes: View
    view: View
    counts: dict[str, float]
    info: dict[str, float] = field(default_factory=dict)
    micro_batch_tokens: int | None = None
    index: tuple[int, int, int] = (0, 0, 0)
    whole: Batch | None = None
    """The batch over all processes, where this process has only a part of it."""
    local: list[int] | None = None
    """Which responses of ``whole`` these are; None when this is the whole batch."""

    def select(self, responses: Sequence[int]) -> Batch:
        """A micro-batch: these responses (ascending indices), the same global counts."""
        lengths = self.tokens.lengths
        return replace(
            self,
            tokens=self.tokens.select(responses),
            notes=self.notes.select(responses, lengths),
            view=self.view.select(responses, lengths),
            whole=None,
            local=None,
        )

    def to(self, device: torch.device | str) -> Batch:
        return replace(
            self,
            tokens=self.tokens.to(device),
            notes=self.notes.to(device),
            view=self.view.to(device),
            whole=None if self.whole is None else self.whole.to(device),
        )


@dataclass(slots=True)
class TokenStats:
    """What one forward says about response tokens.

    Attributes:
        logps: [T] log-probability of each response token, temperature 1.
        entropy: [T] entropy of each predictive distribution in nats, when asked for.
        sum_squares: [T] sum over the vocabulary of squared probabilities, when asked for.
        hidden: [T, H] last hidden state *before* each response token, when asked for.
        values: [T] values of the state before each token, from a critic.
        final_hidden: [B, H] last hidden state *after* each response, when asked for.
    """

    logps: Tensor
    entropy: Tensor | None = None
    sum_squares: Tensor | None = None
    hidden: Tensor | None = None
    final_hidden: Tensor | None = None
    values: Tensor | None = None


# --------------------------------------------------------------------------- protocols


@dataclass(frozen=True, kw_only=True, slots=True)
class Needs:
    """What an objective needs; checked before any weight is loaded.

    Attributes:
        reference: it reads reference log-probs (parameters may switch this on or off).
        rewards: it reads scalar rewards.
        pairs: it trains on pairs.
        fresh: it is only right on samples of the present policy (refused with offline data).
        behaviours: it reads what produced each response.
        responses: least number of responses per prompt.
        policy: it trains a policy that samples (reward models do not).
        unless: setting that lifts ``fresh`` (``objective.importance=token``), empty if none does.
    """

    reference: bool = False
    rewards: bool = False
    pairs: bool = False
    fresh: bool = False
    behaviours: bool = False
    responses: int = 1
    policy: bool = True
    unless: str = ""


class Forward(Protocol):
    """Runs the policy or the reference over many tokens without gradient, in micro-batches."""

    def __call__(self, which: str, tokens: FlatTokens, *, stats: Iterable[str] = ()) -> TokenStats:
        """``which`` is ``"policy"`` or ``"reference"``; results are on the host, in order."""
        ...


@runtime_checkable
class RoundClient(Protocol):
    """What the DataModule needs of the LightningModule (``trainer.lightning_module``)."""

    needs: Needs
    reuse: bool
    """Whether its loss is right for samples that are used several times."""

    def forward_pass(self, micro_batch_tokens: int | None) -> Forward:
        """How notes are computed, within a token budget."""
        ...

    def begin_round(self, index: int) -> None:
        """Before the groups of a round are made: a moving reference moves here."""
        ...

    def select(self, round: Round, *, seed: int) -> list[list[bool]]:
        """Which responses of each group will be used."""
        ...

    def annotate(self, round: Round, forward: Forward) -> View:
        """Once per round, without gradient: the notes over the kept responses."""
        ...

    def view(self, round: Round, *, seed: int) -> View:
        """Pure: pairs, weights, advantages over the kept responses."""
        ...

    def observe(self, round: Round) -> None:
        """After the view: absorb the round into the objective's state (running baselines)."""
        ...

    def objective_state(self) -> dict[str, Tensor]:
        """State built up by training (baselines, adaptive coefficients), for checkpoints."""
        ...


@runtime_checkable
class Policy(Protocol):
    """A model that scores and continues token sequences."""

    def token_logps(self, tokens: FlatTokens, *, stats: Iterable[str] = ()) -> TokenStats:
        """Training forward at temperature 1."""
        ...

    def prefill(self, prompts: Sequence[Sequence[int]], copies: int) -> tuple[Tensor, Any]:
        """Next-token logits [P * copies, V] after each prompt and the decoding state."""
        ...

    def step(self, token_ids: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Feed one token per row [rows]; returns next-token logits [rows, V] and the state."""
        ...

    def keep_rows(self, state: Any, rows: Tensor) -> Any:
        """The decoding state of these rows alone; their ascending indices come on the host."""
        ...


class TrainedPolicy(Policy, Protocol):
    """A policy as objectives see it: a torch module, whose weights are loaded late."""

    spec: Any
    """What it was made from; see ``lit_pref.policies.spec.ModelSpec``."""

    @property
    def hidden_size(self) -> int:
        """Width of the last hidden state; the model must be loaded."""
        ...

    def __call__(self, tokens: FlatTokens, *, stats: Iterable[str] = ()) -> TokenStats:
        """``token_logps`` through the module's hooks."""
        ...

    def load(self) -> Policy:
        """Load the weights; does nothing the second time."""
        ...

    def save_pretrained(self, folder: str) -> None:
        """Write what was trained."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def train(self, mode: bool = True) -> Policy: ...

    def modules(self) -> Iterator[nn.Module]: ...


class Reference(Protocol):
    """The model that the policy is held near."""

    @property
    def fingerprint(self) -> str | None:
        """What the weights are; None while they are not known, or change."""
        ...

    def prepare(self, policy: Policy) -> None:
        """Take from the loaded policy what it needs; does nothing the second time."""
        ...

    def to(self, device: torch.device) -> None: ...

    def token_logps(self, tokens: FlatTokens, *, stats: Iterable[str] = ()) -> TokenStats: ...

    def advance(self, policy: Policy, round: int) -> None:
        """Called at round starts; only a moving reference does anything."""
        ...


class Sampler(Protocol):
    """Makes responses from prompts."""

    max_new_tokens: int

    def sample(
        self,
        policy: Policy,
        prompts: Sequence[Prompt],
        *,
        key: tuple[int | str, ...],
        occurrences: Sequence[int],
        responses: int,
        end_ids: Collection[int] = (),
        text: Callable[[list[int]], str] = ...,
        on_group: Callable[[int, Group], None] | None = None,
    ) -> list[Group]:
        """One group per prompt; every draw is a function of ``key`` and the prompt's id."""
        ...


class RewardSource(Protocol):
    """Scores responses.

    Two attributes may say how it wants to be called beside sampling, 1 each where they are absent:
    ``concurrency``, the calls that may run at the same time (in threads), and ``groups_at_once``,
    the groups of one call. A reward that is not what success is measured by (noise, normalised
    parts) may have ``plain()``, the source to measure with.
    """

    name: str
    version: str

    def score(self, groups: Sequence[Group]) -> list[float]:
        """One number per response, groups in order, responses in order."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """A question to an oracle: which of two responses to one prompt is better?

    Attributes:
        group: the prompt and its responses.
        first: position of one response in the group.
        second: position of the other.
    """

    group: Group
    first: int
    second: int


class PreferenceOracle(Protocol):
    """Compares responses to the same prompt; the counterpart of ``RewardSource``.

    Objectives on pairs train on the comparisons themselves, all others on each response's win
    share: its mean probability of winning over the responses it was compared with.

    ``concurrency`` and ``groups_at_once`` as for ``RewardSource``; ``opponents`` is the number of
    responses that each response is compared with (None or absent: all others).
    """

    name: str
    version: str

    def compare(self, comparisons: Sequence[Comparison]) -> list[float]:
        """P(first is better than second) in [0, 1] for each; 0.5 is a tie."""
        ...
