"""The decoding loop against `transformers`' generate, whatever joins and leaves the batch meanwhile."""

from dataclasses import replace
from random import Random
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import T5ForConditionalGeneration
from transformers.generation.logits_process import TemperatureLogitsWarper, TopPLogitsWarper

from answering import (
    END,
    FAMILIES,
    MOST,
    alone,
    answering,
    at_random,
    backbone,
    bare,
    collected,
    prompts,
    requests,
    together,
    told,
)
from builders import normal, small_tagi
from tagi.backbones.cache import ROOM, KeyValue, Past
from tagi.backbones.t5.model import T5
from tagi.backbones.t5.weights import save_t5
from tagi.data.collate import pad
from tagi.errors import InputError
from tagi.infer.search import GREEDY, GenerationConfig, Limits, sample
from tagi.infer.tasks import Request
from tagi.model.tagi import TagiModel

METHODS = [
    *((name, "t5") for name in ("tagi", "hint", "hypertuning_prefix", "lora_only", "metatrain")),
    *((name, "decoder") for name in ("tagi", "hint", "hypertuning_prefix", "lora_only", "lora_concat", "metatrain")),
]


@pytest.fixture(scope="module")
def plain() -> TagiModel:
    return small_tagi("metatrain", backbone=backbone("t5"))


@pytest.fixture(scope="module")
def theirs(plain: TagiModel, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("plain")
    save_t5(cast(T5, plain.backbone), folder)
    return T5ForConditionalGeneration.from_pretrained(folder).eval()


def generated(model: Any, texts: list[list[int]], **how: Any) -> list[list[int]]:
    """Theirs, in batches in the order of the requests."""
    found: list[list[int]] = []
    for start in range(0, len(texts), 25):
        ids, mask = pad(texts[start : start + 25])
        tokens = model.generate(
            ids, attention_mask=mask, max_new_tokens=MOST, eos_token_id=END, pad_token_id=0, do_sample=False, **how
        )
        found += [row[: row.index(END) + 1] if END in row else row[:MOST] for row in tokens[:, 1:].tolist()]
    return found


HOW = [
    (GREEDY, {}),
    (GenerationConfig(beams=2), {"num_beams": 2}),
    (GenerationConfig(beams=4), {"num_beams": 4}),
    (GenerationConfig(beams=3, length_penalty=2.0), {"num_beams": 3, "length_penalty": 2.0}),
    (GenerationConfig(beams=3, length_penalty=-1.0), {"num_beams": 3, "length_penalty": -1.0}),
    (GenerationConfig(min_new_tokens=6), {"min_new_tokens": 6}),
    (GenerationConfig(beams=3, min_new_tokens=5), {"num_beams": 3, "min_new_tokens": 5}),
]


@pytest.mark.parametrize("eager", [True, False])
@pytest.mark.parametrize(("generation", "how"), HOW, ids=lambda value: str(value)[:40])
def test_parity_of_500_random_requests_in_random_batches_with_generate(
    plain: TagiModel, theirs: Any, generation: GenerationConfig, how: dict[str, Any], eager: bool
) -> None:
    """Each alone in theirs; here in batches of random size, where others join as some finish."""
    count = 500 if eager and generation in (GREEDY, GenerationConfig(beams=4)) else 60
    texts, rng = prompts(count, seed=1), Random(2)
    found = collected(at_random(plain, requests(bare(plain), texts, generation), 24, rng, eager=eager), count)
    assert found == generated(theirs, texts, **how)
    lengths = {len(tokens) for tokens in found}
    assert len(lengths) > 3 and len({tuple(tokens) for tokens in found}) > 10


@pytest.mark.parametrize(("name", "family"), METHODS)
@pytest.mark.parametrize("beams", [1, 3])
def test_answers_do_not_depend_on_who_joins_and_leaves(name: str, family: str, beams: int) -> None:
    """Tasks prepared together and apart, in batches that others join, against every request alone."""
    model, rng = answering(name, family), Random(3)
    prepared = [told(model, count, seed) for seed, count in enumerate((5, 1, 1, 3))]
    limits = [Limits((END,), most) for most in (3, 6, MOST)]
    wanted = []
    for number, text in enumerate(prompts(40, seed=4)):
        tasks = rng.choice(prepared)
        task = rng.randrange(tasks.tasks)
        wanted.append(Request(number, [text], tasks, task, "", rng.choice(limits), GenerationConfig(beams=beams)))
    expected = [alone(model, one) for one in wanted]
    for eager in (True, False):
        assert collected(at_random(model, wanted, 8, rng, eager=eager), len(wanted)) == expected
    assert len({tuple(tokens) for tokens in expected}) > 10


@pytest.mark.parametrize("family", FAMILIES)
def test_averaged_prompts_and_beams_share_a_batch(family: str) -> None:
    model = answering("metatrain", family)
    prepared, texts = told(model, 1, 0), prompts(30, seed=5)
    limits, generation = Limits((END,), MOST), GenerationConfig(beams=2)
    wanted = [Request(i, texts[3 * i : 3 * i + 3], prepared, 0, "", limits, generation) for i in range(10)]
    found = together(model, wanted, 4)
    same = [replace(one, prompts=[one.prompts[0]] * 3) for one in wanted]
    single = [replace(one, prompts=[one.prompts[0]]) for one in wanted]
    assert found == [alone(model, one) for one in wanted]
    assert together(model, same) == together(model, single) != found


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.floats(0.2, 2.0), st.floats(0.05, 1.0))
def test_the_nucleus_is_that_of_transformers(seed: int, temperature: float, top_p: float) -> None:
    """What can be drawn, and how likely, from the same scores, counted on a grid of 500 numbers.

    A grid tells a share to one part in 500 (2.0e-3); worst measured 1.6e-3.
    """
    scores = torch.randn(1, 12, generator=torch.Generator().manual_seed(seed)) * 2
    warped = TopPLogitsWarper(top_p)(None, TemperatureLogitsWarper(temperature)(None, scores))  # type: ignore[arg-type]
    expected = warped.softmax(-1)[0]
    grid = (torch.arange(500) + 0.5) / 500
    drawn = torch.tensor([sample(scores[0], temperature, top_p, float(u)) for u in grid])
    found = drawn.bincount(minlength=12) / 500
    assert float((found - expected).abs().max()) <= 1 / 500 + 1e-6  # fp32 rounds the ends of a share by 2.4e-7


