"""A chat model behind an OpenAI-compatible server, asked for a mark or a verdict."""

from __future__ import annotations

import functools
import re
from typing import Any

from lit_pref.rewards.base import at_least_one
from lit_pref.rewards.cache import DiskCache
from lit_pref.rewards.http import BadReply, JsonClient
from lit_pref.types import Messages, Prompt, Refusal

__all__ = ["Chat", "check_instructions", "fill", "prompt_text"]


class Chat:
    """Asks a chat model and keeps its answers.

    Args:
        url: base url of the server, such as ``https://api.openai.com/v1``;
            ``/chat/completions`` is appended.
        model: name of the model.
        version: change it when the server's model changes under the same name.
        temperature: of the judge's own sampling.
        max_tokens: of its answer.
        client: see ``JsonClient``: timeout, retries, backoff, concurrency, api_key_env.
        cache: folder of kept answers; None keeps none.
    """

    def __init__(
        self,
        *,
        url: str,
        model: str,
        version: str,
        temperature: float,
        max_tokens: int,
        cache: str | None,
        **client: Any,
    ) -> None:
        self.client = JsonClient(url=f"{str(url).rstrip('/')}/chat/completions", **client)
        self.settings = {
            "model": model,
            "temperature": temperature,
            "max_tokens": at_least_one("max_tokens", max_tokens),
        }
        self.version = version
        self.cache = DiskCache(cache)

    async def ask(self, text: str, pattern: re.Pattern[str]) -> str:
        """The last match of ``pattern`` (its group 1) in the model's answer.

        Raises:
            CallFailed: no answer, or none with a match.
        """
        messages = [{"role": "user", "content": text}]
        key = DiskCache.key(
            kind="chat",
            url=self.client.url,
            version=self.version,
            messages=messages,
            **self.settings,
        )
        kept = self.cache.get(key)
        if isinstance(kept, str) and pattern.search(kept):
            return pattern.findall(kept)[-1]
        body = {**self.settings, "messages": messages}
        reply = await self.client.post(body, functools.partial(_content, pattern=pattern))
        self.cache.put(key, reply)
        return pattern.findall(reply)[-1]


def _content(reply: Any, *, pattern: re.Pattern[str]) -> str:
    try:
        text = reply["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        text = None
    if not isinstance(text, str):
        raise BadReply("expected a chat completion with choices[0].message.content")
    if not pattern.search(text):
        end = " ".join(text.split())[-120:]
        raise BadReply(f"the judge gave no score or verdict; its answer ends with {end!r}")
    return text


def prompt_text(prompt: Prompt) -> str:
    """A prompt as one text; chat messages with their roles."""
    messages: str | Messages = prompt.text
    if isinstance(messages, str):
        return messages
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"{m['role']}: {m['content']}" for m in messages)


def fill(template: str, **values: str) -> str:
    """Put values in, in one pass: braces within a response are text."""
    pattern = re.compile("|".join(rf"\{{{name}\}}" for name in values))
    return pattern.sub(lambda match: values[match[0][1:-1]], template)


def check_instructions(instructions: str, *names: str) -> None:
    """Refuse a template that lacks one of the names."""
    missing = [name for name in names if name not in instructions]
    if missing:
        raise Refusal(f"reward.instructions must hold {', '.join(names)}; {missing[0]} is missing")
