"""OpenAI's two endpoints: `model` is a task's name, the prompt or the user's message its input."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi.responses import JSONResponse, StreamingResponse
from starlette.requests import Request
from starlette.responses import Response

from tagi.errors import InputError
from tagi.infer.answers import cut
from tagi.infer.choices import TokenScore, likeliest
from tagi.infer.search import GenerationConfig
from tagi.serve import openai
from tagi.serve.schemas import Chat, Completion
from tagi.serve.service import Service
from tagi.serve.worker import Finished, Piece, Told


async def answered(
    service: Service,
    request: Request,
    asked_for: Completion | Chat,
    prompts: Sequence[str | list[int]],
    kind: openai.Kind,
) -> Response:
    """The answer of an endpoint of OpenAI's to some inputs, whole or as a stream."""
    task = service.tasks.get(asked_for.model)
    texts = service.inputs([prompt for prompt in prompts for _ in range(asked_for.n)])
    head, generation = openai.Head(kind, task.name), asked_for.generation
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


async def read(service: Service, request: Request, asked_for: Completion) -> Response:
    """Prompts as they stand behind a task's instruction, how they go on, and the scores of all tokens."""
    if asked_for.stream:
        raise InputError("stream: not with echo and logprobs together")
    if service.tagi.model.backbone.has_encoder:
        raise InputError("echo: together with logprobs needs a language model without an encoder")
    task, stop, most = service.tasks.get(asked_for.model), asked_for.generation.stop, asked_for.logprobs or 0
    prompts = service.ids([one for one in asked_for.prompts for _ in range(asked_for.n)])
    found = await service.finished(request, [task.key] * len(prompts), prompts, asked_for.generation)
    choices = list[dict[str, Any]]()
    for number, (prompt, one) in enumerate(zip(prompts, found, strict=True)):
        tokens = await _scored(service, request, task.key, prompt[:1], [*prompt[1:], *one.tokens], most)
        reason, texts = one.answer.finish_reason, [token.text for token in tokens]
        said = "".join(texts[len(prompt) : -1 if reason == "end" else None])
        stopped = cut(said, stop)
        text = "".join(texts[: len(prompt)]) + (said if stopped is None else stopped)
        choices.append(openai.choice("text_completion", number, text, reason, openai.text_logprobs(tokens)))
    return JSONResponse(openai.Head("text_completion", task.name).whole(choices, found))


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
    service: Service,
    request: Request,
    asked_for: Completion | Chat,
    key: str,
    texts: Sequence[str],
    found: Sequence[Finished],
) -> list[dict[str, Any] | None]:
    """Of every token of every answer, if they were asked for."""
    wanted = asked_for.logprobs
    if wanted is None or wanted is False:
        return [None] * len(found)
    form = openai.chat_logprobs if isinstance(asked_for, Chat) else openai.text_logprobs
    pairs = zip(texts, found, strict=True)
    return [form(await _scored(service, request, key, text, one.tokens, int(wanted))) for text, one in pairs]


async def _scored(
    service: Service, request: Request, key: str, given: str | Sequence[int], answer: Sequence[int], most: int
) -> list[openai.Scored]:
    """Every token of an answer; before it those that are given, without scores."""

    def score() -> list[TokenScore]:
        return service.tagi.token_scores(service.store.get(key), given, answer, most=most)

    def spelled(scores: Sequence[TokenScore]) -> list[openai.Scored]:
        before = [] if isinstance(given, str) else given
        pieces = service.tagi.texts.pieces([*before, *answer])
        bare = [openai.Scored(piece, None, None) for piece in pieces[: len(before)]]
        pairs = zip(pieces[len(before) :], scores, strict=True)
        return bare + [openai.Scored(piece, one.score, _likeliest(service, piece, one)) for piece, one in pairs]

    return await asyncio.to_thread(spelled, await service.on_model(request, score))


def _likeliest(service: Service, piece: str, scored: TokenScore) -> dict[str, float]:
    """A token and the likeliest in its place; of several with one text, such as parts of characters, the best."""
    found = {piece: scored.score}
    for token, score in reversed(scored.likeliest):
        found[piece if token == scored.token else "".join(service.tagi.texts.pieces([token]))] = score
    return found
