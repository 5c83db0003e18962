"""tagi as a model of lm-evaluation-harness: the bare model is its `hf`, an adapter is the engine's."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install '.[eval]'")

from harness_runs import DESCRIPTIONS, KINDS, ROWS, run, said, write_tasks
from lm_eval.api.registry import get_model  # pyright: ignore[reportMissingImports]
from lm_eval.models import huggingface  # pyright: ignore[reportMissingImports]
from test_engine import make
from test_export_decoder import chatting

from tagi import Tagi
from tagi.backbones.gguf import INSTALL, smollm2
from tagi.backbones.language_model import SMOLLM2, find_language_model, save_language_model
from tagi.data.tokenizers import encode
from tagi.data.types import Instruction
from tagi.errors import ConfigError, InputError
from tagi.eval.harness import TagiLM, load_tasks
from tagi.infer.search import GenerationConfig
from tagi.model.adapter import TaskAdapter

HFLM: Any = huggingface.HFLM  # whose decorator hides its parameters
CLOSE = 1e-4  # worst 1.9e-5, of sums down to -80 nats
SHORT = ("choosing", "going_on")
GENERATION = GenerationConfig(max_new_tokens=9, stop=("e", "zz"))


@pytest.fixture(scope="module")
def tagi() -> Tagi:
    return reading(chatting("base"), 100)


def reading(tagi: Tagi, tokens: int) -> Tagi:
    """The same model, so many tokens of an input at most."""
    prompt = tagi.config.prompt.model_copy(update={"max_input": tokens})
    return Tagi(tagi.model, tagi.tokenizer, tagi.config.model_copy(update={"prompt": prompt}))


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """Without unconditional scores, which have no description."""
    return write_tasks(tmp_path, choosing={"metric_list": [{"metric": "acc"}]})


def hf(tagi: Tagi, folder: Path, **more: Any) -> Any:
    """The harness's own model on the same weights."""
    save_language_model(tagi.model.backbone, folder)
    tagi.tokenizer.save_pretrained(folder)
    return HFLM(str(folder), device="cpu", dtype="float32", batch_size=3, **more)


def alike(ours: dict[str, Any], theirs: dict[str, Any], names: tuple[str, ...] = SHORT) -> None:
    for name in names:
        for own, other in zip(said(ours, name), said(theirs, name), strict=True):
            assert [float(score) for score, _ in own] == pytest.approx([float(x) for x, _ in other], abs=CLOSE)
            assert [str(greedy) for _, greedy in own] == [str(greedy) for _, greedy in other]


@pytest.mark.parametrize("chat", [False, True])
def test_the_bare_decoder_scores_and_writes_as_hf(tagi: Tagi, tmp_path: Path, chat: bool) -> None:
    """Also without a context, and where a prompt is too long."""
    folder, how = write_tasks(tmp_path), dict[str, Any](apply_chat_template=chat)
    ours = run(TagiLM(tagi, instruction="prompt"), folder, **how)
    theirs = run(hf(tagi, tmp_path / "model"), folder, **how)
    alike(ours, theirs)
    assert said(ours, "writing") == [[text.strip()] for (text,) in said(theirs, "writing")]
    assert len({text for (text,) in said(ours, "writing")}) > 1
    assert ours["results"]["choosing"]["acc,none"] == theirs["results"]["choosing"]["acc,none"]


def test_the_bare_encoder_decoder_scores_as_hf(tmp_path: Path) -> None:
    tagi = make("tagi", family="t5")
    folder = write_tasks(tmp_path, going_on={"doc_to_text": "a b c d", "doc_to_target": " e f g"})
    ours = run(TagiLM(tagi, instruction="prompt"), folder, SHORT)
    alike(ours, run(hf(tagi, tmp_path / "model", backend="seq2seq"), folder, SHORT))


