"""OpenAI's two endpoints: `model` is a task's name, the prompt or the user's message its input."""

import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi.responses import JSONResponse, StreamingResponse
from starlette.requests import Request
from starlette.responses import Response

from tagi.errors import InputError
from tagi.infer.choices import likeliest
from tagi.infer.search import GenerationConfig
from tagi.serve import openai
from tagi.serve.schemas import Chat, Completion, OpenAI
from tagi.serve.service import Service
from tagi.serve.worker import Finished, Piece, Told


async def answered(
    service: Service, request: Request, asked_for: OpenAI, texts: list[str], kind: openai.Kind
) -> Response:
    """The answer of an endpoint of OpenAI's to some inputs, whole or as a stream."""
    task = service.tasks.get(asked_for.model)
    texts = service.inputs([text for text in texts for _ in range(asked_for.n)])
    head = openai.Head(kind, f"{kind[:4]}-{secrets.token_hex(12)}", int(time.time()), task.name)
    generation = asked_for.generation
    if task.choices:
        scores = await service.scores(request, task.key, texts, task.choices)
        best = [likeliest(task.choices, each) for each in scores]
        if asked_for.stream:
            body = "".join((head.chunk(best[0]), head.chunk("", "end"), openai.event("[DONE]")))
            return Response(body, media_type="text/event-stream")
        return JSONResponse(head.whole([openai.choice(kind, i, one, "end") for i, one in enumerate(best)], ()))
    if asked_for.stream:
        if len(texts) > 1:
            raise InputError("stream: one input and one answer at a time")
        return StreamingResponse(
            _streamed(service, request, head, task.key, texts[0], generation), media_type="text/event-stream"
        )
    found = await service.finished(request, [task.key] * len(texts), texts, generation)
    logprobs = await _logprobs(service, request, asked_for, task.key, texts, found)
    echoed = texts if isinstance(asked_for, Completion) and asked_for.echo else [""] * len(texts)
    choices = [
        openai.choice(kind, i, before + one.answer.text, one.answer.finish_reason, said)
        for i, (before, one, said) in enumerate(zip(echoed, found, logprobs, strict=True))
    ]
    return JSONResponse(head.whole(choices, found))


async def _streamed(
    service: Service, request: Request, head: openai.Head, told: Told, text: str, generation: GenerationConfig
) -> AsyncIterator[str]:
    async for one in service.pieces(request, told, text, generation):
        if isinstance(one, Piece):
            yield head.chunk(one.text)
        elif one.answer.error is not None:  # the status is sent already
            yield openai.event(openai.error(str(one.answer.error)))
        else:
            yield head.chunk("", one.answer.finish_reason)
    yield openai.event("[DONE]")


async def _logprobs(
    service: Service, request: Request, asked_for: OpenAI, key: str, texts: Sequence[str], found: Sequence[Finished]
) -> list[dict[str, Any] | None]:
    """Of every token of every answer, if they were asked for."""
    if not (isinstance(asked_for, Chat) and asked_for.logprobs) and not (
        isinstance(asked_for, Completion) and asked_for.logprobs is not None
    ):
        return [None] * len(found)
    tokens = [one.tokens for one in found]
    scores = await service.on_model(request, lambda: service.tagi.token_scores(service.store.get(key), texts, tokens))
    form = openai.chat_logprobs if isinstance(asked_for, Chat) else openai.text_logprobs
    pieces = [[str(service.tagi.tokenizer.decode([token])) for token in own] for own in tokens]
    return [form(own, each) for own, each in zip(pieces, scores, strict=True)]
