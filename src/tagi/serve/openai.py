"""Answers in OpenAI's format."""

import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Literal

from tagi.infer.search import FinishReason
from tagi.serve.worker import Finished

Kind = Literal["text_completion", "chat.completion"]
REASONS: dict[FinishReason | None, str] = {"end": "stop", "stop": "stop", "length": "length"}


@dataclass(frozen=True, slots=True)
class Head:
    """What every object that belongs to one answer begins with."""

    kind: Kind
    model: str
    created: int = field(default_factory=lambda: int(time.time()))
    number: str = field(default_factory=lambda: secrets.token_hex(12))

    def whole(self, choices: Sequence[dict[str, Any]], finished: Sequence[Finished]) -> dict[str, Any]:
        """The answers to one request, with the tokens that they took."""
        told, said = sum(one.prompt_tokens for one in finished), sum(len(one.tokens) for one in finished)
        usage = {"prompt_tokens": told, "completion_tokens": said, "total_tokens": told + said}
        return {**self._base(self.kind), "choices": [*choices], "usage": usage}

    def chunk(self, text: str, reason: FinishReason | None = None) -> str:
        """A part of a streamed answer, as an event."""
        body = {"text": text} if self.kind == "text_completion" else {"delta": {"role": "assistant", "content": text}}
        choice = {"index": 0, "finish_reason": REASONS.get(reason), "logprobs": None, **body}
        kind = self.kind if self.kind == "text_completion" else "chat.completion.chunk"
        return event({**self._base(kind), "choices": [choice]})

    def _base(self, kind: str) -> dict[str, Any]:
        return {"id": f"{self.kind[:4]}-{self.number}", "object": kind, "created": self.created, "model": self.model}


@dataclass(frozen=True, slots=True)
class Scored:
    """The text of a token, its log-likelihood, and that of the likeliest in its place by their texts.

    A prompt's first token has neither.
    """

    text: str
    score: float | None
    likeliest: dict[str, float] | None


def event(body: dict[str, Any] | str) -> str:
    """A server-sent event."""
    return f"data: {body if isinstance(body, str) else json.dumps(body, ensure_ascii=False)}\n\n"


def error(message: str, kind: str = "invalid_request_error") -> dict[str, Any]:
    """The body of a refusal."""
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


def text_logprobs(tokens: Sequence[Scored]) -> dict[str, Any]:
    """Of a completion, perhaps with its prompt."""
    texts = [one.text for one in tokens]
    return {
        "tokens": texts,
        "token_logprobs": [one.score for one in tokens],
        "top_logprobs": [one.likeliest for one in tokens],
        "text_offset": [*accumulate(map(len, texts), initial=0)][:-1],
    }


def chat_logprobs(tokens: Sequence[Scored]) -> dict[str, Any]:
    """Of a message."""
    content = [
        {"token": one.text, "logprob": one.score, "bytes": [*one.text.encode()], "top_logprobs": list[Any]()}
        for one in tokens
    ]
    return {"content": content}


def choice(kind: Kind, index: int, text: str, reason: FinishReason | None, logprobs: Any = None) -> dict[str, Any]:
    """One answer."""
    body = {"text": text} if kind == "text_completion" else {"message": {"role": "assistant", "content": text}}
    return {"index": index, "finish_reason": REASONS[reason], "logprobs": logprobs, **body}
