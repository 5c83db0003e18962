"""The decoding loop against `transformers`' generate in every decoder-only family: mixed tasks, joins, beams."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import pytest
import torch
from families import ONE_EACH, Pair, Variant, pair, random_lora
from transformers import AutoModelForCausalLM

from answering import MOST, at_random, collected, prompts
from builders import VOCABULARY, small_tagi
from tagi.backbones.base import Prepared
from tagi.backbones.decoder.model import Decoder
from tagi.backbones.decoder.weights import save_decoder
from tagi.backbones.lora import select
from tagi.backbones.sites import Factors, Site
from tagi.data.collate import pad
from tagi.infer.search import GREEDY, Limits
from tagi.infer.tasks import Request

REQUESTS, TASKS = 60, 4
ENDS = tuple(range(2, VOCABULARY, 5))
"""Any of which ends an answer: a random model comes to one of them now and then."""


class Asked(NamedTuple):
    """A task as ours is asked it, and as theirs is: the instruction's tokens in the prompt, LoRA in the weights."""

    prepared: Prepared
    number: int
    model: Any
    instruction: list[int]


def merged(ours: Decoder, modules: Mapping[Site, Factors], folder: Path) -> Any:
    """`transformers`' model with the LoRA of one task added to its weights."""
    model = copy.deepcopy(ours)
    weights = model.site_weights()
    with torch.no_grad():
        for site, factors in modules.items():
            weights[site].add_(factors.scale * factors.b[0] @ factors.a[0])
    save_decoder(model, folder)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def asked(both: Pair, folder: Path) -> list[Asked]:
    """Tasks with LoRA that the instruction is read with, prepared together; one with an instruction alone, one bare."""
    rng, ours = Random(0), both.ours
    instructions = [[rng.randrange(8, VOCABULARY) for _ in range(size)] for size in (5, 1, 9, 3)]
    lora = random_lora(ours, TASKS, seed=7)
    read = ours.read(*pad(instructions), modules=lora)
    adapted = ours.prepare(read, lora)
    each = [
        Asked(adapted, task, merged(ours, select(lora, torch.tensor([task])), folder / str(task)), instruction)
        for task, instruction in enumerate(instructions)
    ]
    alone = ours.prepare(ours.read(*pad(instructions[2:3])), {})
    return [*each, Asked(alone, 0, both.theirs, instructions[2]), Asked(Prepared(1, {}), 0, both.theirs, [])]


def generated(one: Asked, text: list[int], beams: int) -> list[int]:
    """Theirs, of one input alone."""
    ids = torch.tensor([[*one.instruction, *text]])
    tokens = one.model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=MOST, eos_token_id=list(ENDS),
        pad_token_id=0, do_sample=False, num_beams=beams,
    )  # fmt: skip
    row = tokens[0, ids.shape[1] :].tolist()
    end = next((place for place, token in enumerate(row, 1) if token in ENDS), MOST)
    return row[:end]


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("variant", ONE_EACH, ids=lambda variant: variant.name)
def test_parity_of_60_random_requests_of_mixed_tasks_with_generate(
    variant: Variant, beams: int, tmp_path: Path
) -> None:
    both, rng, texts = pair(variant), Random(beams), prompts(REQUESTS, seed=1)
    model = small_tagi("metatrain", backbone=both.ours)
    tasks = asked(both, tmp_path)
    owners = [rng.choice(tasks) for _ in texts]
    generation = replace(GREEDY, beams=beams)
    wanted = [
        Request(i, [text], one.prepared, one.number, "", Limits(ENDS, MOST), generation)
        for i, (text, one) in enumerate(zip(texts, owners, strict=True))
    ]
    found = collected(at_random(model, wanted, 16, rng), REQUESTS)
    assert found == [generated(one, text, beams) for text, one in zip(texts, owners, strict=True)]
    assert len({len(tokens) for tokens in found}) > 3 and len({tuple(tokens) for tokens in found}) > 30
