"""Adapters that keep summaries of an instruction's states: the LoRA that they are, and their way through batches and
files."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch
from families import ONE_EACH, TARGETS, Variant, batch, pair
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_chat import made

from answering import MOST, alone, at_random, collected, lively_decoder, prompts
from builders import model_config, same_adapter, small_decoder, small_tagi, trained, worst
from tagi.backbones.base import Prepared
from tagi.backbones.lora import whole
from tagi.backbones.rows import Rows
from tagi.backbones.sites import StateFactors
from tagi.config import HypernetworkConfig, Target
from tagi.errors import CheckpointError
from tagi.infer.engine import Tagi
from tagi.infer.search import GREEDY, Limits
from tagi.infer.tasks import Request
from tagi.model import adapter as adapters
from tagi.model.adapter import TaskAdapter
from tagi.model.tagi import TagiModel

STATES = HypernetworkConfig(rank=6, alpha=9.0, bias="learned", generator="states", target_modules=TARGETS)
LOGITS = 5e-5  # up to 6.5; worst 8.9e-6 over all families
GRADIENTS = 2e-5  # of the largest one; worst 3.7e-6


def ready(method: str = "tagi", targets: tuple[Target, ...] = TARGETS, seed: int = 0) -> TagiModel:
    """As if it had been trained."""
    config = STATES.model_copy(update={"target_modules": targets})
    return trained(small_tagi(method, hypernetwork=config, backbone=lively_decoder(seed)), seed)


def written_out(model: TagiModel, adapter: TaskAdapter) -> TaskAdapter:
    """The same adapter with A and B of every site in place of summaries."""
    modules = whole(model.modules_of(adapter), model.backbone.site_weights())
    return replace(adapter, modules=modules, summaries=None)


@pytest.mark.parametrize("rows", [Rows(3, 3), Rows(3, 6), Rows.of(torch.tensor([2, 0, 0, 1]), 3)], ids=str)
@pytest.mark.parametrize("variant", ONE_EACH, ids=lambda one: one.name)
def test_parity_with_the_lora_written_out(variant: Variant, rows: Rows) -> None:
    """Logits and gradients, in every family: what is added to the inputs of projections is what A and B add behind."""
    backbone = pair(variant).ours
    targets = TARGETS if backbone.shape.gated else tuple(one for one in TARGETS if one != "gate")
    config = STATES.model_copy(update={"target_modules": targets})
    model = trained(small_tagi("tagi", hypernetwork=config, backbone=backbone)).requires_grad_(False)
    assert model.hypernetwork is not None
    own = model.hypernetwork.requires_grad_(True)
    adapter = model.adapt(*batch([7, 3, 5], seed=1))
    inputs, present = batch([5, 2, 4, 5, 3, 5][: rows.count], seed=2)
    targets_RO, _ = batch([4] * rows.count, seed=3)
    found: list[torch.Tensor] = []
    for one in (adapter, written_out(model, adapter)):
        logits = model.respond(one, inputs, present, targets_RO, rows).logits
        gradients = torch.autograd.grad(logits.square().mean(), list(own.parameters()), retain_graph=True)
        found.append(logits)
        found.append(torch.cat([x.flatten() for x in gradients]))
    assert worst(found[0], found[2]) < LOGITS
    assert worst(found[1], found[3]) < GRADIENTS * float(found[3].abs().max())
    bare = model.respond(adapter.without_modules(), inputs, present, targets_RO, rows).logits
    assert worst(bare, found[0]) > 0.05, "the LoRA does something"


def test_a_merged_adapter_answers_the_same() -> None:
    model = ready()
    adapter = model.adapt(*batch([7], seed=1))
    (ids, mask), rows = batch([5, 3], seed=2), Rows(1, 2)
    one, other = (
        model.backbone.begin(ids, mask, prepared=model.prepare(adapter, merge=merge), rows=rows)[0]
        for merge in (False, True)
    )
    assert worst(one, other) < LOGITS
    with pytest.raises(ValueError, match="only one task's"):
        model.prepare(model.adapt(*batch([7, 3], seed=1)), merge=True)


def test_60_requests_of_mixed_tasks_are_answered_as_each_alone() -> None:
    """Tasks prepared together and alone, with a LoRA of other files and with none, joining and leaving a batch."""
    model, rng, texts = ready(), Random(0), prompts(60, seed=1)
    together = model.adapt(*batch([7, 3, 5], seed=1))
    each = [(model.prepare(together), task) for task in range(3)]
    each += [(model.prepare(model.adapt(*batch([length], seed=length))), 0) for length in (2, 6)]
    elsewhere = replace(written_out(model, together.select(torch.tensor([1]))), origins=())
    each += [(model.prepare(elsewhere), 0), (Prepared(1, {}), 0)]
    owners = [rng.choice(each) for _ in texts]
    wanted = [
        Request(i, [text], prepared, task, "", Limits((2, 7), MOST), GREEDY)
        for i, (text, (prepared, task)) in enumerate(zip(texts, owners, strict=True))
    ]
    found = collected(at_random(model, wanted, 16, rng), 60)
    assert found == [alone(model, one) for one in wanted] and len({tuple(tokens) for tokens in found}) > 30


def test_what_projections_share_is_kept_once() -> None:
    model = ready(targets=("q", "k", "v", "o", "up"))
    adapter = model.adapt(*batch([7, 3], seed=1))
    prepared = model.prepare(adapter)
    for one in (prepared, prepared.select(torch.tensor([1, 0])), Prepared.stack([prepared, prepared])):
        factors = list(one.modules.values())
        assert all(isinstance(own, StateFactors) for own in factors)
        for layer in range(2):
            q, k, v = (
                own.u
                for site, own in one.modules.items()
                if isinstance(own, StateFactors) and site.layer == layer and site.place in ("q", "k", "v")
            )
            assert q is k is v
    assert adapter.summaries is not None and adapter.nbytes == adapter.summaries.nbytes + adapter.instruction.nbytes


@torch.inference_mode()
def test_put_replaces_some_tasks_and_no_others() -> None:
    model = ready()
    first, other = (model.adapt(*batch([7, 3, 5], seed=seed)) for seed in (1, 2))
    prepared = model.prepare(first.select(torch.arange(3)))
    after = prepared.put(torch.tensor([2, 0]), model.prepare(other.select(torch.tensor([1, 2]))))
    expected = adapters.stack([one.select(torch.tensor([task])) for one, task in ((other, 2), (first, 1), (other, 1))])
    for site, theirs in model.modules_of(expected).items():
        own = after.modules[site]
        assert isinstance(own, StateFactors) and isinstance(theirs, StateFactors) and torch.equal(own.u, theirs.u)


@pytest.mark.parametrize(
    "change",
    [lambda a: a, TaskAdapter.without_modules, TaskAdapter.without_instruction],
    ids=["whole", "without lora", "without instruction"],
)
def test_files_and_stacks_bring_it_back(change: Callable[[TaskAdapter], TaskAdapter], tmp_path: Path) -> None:
    tagi = engine()
    adapter = change(tagi.adapt("Name the animal."))
    adapter.save_pretrained(tmp_path / "a")
    same_adapter(tagi.load_adapter(tmp_path / "a"), adapter)
    other = change(tagi.adapt("Say the opposite of the word."))
    for one, again in zip((adapter, other), adapters.unstack(adapters.stack([adapter, other])), strict=True):
        same_adapter(again, one)
    assert adapter == adapters.from_bytes(adapters.to_bytes(adapter), Path("x"))
    assert (adapter == replace(adapter, summaries=None)) == (adapter.summaries is None)
    assert tagi.generate(["a cat"], adapter) == tagi.generate(["a cat"], tagi.load_adapter(tmp_path / "a"))


@torch.inference_mode()
def test_a_lora_of_another_kind_shares_no_stack() -> None:
    tagi = engine()
    adapter = tagi.adapt("Name the animal.")
    for other in (adapter.without_modules(), written_out(tagi.model, adapter)):
        with pytest.raises(ValueError, match="cannot share a batch"):
            adapters.stack([adapter, other])


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda x: x[:, :-1], "tensor summaries has shape (1, 3, 3, 32), not (1, 4, 3, 32)"),
        (lambda x: x[0], "tensor summaries has shape (4, 3, 32), not (1, states, vectors, width)"),
        (lambda x: x.index_fill(3, torch.tensor([5]), float("nan")), "tensor summaries holds values that are"),
    ],
)
def test_damaged_summaries_are_refused_by_name(
    damage: Callable[[torch.Tensor], torch.Tensor], sentence: str, tmp_path: Path
) -> None:
    tagi, file = engine(), tmp_path / "a" / adapters.WEIGHTS
    tagi.adapt("Name the animal.").save_pretrained(tmp_path / "a")
    metadata = metadata_of(file)
    tensors = load_file(file)
    save_file(tensors | {adapters.SUMMARIES: damage(tensors[adapters.SUMMARIES]).contiguous()}, file, metadata)
    with pytest.raises(CheckpointError) as caught:
        tagi.load_adapter(tmp_path / "a")
    assert str(file) in str(caught.value) and sentence in str(caught.value)


def test_a_task_says_the_rank_of_its_lora() -> None:
    assert "rank=6, parameters=384," in repr(engine().task("Name the animal."))  # of 4 states 3 vectors of width 32


def test_a_model_that_reads_no_states_refuses_summaries(tmp_path: Path) -> None:
    adapter = ready().adapt(*batch([5], seed=1))
    with pytest.raises(CheckpointError, match=r"x: tensor summaries is of states that this model's generator"):
        adapters.check_fits(adapter, small_decoder(), Path("x"), attends=True)


def engine() -> Tagi:
    backbone = lively_decoder(3, vocab_size=260, max_positions=256)
    model = trained(small_tagi("tagi", backbone=backbone, hypernetwork=STATES))
    config = model_config(model)
    prompt = config.prompt.model_copy(update={"max_target": 4})
    return Tagi(model, made(), config.model_copy(update={"hypernetwork": STATES, "prompt": prompt}))


def metadata_of(file: Path) -> dict[str, str]:
    with safe_open(file, framework="pt") as opened:
        return dict(opened.metadata())
