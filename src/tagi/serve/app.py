"""The HTTP service: tasks by name, OpenAI's endpoints, ad-hoc instructions, scores, adapters as files."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException

import tagi as package
from tagi.errors import InputError, TagiError
from tagi.files import DiskError
from tagi.infer import asked
from tagi.infer.choices import likeliest
from tagi.serve import openai
from tagi.serve.adapters import SUFFIX, Form, packed
from tagi.serve.completions import answered, read
from tagi.serve.guard import Guard
from tagi.serve.registry import ConflictError, NamedTask, NotFoundError
from tagi.serve.schemas import Chat, Completion, Generate, Item, NewTask, Score
from tagi.serve.service import ClientGoneError, Service
from tagi.serve.worker import BusyError, TimeLimitError

STATUS: tuple[tuple[type[Exception], int], ...] = (
    (NotFoundError, 404),
    (ConflictError, 409),
    (BusyError, 429),
    (TimeLimitError, 504),
    (DiskError, 507),
    (TagiError, 400),
)
"""Of each error the first that fits."""
KINDS = {
    404: "not_found_error",
    409: "conflict_error",
    429: "rate_limit_error",
    504: "timeout_error",
    507: "server_error",
}


def create_app(service: Service, *, page: bool = False) -> FastAPI:
    """The application of a service, whose worker runs as long as it does; with the page for the browser at `/`."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        with service.worker:
            yield
        service.tasks.close()
        service.store.close()

    app = FastAPI(title="tagi", version=package.__version__, lifespan=lifespan, redoc_url=None)
    app.add_middleware(Guard, settings=service.settings, metrics=service.metrics)
    _add_errors(app)
    _add_tasks(app, service)
    _add_answers(app, service)
    _add_state(app, service)
    if page:
        _add_page(app, service)
    return app


def _add_tasks(app: FastAPI, service: Service) -> None:
    @app.post("/v1/tasks", status_code=201)
    async def register(task: NewTask, request: Request, response: Response) -> dict[str, Any]:
        """Write a task adapter from an instruction, and give it a name."""
        told = asked.instruction(task.told)
        found, new = await service.register(request, told, task.name, task.choices)
        response.status_code = 201 if new else 200
        return {**_shown(service, found), "notes": service.tagi.notes(told, [])}

    @app.get("/v1/tasks")
    async def every() -> dict[str, Any]:
        """The tasks that are registered."""
        return {"tasks": await asyncio.to_thread(lambda: [_shown(service, one) for one in service.tasks.all()])}

    @app.get("/v1/tasks/{name}")
    async def one(name: str) -> dict[str, Any]:
        """A task."""
        return _shown(service, service.tasks.get(name))

    @app.delete("/v1/tasks/{name}", status_code=204)
    async def forget(name: str) -> Response:
        """Forget a task's name."""
        await asyncio.to_thread(service.tasks.remove, name)
        return Response(status_code=204)

    @app.get("/v1/tasks/{name}/adapter")
    async def adapter(name: str, request: Request, format: Form = "peft") -> Response:
        """A task's adapter for other engines: PEFT's folder as a zip file, or llama.cpp's GGUF."""
        task = service.tasks.get(name)
        file = await service.on_model(
            request, lambda: packed(service.tagi, service.store.get(task.key), service.base, format)
        )
        named = {"Content-Disposition": f'attachment; filename="{task.name}.{SUFFIX[format]}"'}
        return Response(file, media_type="application/octet-stream", headers=named)


