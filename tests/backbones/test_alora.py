"""Task adapters and encoded instructions on decoder-only models: against `peft`, and against themselves."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from families import ONE_EACH, TARGETS, VARIANTS, Pair, alone, bare, batch, pair, random_lora, their_logits, untold
from peft import LoraConfig, get_peft_model
from torch import Tensor

from builders import normal, worst
from tagi.backbones.base import Prepared
from tagi.backbones.encoded import EncodedInstruction
from tagi.backbones.rows import Rows
from tagi.backbones.sites import Factors, Site
from tagi.config import Target
from tagi.errors import ConfigError, InputError

# Each bound is a small multiple of the worst difference seen over all variants (fp32, CPU, logits up to about 40).
PEFT = 5e-5  # worst 1.2e-5
ALONE = 2e-4  # worst 4.6e-5
MERGED = 1e-4  # worst 1.7e-5
GRADIENTS = 2e-5  # of the largest entry of the tensor's gradient, or of 1; worst 3.1e-6
GROUPED = tuple(one for one in VARIANTS if one.family in ("llama", "mistral", "qwen2", "qwen3"))


@pytest.fixture(params=VARIANTS, ids=lambda variant: variant.name)
def both(request: pytest.FixtureRequest) -> Pair:
    return pair(request.param)


def targets_of(both: Pair) -> tuple[Target, ...]:
    return TARGETS if both.ours.shape.gated else tuple(one for one in TARGETS if one != "gate")


def one_task(modules: Mapping[Site, Factors], task: int) -> dict[Site, Factors]:
    return {site: Factors(f.a[task : task + 1], f.b[task : task + 1], f.scale) for site, f in modules.items()}


def one_read(
    read: EncodedInstruction, ids: Tensor, mask: Tensor, both: Pair, modules: Mapping[Site, Factors] | None
) -> EncodedInstruction:
    """The same instruction, read by itself without padding."""
    return both.ours.read(ids[mask][None], mask[mask][None], modules=modules)


def peft_of(both: Pair, lora: Mapping[Site, Factors], invocation: list[int] | None = None) -> Any:
    """`transformers`' model with one task's LoRA in `peft`, plain or activated by tokens."""
    wanted = {both.ours.site_name(site): factors for site, factors in lora.items()}
    first = next(iter(lora.values()))
    rank = first.a.shape[1]
    config = LoraConfig(
        r=rank,
        lora_alpha=int(first.scale * rank),
        target_modules=list(wanted),
        task_type="CAUSAL_LM",
        fan_in_fan_out=both.variant.family == "gpt2",
        alora_invocation_tokens=invocation,
    )
    model: Any = get_peft_model(copy.deepcopy(both.theirs), config)
    for name, factors in wanted.items():
        layer: Any = model.base_model.model.get_submodule(name)
        with torch.no_grad():
            layer.lora_A["default"].weight.copy_(factors.a[0])
            layer.lora_B["default"].weight.copy_(factors.b[0])
    return model.eval()


def scores(both: Pair, prepared: Prepared, rows: Rows, ids: Tensor, mask: Tensor, targets: Tensor) -> Tensor:
    """By one pass, after a check that steps give the same."""
    found = both.ours.score(ids, mask, targets, prepared=prepared, rows=rows)
    logits, cache = both.ours.begin(ids, mask, prepared=prepared, rows=rows, room=3)
    steps = [logits]
    for token in targets[:, :-1].T:
        logits, cache = both.ours.step(token, cache)
        steps.append(logits)
    assert worst(torch.stack(steps, dim=1), found) < ALONE
    return found


def for_peft(both: Pair, *, every: bool, activated: bool = False) -> tuple[Target, ...]:
    """Targets that `transformers`' model has as modules of their own: GPT-2's q, k and v are one."""
    if both.variant.family == "gpt2":
        return ("o", "up", "down") if every else ("o",)
    if not every:
        return ("q", "v")
    # OPT's MLP sees no rows any more, so that peft cannot tell which of its tokens are activated.
    return TARGETS[:4] if activated and both.variant.family == "opt" else targets_of(both)


@pytest.mark.parametrize("every", [False, True])
def test_alora_lora_alone_equals_plain_peft(both: Pair, every: bool) -> None:
    lora = random_lora(both.ours, 1, seed=3, targets=for_peft(both, every=every))
    ids, mask = batch([11] * 3, seed=0)
    targets, _ = batch([5] * 3, seed=1)
    whole = torch.cat((ids, targets), dim=1)
    expected = their_logits(peft_of(both, lora), whole, torch.ones_like(whole).bool())[:, 10:-1]
    assert worst(scores(both, bare(lora), alone(3), ids, mask, targets), expected) < PEFT
    assert worst(expected, their_logits(both.theirs, whole, torch.ones_like(whole).bool())[:, 10:-1]) > 0.1


@pytest.mark.parametrize("adapted", [False, True])
def test_alora_prefix_and_lora_equal_peft_on_the_whole_prompt(both: Pair, adapted: bool) -> None:
    """A prefix of the base model is activated LoRA, one of the adapted model plain LoRA, on instruction and input."""
    lora = random_lora(both.ours, 1, seed=3, targets=for_peft(both, every=True, activated=not adapted))
    instruction, _ = batch([9], seed=4)
    ids, mask = batch([7, 4, 1], seed=5, side="left")
    targets, _ = batch([5] * 3, seed=1)
    read = both.ours.read(instruction, torch.ones_like(instruction), modules=lora if adapted else None)
    found = scores(both, both.ours.prepare(read, lora), alone(3), ids, mask, targets)
    for row, real, answer, ours in zip(ids, mask, targets, found, strict=True):
        whole = torch.cat((instruction[0], row[real], answer))[None]
        model = peft_of(both, lora, None if adapted else [*row[real].tolist(), *answer.tolist()])
        expected = model(input_ids=whole, use_cache=False).logits[0, -6:-1]
        assert worst(ours, expected) < PEFT


def test_alora_zero_lora_and_empty_instruction_change_no_bit(both: Pair) -> None:
    ids, mask = batch([12, 3, 8, 9], seed=2)
    targets, _ = batch([6] * 4, seed=3)
    zero = {s: replace(f, b=f.b * 0) for s, f in random_lora(both.ours, 2, seed=3, targets=targets_of(both)).items()}
    plain = scores(both, bare(), alone(4), ids, mask, targets)
    for empty in (torch.zeros(2, 0, dtype=torch.long), torch.zeros(2, 5, dtype=torch.long)):
        prepared = both.ours.prepare(both.ours.read(empty, torch.zeros_like(empty)), zero)
        assert torch.equal(scores(both, prepared, Rows(2, 4), ids, mask, targets), plain)


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("owner", [[0, 0, 1, 1, 2, 2], [2, 0, 0, 1, 0, 2], [0, 0, 0, 0, 0, 1]])
@pytest.mark.parametrize("side", ["left", "right"])
def test_alora_a_batch_of_different_tasks_equals_each_alone(
    both: Pair, adapted: bool, owner: list[int], side: str
) -> None:
    tasks = max(owner) + 1
    lora: dict[Site, Factors] = random_lora(both.ours, tasks, seed=3, targets=targets_of(both))
    lora |= random_modules(both, tasks)
    instructions, told = batch([9, 0, 4][:tasks], seed=4, side=side)
    ids, mask = batch([7, 4, 1, 12, 3, 3], seed=5, side=side)
    targets, _ = batch([4] * 6, seed=1)
    rows = Rows.of(torch.tensor(owner), tasks)
    read = both.ours.read(instructions, told, modules=lora if adapted else None)
    found = scores(both, both.ours.prepare(read, lora), rows, ids, mask, targets)
    for row, task in enumerate(owner):
        own = one_task(lora, task)
        single = one_read(read, instructions[task], told[task], both, own if adapted else None)
        prepared = both.ours.prepare(single, own)
        real = mask[row]
        expected = both.ours.score(
            ids[row][real][None], real[real][None], targets[row][None], prepared=prepared, rows=alone(1)
        )
        assert worst(found[row], expected[0]) < ALONE


def random_modules(both: Pair, tasks: int) -> dict[Site, Factors]:
    """Random generated prefixes and bottleneck adapters at every site of theirs."""
    modules: dict[Site, Factors] = {}
    for number, site in enumerate(both.ours.sites("prefix") + both.ours.sites("bottleneck")):
        wide, out = both.ours.site_shape(site)
        a = normal(tasks, 2, wide, seed=50 + number)
        modules[site] = Factors(a, normal(tasks, out, 2, seed=90 + number) * 0.3, 0.5)
    return modules


def test_alora_generated_prefix_and_bottleneck_change_the_answer(both: Pair) -> None:
    ids, mask = batch([7, 4], seed=5)
    targets, _ = batch([4] * 2, seed=1)
    plain = scores(both, bare(), alone(2), ids, mask, targets)
    modules = random_modules(both, 1)
    for place in ("prefix", "bottleneck"):
        chosen = {site: factors for site, factors in modules.items() if site.place == place}
        found = scores(both, both.ours.prepare(untold(both.ours), chosen), alone(2), ids, mask, targets)
        assert worst(found, plain) > 0.05


def test_alora_merged_equals_unmerged(both: Pair) -> None:
    lora = random_lora(both.ours, 1, seed=3, targets=targets_of(both))
    merged = copy.deepcopy(both.ours)
    weights = merged.site_weights()
    with torch.no_grad():
        for site, factors in lora.items():
            weights[site] += factors.scale * factors.b[0] @ factors.a[0]
    whole = {s: replace(f, merged=w) for (s, f), w in ((one, weights[one[0]]) for one in lora.items())}
    ids, mask = batch([12, 3, 8], seed=2)
    targets, _ = batch([6] * 3, seed=3)
    expected = scores(both, bare(lora), alone(3), ids, mask, targets)
    assert worst(merged.score(ids, mask, targets, prepared=bare(), rows=alone(3)), expected) < MERGED
    assert worst(scores(both, bare(whole), alone(3), ids, mask, targets), expected) < MERGED


@pytest.mark.parametrize("checkpointing", [False, True])
def test_alora_gradients_reach_lora_and_the_instruction(both: Pair, checkpointing: bool) -> None:
    """Through a prefix of the adapted model, as through the whole prompt in one row."""
    lora = random_lora(both.ours, 2, seed=3)
    instruction, told = batch([6, 6], seed=4)
    ids, mask = batch([5] * 4, seed=5)
    targets, _ = batch([3] * 4, seed=1)
    rows = Rows(2, 4)

    def gradients(shared: bool) -> list[Tensor]:
        own = {s: replace(f, a=f.a.clone().requires_grad_(), b=f.b.clone().requires_grad_()) for s, f in lora.items()}
        if shared:
            prepared = both.ours.prepare(both.ours.read(instruction, told, modules=own), own)
            logits = both.ours.score(ids, mask, targets, prepared=prepared, rows=rows, checkpointing=checkpointing)
        else:
            prompts = torch.cat((rows.pick(instruction), ids), dim=1)
            logits = both.ours.score(prompts, torch.ones_like(prompts), targets, prepared=bare(own), rows=rows)
        logits.log_softmax(-1).gather(-1, targets[..., None]).sum().backward()
        found = [grad for f in own.values() for grad in (f.a.grad, f.b.grad)]
        assert all(grad is not None for grad in found)
        return [grad for grad in found if grad is not None]

    for ours, expected in zip(gradients(True), gradients(False), strict=True):
        scale = max(float(expected.abs().max()), 1.0)
        assert worst(ours / scale, expected / scale) < GRADIENTS


def test_alora_caches_of_different_tasks_join_and_part(both: Pair) -> None:
    lora = random_lora(both.ours, 3, seed=3)
    instructions, told = batch([9, 2, 4], seed=4)
    prepared = both.ours.prepare(both.ours.read(instructions, told), lora)
    ids, mask = batch([7, 4, 1, 12], seed=5)
    targets, _ = batch([5] * 4, seed=1)
    owner = torch.tensor([2, 0, 1, 1])
    expected = both.ours.score(ids, mask, targets, prepared=prepared, rows=Rows.of(owner, 3))
    halves = [
        both.ours.begin(ids[part], mask[part], prepared=prepared, rows=Rows.of(owner[part], 3))[1]
        for part in (torch.tensor([0, 1]), torch.tensor([2, 3]))
    ]
    _, first = both.ours.step(targets[:2, 0], halves[0])
    _, second = both.ours.step(targets[2:, 0], halves[1])
    joined = first.stack(second, prepared, Rows.of(owner, 3), room=2)
    logits, joined = both.ours.step(targets[:, 1], joined)
    assert worst(logits, expected[:, 2]) < ALONE
    kept = torch.tensor([3, 1, 1])
    logits, _ = both.ours.step(targets[kept, 2], joined.select(kept))
    assert worst(logits, expected[kept, 3]) < ALONE


@pytest.mark.parametrize("variant", GROUPED, ids=lambda variant: variant.name)
def test_alora_q_and_v_differ_in_width_under_grouped_heads(variant: Any) -> None:
    model = pair(variant).ours
    shape = model.shape
    widths = {site.place: model.site_shape(site) for site in model.sites("lora", ("q", "k", "v", "o"))}
    assert widths["q"] == (shape.d_model, shape.q_dim) and widths["v"] == (shape.d_model, shape.kv_dim)
    assert widths["o"] == (shape.q_dim, shape.d_model)
    for site, weight in model.site_weights().items():
        assert tuple(reversed(weight.shape)) == model.site_shape(site)


@pytest.mark.parametrize("variant", ONE_EACH, ids=lambda variant: variant.name)
def test_alora_more_tokens_than_positions_are_refused(variant: Any) -> None:
    model = pair(variant).ours
    read = model.read(*batch([100], seed=0))
    ids, mask = batch([29], seed=0)
    with pytest.raises(InputError, match="instruction, input and answer have 129 tokens together, more than the 128"):
        model.begin(ids, mask, prepared=model.prepare(read, {}), rows=alone(1))


def test_alora_a_gate_is_no_target_of_an_mlp_without_one() -> None:
    model = pair(next(one for one in VARIANTS if one.name == "gpt2")).ours
    with pytest.raises(ConfigError, match="has no gate"):
        model.sites("lora", ("q", "gate"))
