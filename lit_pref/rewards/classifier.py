"""``reward=classifier``: a sequence-classification model with its own tokenizer and template."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from lit_pref.policies.pretrained import no_progress_bars
from lit_pref.rewards.base import at_least_one, settings_version
from lit_pref.rewards.learned import folder_fingerprint, own_device
from lit_pref.types import Group, Messages, Prompt, Refusal, Response

__all__ = ["ClassifierReward"]

log = logging.getLogger(__name__)

Output = Literal["logit", "log_prob", "prob"]
TooLong = Literal["error", "cut"]


class ClassifierReward:
    """Scores texts with ``AutoModelForSequenceClassification``: the policy's tokens do not matter.

    Prompt and response are put together as the model wants them:

    - ``template: auto``: through the chat template of the model's tokenizer, if it has one, else
      as a pair of texts (``tokenizer(prompt, response)``);
    - ``chat`` or ``pair``: one of these;
    - any other text: a format with ``{prompt}`` and ``{response}``, for example ``"{response}"``.

    Args:
        path: a folder in Hugging Face format, or a hub id.
        label: name or number of the class whose score is the reward; None for a model with a
            single output.
        output: ``logit``; or, for models with several classes, ``log_prob`` or ``prob`` of the
            label.
        template: see above.
        batch_size: texts of one forward.
        groups_at_once: prompts, with all their responses, in one call.
        too_long: what to do with texts that are longer than the model's context: ``error``, or
            ``cut`` from the left, counted as ``reward/cut``.
        device: where it runs; None: this process's GPU if there is one, else the processor.
        dtype: of its weights: ``float32`` or ``bfloat16``.

    Raises:
        Refusal: no such model, or arguments that do not fit it.
    """

    def __init__(
        self,
        *,
        path: str,
        label: str | int | None = None,
        output: Output = "logit",
        template: str = "auto",
        batch_size: int = 32,
        groups_at_once: int = 1,
        too_long: TooLong = "error",
        device: str | None = None,
        dtype: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        from transformers import AutoConfig, AutoTokenizer

        if output not in ("logit", "log_prob", "prob"):
            raise Refusal(f"reward.output must be logit, log_prob or prob, got {output!r}")
        if too_long not in ("error", "cut"):
            raise Refusal(f"reward.too_long must be error or cut, got {too_long!r}")
        if dtype not in ("float32", "bfloat16"):
            raise Refusal(f"reward.dtype must be float32 or bfloat16, got {dtype!r}")
        try:
            config = AutoConfig.from_pretrained(path, trust_remote_code=False)
            self.tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise Refusal(f"reward.path={path} cannot be read: {error}") from error
        kinds = getattr(config, "architectures", None) or []
        if not any("SequenceClassification" in kind for kind in kinds):
            raise Refusal(
                f"reward.path={path} holds {', '.join(kinds) or 'a model of no known kind'}; "
                "expected a ...ForSequenceClassification model"
            )
        self.tokenizer.truncation_side = "left"  # what is judged stands at the end
        self.path, self.output, self.too_long = path, output, too_long
        self.label = _label(config, label, output)
        self.template = _template(self.tokenizer, template)
        self.batch_size = at_least_one("batch_size", batch_size)
        self.groups_at_once = at_least_one("groups_at_once", groups_at_once)
        self.device, self.dtype = device, dtype
        context = getattr(config.get_text_config(), "max_position_embeddings", None)
        self.context = min(context or 10**9, self.tokenizer.model_max_length)
        self.name = "classifier"
        self.version = settings_version(
            weights=folder_fingerprint(path) or [path, getattr(config, "_commit_hash", None)],
            tokenizer=_tokenizer_text(self.tokenizer),
            chat=self.tokenizer.chat_template,
            label=self.label,
            output=output,
            template=self.template,
            too_long=too_long,
            dtype=dtype,
        )
        self.cut = 0
        self._model: Any = None

    def score(self, groups: Sequence[Group]) -> list[float]:
        """One number per response, groups in order, responses in order.

        Raises:
            ValueError: a text is longer than the model's context.
        """
        rows = [self._ids(g.prompt, r) for g in groups for r in g.responses]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
        out = [0.0] * len(rows)
        for start in range(0, len(order), self.batch_size):
            part = order[start : start + self.batch_size]
            for i, score in zip(part, self._forward([rows[i] for i in part]), strict=True):
                out[i] = score
        return out

    def counts(self) -> dict[str, float]:
        """Texts that were cut, since the start."""
        return {"reward/cut": self.cut}

    # ------------------------------------------------------------------ texts

    def _ids(self, prompt: Prompt, response: Response) -> dict[str, list[int]]:
        """Token ids (and segment ids, where the model has them) of one text."""
        row = self._encode(prompt, response)
        length = len(row["input_ids"])
        if length > self.context:
            if self.too_long == "error":
                raise ValueError(
                    f"prompt and response have {length} tokens, more than the classifier's context "
                    f"of {self.context}; lower sampler.max_new_tokens, or set reward.too_long=cut"
                )
            self.cut += 1
            row = self._encode(prompt, response, truncation=True, max_length=self.context)
        return row

    def _encode(self, prompt: Prompt, response: Response, **limit: Any) -> dict[str, list[int]]:
        tokenizer = self.tokenizer
        if self.template == "chat":
            messages = _messages(prompt.text)
            messages.append({"role": "assistant", "content": response.text})
            ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
            return {"input_ids": list(ids)[-limit.get("max_length", len(ids)) :]}
        if self.template == "pair":
            out = tokenizer(_text(prompt.text), response.text, verbose=False, **limit)
        else:
            values = {"{prompt}": _text(prompt.text), "{response}": response.text}
            out = tokenizer(_fill(self.template, values), verbose=False, **limit)
        return {k: list(out[k]) for k in ("input_ids", "token_type_ids") if k in out}

    # ------------------------------------------------------------------ the model

    @torch.no_grad()
    def _forward(self, rows: Sequence[dict[str, list[int]]]) -> list[float]:
        model = self._loaded()
        pad = model.config.get_text_config().pad_token_id
        if pad is None and len(rows) > 1:  # transformers would read the wrong token
            return [score for row in rows for score in self._forward([row])]
        longest = max(len(row["input_ids"]) for row in rows)
        inputs = {
            name: _padded([row[name] for row in rows], longest, fill)
            for name, fill in (("input_ids", pad or 0), ("token_type_ids", 0))
            if name in rows[0]
        }
        lengths = [[1] * len(row["input_ids"]) for row in rows]
        inputs["attention_mask"] = _padded(lengths, longest, 0)
        logits = model(**{k: v.to(model.device) for k, v in inputs.items()}).logits.float()
        if self.output != "logit":
            logits = logits.log_softmax(-1)
        scores = logits[:, self.label]
        return (scores.exp() if self.output == "prob" else scores).tolist()

    def _loaded(self) -> Any:
        """The model, loaded when it is first needed."""
        if self._model is None:
            from transformers import AutoModelForSequenceClassification

            try:
                with no_progress_bars():
                    model = AutoModelForSequenceClassification.from_pretrained(
                        self.path, trust_remote_code=False, dtype=getattr(torch, self.dtype)
                    )
            except (OSError, ValueError) as error:
                raise Refusal(f"reward.path={self.path} cannot be read: {error}") from error
            text = model.config.get_text_config()
            used = self.tokenizer.pad_token_id
            # A padding token that also ends responses would be taken for padding within them.
            ends = {text.eos_token_id, self.tokenizer.eos_token_id}
            if text.pad_token_id is None and used is not None and used not in ends:
                text.pad_token_id = used
            self._model = model.requires_grad_(False).eval().to(self.device or own_device())
        return self._model


def _label(config: Any, label: str | int | None, output: Output) -> int:
    """Which output is the reward."""
    names = {int(k): str(v) for k, v in (config.id2label or {}).items()}
    if config.num_labels == 1:
        if label not in (None, 0) or output != "logit":
            raise Refusal(
                f"the classifier has a single output; leave reward.label={label} and "
                f"reward.output={output} out"
            )
        return 0
    listed = ", ".join(f"{k} ({v})" for k, v in sorted(names.items()))
    if label is None:
        raise Refusal(
            f"the classifier has {config.num_labels} classes: {listed}; name the one to be raised "
            "with reward.label"
        )
    found = [k for k, v in names.items() if label in (k, v)]
    if not found:
        raise Refusal(f"reward.label={label}: the classifier has the classes {listed}")
    return found[0]


def _template(tokenizer: Any, template: str) -> str:
    if template == "auto":
        return "chat" if tokenizer.chat_template is not None else "pair"
    if template == "chat" and tokenizer.chat_template is None:
        raise Refusal("reward.template=chat: the classifier's tokenizer has no chat template")
    if template not in ("chat", "pair") and "{response}" not in template:
        raise Refusal(
            "reward.template must be auto, chat, pair, or a text with {response} in it (and "
            f"{{prompt}}, if the model should see it); got {template!r}"
        )
    return template


def _tokenizer_text(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return str(sorted(tokenizer.get_vocab().items())) if backend is None else backend.to_str()


def _messages(prompt: str | Messages) -> Messages:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


def _text(prompt: str | Messages) -> str:
    return prompt if isinstance(prompt, str) else "\n\n".join(m["content"] for m in prompt)


def _fill(template: str, values: dict[str, str]) -> str:
    """Put both in, in one pass: braces within them are text."""
    before, *rest = template.split("{response}")
    parts = [part.replace("{prompt}", values["{prompt}"]) for part in (before, *rest)]
    return values["{response}"].join(parts)


def _padded(rows: Sequence[Sequence[int]], longest: int, fill: int) -> Tensor:
    return torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows])