@pytest.mark.slow
@pytest.mark.skipif(smollm2() is None, reason=f"the default's language model is not here: {INSTALL}")
def test_the_default_scores_as_hf(tmp_path: Path) -> None:
    folder = write_tasks(tmp_path)
    tagi = Tagi.from_pretrained(dtype=torch.float32)
    ours = run(TagiLM(tagi, instruction="prompt"), folder, SHORT)
    base = HFLM(str(find_language_model(SMOLLM2)), device="cpu", dtype="float32")
    alike(ours, run(base, folder, SHORT))


def scored(tagi: Tagi, adapter: TaskAdapter, text: str, answer: str) -> tuple[float, bool]:
    """A continuation's log-likelihood by the engine, token by token."""
    found = tagi.token_scores(adapter, text, encode(tagi.tokenizer, answer), most=1)
    return sum(one.score for one in found), all(one.likeliest[0][0] == one.token for one in found)


def expected(tagi: Tagi, how: str, task: str) -> TaskAdapter:
    """The adapter that a task's rows are answered with."""
    names = list(DESCRIPTIONS)
    told = names[(names.index(task) + 1) % 3] if how == "mismatched" else task
    return tagi.neutral() if how == "empty" else tagi.adapt(DESCRIPTIONS[told])


@pytest.mark.parametrize("how", ["adapter", "both", "mismatched", "empty"])
def test_what_is_asked_is_what_the_engine_says(tagi: Tagi, tasks: Path, how: Any) -> None:
    """Every task by its own adapter, though they share batches."""
    _, loaded, asked_for = load_tasks(tuple(KINDS), tasks)
    model = TagiLM(tagi, instruction=how, tasks=loaded)
    model.check()
    found = run(model, tasks, asked_for)
    distinct: set[float] = set()
    for task in KINDS:
        adapter, before = expected(tagi, how, task), f"{DESCRIPTIONS[task]}\n\n" if how == "both" else ""
        for (text, choices, gold), answers in zip(ROWS, said(found, task), strict=True):
            if task == "writing":
                assert answers == tagi.generate([before + text], adapter, generation=GENERATION)
                continue
            continued = choices if task == "choosing" else [choices[gold]]
            for choice, (score, greedy) in zip(continued, answers, strict=True):
                ours = scored(tagi, adapter, before + text, choice.strip())
                assert (float(score), str(greedy)) == (pytest.approx(ours[0], abs=CLOSE), str(ours[1]))
                distinct.add(round(float(score), 3))
    assert len(distinct) > 8
    assert found["config"]["instruction"] == how