@pytest.mark.parametrize("family", FAMILIES)
def test_draws_depend_on_seed_and_input_alone(family: str) -> None:
    model = answering("metatrain", family)
    wanted = requests(bare(model), prompts(20, seed=6), GenerationConfig(temperature=1.5))
    found = together(model, wanted, 7)
    assert found == [alone(model, one) for one in wanted]
    other = [replace(one, seed=f"other {one.seed}") for one in wanted]
    assert sum(a != b for a, b in zip(found, together(model, other), strict=True)) > 10
    cold = [replace(one, generation=GenerationConfig(temperature=1e-4)) for one in wanted]
    greedy = [replace(one, generation=GREEDY) for one in wanted]
    assert together(model, cold) == together(model, greedy)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"beams": 0}, "beams: 0"),
        ({"temperature": -1.0}, "temperature: -1.0"),
        ({"top_p": 0.0}, "top_p: 0.0"),
        ({"top_p": 1.5}, "top_p: 1.5"),
        ({"beams": 2, "temperature": 1.0}, "does not sample"),
        ({"max_new_tokens": 0}, "max_new_tokens: 0"),
        ({"max_new_tokens": 3, "min_new_tokens": 4}, "max_new_tokens: 3 is not at least 4"),
        ({"stop": ("a", "")}, "stop string is empty"),
    ],
)
def test_a_search_that_makes_no_sense_is_refused(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        GenerationConfig(**values)


def test_a_past_has_room_grows_and_drops_what_nobody_sees() -> None:
    layer = KeyValue(normal(2, 1, 3, 4, seed=0), normal(2, 1, 3, 4, seed=1))
    new = KeyValue(normal(2, 1, 1, 4, seed=2), normal(2, 1, 1, 4, seed=3))
    roomy, full = Past((layer,), 3).with_room(2), Past((layer,), 3)
    for past in (roomy, full):
        read = past.append(0, new)
        assert torch.equal(read.k, torch.cat((layer.k, new.k), dim=2)) and past.after((read,)).length == 4
    assert roomy.after((roomy.append(0, new),)).layers is roomy.layers  # in place
    assert full.with_room(10**20).layers[0].k.shape[2] == 3 + ROOM  # of a limit beyond all memory
    short = Past((new,), 1)
    both = full.stack(short, room=1)
    assert both.length == 3 and both.first is not None and both.first.tolist() == [0, 0, 2, 2]
    hidden = both.hidden(4)
    assert hidden is not None and hidden[2, 0, 0].tolist() == [True, True, False, False]
    left = both.select(torch.tensor([3, 2]))
    assert left.length == 1 and left.first is not None and left.first.tolist() == [0, 0]
    assert torch.equal(left.layers[0].k[:, :, :1], new.k[[1, 0]])
