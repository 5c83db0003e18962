"""The service over HTTP: every answer is the engine's, by whatever way it was asked for."""

import io
import json
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
import torch
from serving import BASE, FIRST, SECOND, message, registered, served
from test_engine import INPUTS, make

from tagi import Tagi
from tagi.backbones.lora import delta
from tagi.backbones.sites import Site
from tagi.data.tokenizers import encode
from tagi.model.peft_files import load_peft


@pytest.fixture(scope="module")
def tagi() -> Tagi:
    return make("tagi", family="decoder")


@pytest.fixture(scope="module")
def client(tagi: Tagi, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with served(tmp_path_factory.mktemp("store"), tagi) as client:
        yield client


@pytest.fixture(scope="module")
def official(client: httpx.Client) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def expected(tagi: Tagi) -> dict[str, list[str]]:
    found = {told: tagi.solve(told, INPUTS) for told in (FIRST, SECOND)}
    assert found[FIRST] != found[SECOND]
    return found


def test_a_task_is_registered_shown_listed_and_forgotten(client: httpx.Client) -> None:
    made = client.post("/v1/tasks", json={"instruction": FIRST, "name": "first", "choices": ["a", "b"]})
    again = client.post("/v1/tasks", json={"instruction": FIRST, "name": "first", "choices": ["a", "b"]})
    assert (made.status_code, again.status_code) == (201, 200)
    shown = client.get("/v1/tasks/first").json()
    assert shown == {key: made.json()[key] for key in shown} and shown["instruction"] == FIRST
    assert shown in client.get("/v1/tasks").json()["tasks"]
    taken = client.post("/v1/tasks", json={"instruction": SECOND, "name": "first"})
    assert taken.status_code == 409 and "another task" in message(taken)
    assert client.delete("/v1/tasks/first").status_code == 204
    assert client.get("/v1/tasks/first").status_code == client.delete("/v1/tasks/first").status_code == 404


def test_examples_are_shown(client: httpx.Client, official: openai.OpenAI, tagi: Tagi) -> None:
    pairs = [("a b", "c"), ("d", "e f"), ("g h i", "j")]
    examples = [{"input": text, "output": answer} for text, answer in pairs]
    name = registered(client, FIRST, name="shown", examples=examples)
    done = official.completions.create(model=name, prompt=list(INPUTS))
    shown = tagi.task(FIRST, demonstrations=pairs).batch(INPUTS)
    assert [one.text for one in done.choices] == shown != tagi.solve(FIRST, INPUTS)
    assert client.get("/v1/tasks/shown").json()["examples"] == examples


def test_a_name_is_made_of_the_instruction(client: httpx.Client) -> None:
    name = registered(client, "b c d e f .")
    assert name.startswith("b-c-d-e-") and client.get(f"/v1/tasks/{name}").status_code == 200


def test_the_official_client_completes_and_chats(
    client: httpx.Client, official: openai.OpenAI, expected: dict[str, list[str]]
) -> None:
    for told in (FIRST, SECOND):
        name = registered(client, told, name=f"official-{told[0]}")
        done = official.completions.create(model=name, prompt=list(INPUTS), max_tokens=8)
        assert [one.text for one in done.choices] == expected[told]
        assert done.usage is not None and done.usage.completion_tokens > 0
        said = official.chat.completions.create(model=name, messages=[{"role": "user", "content": INPUTS[1]}])
        assert said.choices[0].message.content == expected[told][1]
        assert said.choices[0].finish_reason in ("stop", "length")
        echoed = official.completions.create(model=name, prompt=INPUTS[0], echo=True)
        assert echoed.choices[0].text == INPUTS[0] + expected[told][0]


def test_a_stream_joins_to_the_answer(
    client: httpx.Client, official: openai.OpenAI, expected: dict[str, list[str]]
) -> None:
    name = registered(client, FIRST, name="streamed")
    pieces = official.completions.create(model=name, prompt=INPUTS[2], stream=True)
    assert "".join(one.choices[0].text for one in pieces) == expected[FIRST][2]
    chunks = list(
        official.chat.completions.create(model=name, messages=[{"role": "user", "content": INPUTS[2]}], stream=True)
    )
    assert "".join(one.choices[0].delta.content or "" for one in chunks) == expected[FIRST][2]
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")


def test_several_answers_are_drawn_apart_and_again_the_same(client: httpx.Client, official: openai.OpenAI) -> None:
    name = registered(client, FIRST, name="drawn")
    ask = {"model": name, "prompt": INPUTS[0], "n": 6, "temperature": 1.5, "seed": 3}
    first, again = ([one.text for one in official.completions.create(**ask).choices] for _ in range(2))  # type: ignore[call-overload]
    assert first == again and len(set(first)) > 1


def test_logprobs_are_one_a_token(client: httpx.Client, official: openai.OpenAI) -> None:
    """What they are, `test_choices` says."""
    name = registered(client, FIRST, name="scored")
    done = official.completions.create(model=name, prompt=INPUTS[1], logprobs=1)
    logprobs = done.choices[0].logprobs
    assert logprobs is not None and logprobs.token_logprobs is not None and done.usage is not None
    scores = logprobs.token_logprobs
    assert len(scores) == done.usage.completion_tokens > 2 and all(score < 0 for score in scores)
    assert [max(one.values()) for one in logprobs.top_logprobs or []] == scores, "a greedy answer is the likeliest"
    asked = [{"role": "user", "content": INPUTS[1]}]
    chat = official.chat.completions.create(model=name, messages=asked, logprobs=True).choices[0]  # type: ignore[arg-type]
    assert chat.logprobs is not None and chat.logprobs.content is not None
    assert [one.logprob for one in chat.logprobs.content] == scores


def test_an_echoed_prompt_is_scored_as_it_stands(client: httpx.Client, official: openai.OpenAI, tagi: Tagi) -> None:
    """Whether it comes as a text or as token ids; in OpenAI's format, every token in its place in the text."""
    name, ids = registered(client, FIRST, name="read", choices=["a", "b"]), encode(tagi.tokenizer, "b c d e")
    both = official.completions.create(model=name, prompt=["b c d e", "a"], max_tokens=2, echo=True, logprobs=3)
    same = official.completions.create(model=name, prompt=[ids], max_tokens=2, echo=True, logprobs=3)
    assert both.choices[0].model_dump() == same.choices[0].model_dump() and both.choices[1].index == 1
    choice = same.choices[0]
    found = choice.logprobs
    assert found is not None and found.tokens and found.token_logprobs and found.top_logprobs and found.text_offset
    assert [choice.text[place:].startswith(one) for one, place in zip(found.tokens, found.text_offset, strict=True)]
    assert "".join(found.tokens) == choice.text and choice.text.startswith("b c d e ")
    assert len(found.tokens) == len(ids) + 2 and found.token_logprobs[0] is None and found.top_logprobs[0] is None
    answer = encode(tagi.tokenizer, choice.text)[len(ids) :]
    expected = tagi.token_scores(tagi.adapt(FIRST), ids[:1], [*ids[1:], *answer], most=3)
    torch.testing.assert_close(torch.tensor(found.token_logprobs[1:]), torch.tensor([one.score for one in expected]))
    for top, own, one in zip(found.top_logprobs[1:], found.token_logprobs[1:], expected, strict=True):
        assert max(top.values()) == pytest.approx(one.likeliest[0][1], abs=1e-5) and own in top.values()
    assert [max(top.values()) for top in found.top_logprobs[-2:]] == found.token_logprobs[-2:], "the answer is greedy"


def test_token_ids_stand_for_their_text(client: httpx.Client, official: openai.OpenAI, tagi: Tagi) -> None:
    name = registered(client, FIRST, name="ids")
    by_text = official.completions.create(model=name, prompt=INPUTS[1])
    by_ids = official.completions.create(model=name, prompt=encode(tagi.tokenizer, INPUTS[1]))
    assert by_ids.choices == by_text.choices


def test_a_task_with_choices_answers_with_one_of_them(
    client: httpx.Client, official: openai.OpenAI, tagi: Tagi
) -> None:
    choices = ["a b", "c", "d e f"]
    name = registered(client, FIRST, name="chooses", choices=choices)
    (scores,) = tagi.score_choices(FIRST, [INPUTS[0]], choices)
    best = choices[max(range(3), key=scores.__getitem__)]
    assert official.completions.create(model=name, prompt=INPUTS[0]).choices[0].text == best
    pieces = official.completions.create(model=name, prompt=INPUTS[0], stream=True)
    assert "".join(one.choices[0].text for one in pieces) == best
    found = client.post("/v1/score", json={"task": name, "inputs": [INPUTS[0]]}).json()
    assert found["answers"] == [best]
    torch.testing.assert_close(torch.tensor(found["scores"]), torch.tensor([scores]), rtol=0, atol=1e-5)
    given = client.post("/v1/score", json={"instruction": SECOND, "inputs": [*INPUTS], "choices": ["a", "b"]}).json()
    assert len(given["answers"]) == len(INPUTS) and set(given["answers"]) <= {"a", "b"}


def test_one_call_mixes_tasks_and_instructions(client: httpx.Client, expected: dict[str, list[str]]) -> None:
    name = registered(client, SECOND, name="mixed")
    items = [text if i % 2 else {"input": text, "task": name} for i, text in enumerate(INPUTS)]
    found = client.post("/v1/generate", json={"instruction": FIRST, "inputs": items}).json()["answers"]
    assert [one["text"] for one in found] == [expected[(SECOND, FIRST)[i % 2]][i] for i in range(len(INPUTS))]
    assert {one["finish_reason"] for one in found} <= {"end", "length"} and all(one["tokens"] for one in found)


def test_models_are_the_base_and_its_tasks(client: httpx.Client, official: openai.OpenAI) -> None:
    registered(client, FIRST, name="listed")
    models = {one.id: one.model_dump() for one in official.models.list()}
    assert models[BASE]["parent"] is None and models["listed"]["parent"] == models["listed"]["root"] == BASE


def test_an_adapter_comes_as_files_of_peft_and_llama_cpp(client: httpx.Client, tagi: Tagi, tmp_path: Path) -> None:
    registered(client, FIRST, name="taken")
    file = client.get("/v1/tasks/taken/adapter")
    assert 'filename="taken.zip"' in file.headers["content-disposition"]
    zipfile.ZipFile(io.BytesIO(file.content)).extractall(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == BASE
    lora, own = load_peft(tmp_path, tagi.model.backbone, tagi.config.backbone_fingerprint), tagi.adapt(FIRST).modules
    site = Site("decoder.self", 0, "q")
    torch.testing.assert_close(delta(lora[site]), delta(own[site]))
    assert client.get("/v1/tasks/taken/adapter?format=gguf").content.startswith(b"GGUF")
    assert client.get("/v1/tasks/taken/adapter?format=exe").status_code == 400


def test_many_callers_get_their_own_tasks_answers(client: httpx.Client, tagi: Tagi) -> None:
    """240 requests of 12 tasks by 12 threads: each answer is the engine's of its own task."""
    told = [f"{a} {b} ." for a in "abcd" for b in "efg"]
    names = [registered(client, one, name=f"many-{i}") for i, one in enumerate(told)]
    right = [tagi.solve(one, INPUTS) for one in told]
    assert len({tuple(one) for one in right}) > 6
    wrong: list[tuple[int, int, str]] = []

    def call(thread: int) -> None:
        with httpx.Client(base_url=client.base_url, timeout=60) as own:
            for i in range(20):
                task, text = (thread + i) % len(told), (3 * thread + i) % len(INPUTS)
                body = {"model": names[task], "prompt": INPUTS[text]}
                answer = own.post("/v1/completions", json=body).json()["choices"][0]["text"]
                if answer != right[task][text]:
                    wrong.append((task, text, answer))

    threads = [threading.Thread(target=call, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_state_and_metrics(client: httpx.Client) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").status_code == 200
    client.get("/v1/tasks/nobody")
    text = client.get("/metrics").text
    assert 'tagi_requests_total{method="GET",route="/v1/tasks/{name}",status="404"}' in text
    assert "nobody" not in text, "names are the callers'"
    assert "tagi_waiting 0.0" in text