def test_adapters_that_are_not_held_at_once_answer_alike(
    tagi: Tagi, tasks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(TagiLM(tagi, include_path=str(tasks)), tasks)
    monkeypatch.setattr("tagi.eval.harness.TASKS", 1)
    monkeypatch.setattr("tagi.infer.choices.SCORED_TOGETHER", 3)
    alone = run(TagiLM(tagi, include_path=str(tasks)), tasks)
    alike(whole, alone)
    assert said(whole, "writing") == said(alone, "writing")


def test_the_harness_finds_the_model_by_its_name(tagi: Tagi, tasks: Path, tmp_path: Path) -> None:
    """As a program that discovers the entry point does; other models are found beside it."""
    assert get_model("tagi") is TagiLM and get_model("hf") is HFLM
    tagi.save_pretrained(tmp_path / "checkpoint")
    save_language_model(tagi.model.backbone, tmp_path / "base")
    how = f"checkpoint={tmp_path / 'checkpoint'},backbone={tmp_path / 'base'},include_path={tasks},instruction=both"
    by_name = run("tagi", tasks, ["going_on"], model_args=how, batch_size=4)
    alike(by_name, run(TagiLM(tagi, instruction="both", include_path=str(tasks)), tasks, ["going_on"]), ("going_on",))


def test_inputs_that_are_cut_are_counted(tagi: Tagi, tasks: Path) -> None:
    assert run(TagiLM(reading(tagi, 40), include_path=str(tasks)), tasks)["config"]["inputs_cut"] == dict.fromkeys(
        KINDS, 1
    )


@pytest.mark.parametrize(
    ("how", "changes", "message"),
    [
        ("adapter", {"description": ""}, "going_on: has no description to write an adapter from"),
        ("adapter", {"doc_to_text": " "}, "going_on: a prompt has no input behind the task's description"),
        ("adapter", {"doc_to_target": " "}, "going_on: a continuation is empty"),
        ("mismatched", {}, "mismatched: needs at least two tasks"),
        ("prompt", {"output_type": "loglikelihood_rolling", "metric_list": None}, "going_on: scores plain text"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    tagi: Tagi, tmp_path: Path, how: Any, changes: dict[str, Any], message: str
) -> None:
    folder = write_tasks(tmp_path, going_on=changes)
    with pytest.raises((InputError, ConfigError), match=message):
        run(TagiLM(tagi, instruction=how, include_path=str(folder)), folder, ["going_on"])


def test_a_prompt_that_is_not_the_tasks_is_refused(tagi: Tagi, tmp_path: Path) -> None:
    """Scores without a context have no description, and templates of turns go around it."""
    folder = write_tasks(tmp_path)
    with pytest.raises(InputError, match="choosing: a prompt does not begin with"):
        run(TagiLM(tagi, include_path=str(folder)), folder, ["choosing"])
    with pytest.raises(ConfigError, match="apply_chat_template: goes with the instruction prompt only"):
        run(TagiLM(tagi, include_path=str(folder)), folder, ["writing"], apply_chat_template=True)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"until": ["x"], "top_k": 3}, "writing: generation_kwargs: top_k is none of until"),
        ({"until": [], "max_gen_toks": 256}, "writing: max_gen_toks: 256 tokens leave no room"),
    ],
)
def test_generation_that_is_not_possible_is_refused(
    tagi: Tagi, tmp_path: Path, said: dict[str, Any], message: str
) -> None:
    folder = write_tasks(tmp_path, writing={"generation_kwargs": said})
    with pytest.raises(InputError, match=message):
        run(TagiLM(tagi, instruction="prompt"), folder, ["writing"])


def test_what_a_task_says_of_generation_reaches_the_engine(tagi: Tagi, tmp_path: Path) -> None:
    said = {"until": "e", "max_new_tokens": 7, "do_sample": True, "temperature": 0.7, "top_p": 0.9}
    folder = write_tasks(tmp_path, writing={"generation_kwargs": said, "repeats": 2})
    found = run(TagiLM(tagi, include_path=str(folder)), folder, ["writing"])
    generation = GenerationConfig(max_new_tokens=7, stop="e", temperature=0.7, top_p=0.9)
    adapter = tagi.adapt(Instruction(DESCRIPTIONS["writing"]))
    twice = [text for text, _, _ in ROWS for _ in range(2)]
    answers = tagi.generate(twice, adapter, generation=generation)
    drawn = [answer for row in found["samples"]["writing"] for answer in row["resps"][0]]
    assert drawn == answers and len(set(drawn)) > 4
    beams = write_tasks(tmp_path, writing={"generation_kwargs": {"until": "e", "max_gen_toks": 7, "num_beams": 3}})
    searched = replace(generation, beams=3, temperature=0.0, top_p=1.0)
    answers = tagi.generate([text for text, _, _ in ROWS], adapter, generation=searched)
    (model, name) = TagiLM(tagi, include_path=str(beams)), "writing"
    assert [text for row in run(model, beams, [name])["samples"][name] for (text,) in row["resps"]] == answers


def test_an_unknown_way_to_read_descriptions_is_refused(tagi: Tagi) -> None:
    with pytest.raises(ConfigError, match="instruction: 'own' is none of adapter, prompt, both, mismatched, empty"):
        TagiLM(tagi, instruction="own")  # type: ignore[arg-type]