def _add_answers(app: FastAPI, service: Service) -> None:
    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The language model and its tasks, in OpenAI's format."""
        tasks = await asyncio.to_thread(service.tasks.all)
        every = [(service.base, service.began, None), *((one.name, int(one.created), service.base) for one in tasks)]
        same = {"object": "model", "owned_by": "tagi", "root": service.base}  # `root` and `parent` as vLLM has them
        data = [{"id": name, "created": created, "parent": parent, **same} for name, created, parent in every]
        return {"object": "list", "data": data}

    @app.post("/v1/completions")
    async def completions(body: Completion, request: Request) -> Response:
        """OpenAI's completions: `model` is a task's name, `prompt` its input; `echo` with `logprobs` scores it."""
        if body.echo and body.logprobs is not None:
            return await read(service, request, body)
        return await answered(service, request, body, body.prompts, "text_completion")

    @app.post("/v1/chat/completions")
    async def chat(body: Chat, request: Request) -> Response:
        """OpenAI's chat completions: `model` is a task's name, the user's message its input."""
        if len(body.messages) > 1 or body.messages[0].role != "user":
            raise InputError(
                "messages: one message of the user's is the input; the task's name says what to do with it"
            )
        return await answered(service, request, body, [body.messages[0].text], "chat.completion")

    @app.post("/v1/generate")
    async def generate(body: Generate, request: Request) -> dict[str, Any]:
        """Answer inputs of one task or of many, by name or by an instruction that is not kept."""
        items = [one if isinstance(one, Item) else Item(input=one) for one in body.inputs]
        texts = service.inputs([one.input for one in items])
        named = [(one.task, one.instruction) for one in items]
        named = [pair if pair != (None, None) else (body.task, body.instruction) for pair in named]
        found = {pair: service.told(*pair) for pair in dict.fromkeys(named)}
        if chooses := [task for (task, _), (_, choices) in found.items() if choices]:
            raise InputError(f"task: {chooses[0]} chooses from its choices; POST /v1/score or /v1/completions")
        answers = await service.finished(request, [found[pair][0] for pair in named], texts, body.generation)
        return {
            "answers": [
                {"text": one.answer.text, "finish_reason": one.answer.finish_reason, "tokens": len(one.tokens)}
                for one in answers
            ]
        }

    @app.post("/v1/score")
    async def score(body: Score, request: Request) -> dict[str, Any]:
        """The likeliest of some answers to each input, with the mean log-likelihood of each a token."""
        told, own = service.told(body.task, body.instruction)
        choices = body.choices or own
        if not choices:
            raise InputError("choices: are missing, and the task has none of its own")
        scores = await service.scores(request, told, service.inputs(body.inputs), choices)
        best = [likeliest(choices, each) for each in scores]
        return {"answers": best, "scores": scores, "choices": [*choices]}


def _add_state(app: FastAPI, service: Service) -> None:
    @app.get("/healthz")
    async def healthy() -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "ok"}

    @app.get("/readyz")
    async def ready() -> Response:
        """Whether requests are taken on."""
        alive = service.worker.alive
        return JSONResponse({"status": "ready" if alive else "stopping"}, 200 if alive else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        """For Prometheus."""
        return PlainTextResponse(service.metrics.text(), media_type="text/plain; version=0.0.4")


def _add_page(app: FastAPI, service: Service) -> None:
    try:
        from tagi.serve.page.mount import mount  # gradio takes seconds to import
    except ModuleNotFoundError as error:
        missing = f"The page needs {error.name}, which is not installed: pip install 'tagi[serve]' brings it.\n"

        @app.get("/", include_in_schema=False)
        async def without() -> Response:
            return PlainTextResponse(missing, 501)

        return
    mount(app, service)


def _add_errors(app: FastAPI) -> None:
    """Every refusal as one sentence, in OpenAI's format."""

    async def refused(_: Request, error: Exception) -> Response:
        status = next((code for kind, code in STATUS if isinstance(error, kind)), 500)
        message = str(error) if isinstance(error, TagiError) else "the service failed; its log says why"
        headers = {"Retry-After": "1"} if status == 429 else None
        return JSONResponse(openai.error(message, KINDS.get(status, "invalid_request_error")), status, headers)

    async def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part != "body") or "body"
        return JSONResponse(openai.error(f"{place}: {first['msg']}"), 400)

    async def missing(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return JSONResponse(openai.error(str(error.detail)), error.status_code, error.headers)

    async def gone(_: Request, __: Exception) -> Response:
        return Response(status_code=499)

    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, missing)
    app.add_exception_handler(ClientGoneError, gone)
    app.add_exception_handler(TagiError, refused)
    app.add_exception_handler(Exception, refused)


def _shown(service: Service, task: NamedTask) -> dict[str, Any]:
    """A task as callers see it."""
    told = service.store.instruction(task.key)
    return {
        "name": task.name,
        "instruction": told.definition,
        "examples": [{"input": one.input, "output": one.output} for one in told.demonstrations],
        "choices": [*task.choices],
        "created": int(task.created),
    }
