"""Our decoder-only model against `transformers` in every family: logits, gradients, padding, caches, files."""

import copy
import json
from pathlib import Path

import pytest
import torch
from families import VARIANTS, Pair, alone, bare, batch, pair, their_logits
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from builders import worst
from tagi.backbones.decoder.weights import load_decoder, named, save_decoder

# Each bound is a small multiple of the worst difference seen over all variants (fp32, CPU).
LOGITS = 5e-5  # worst 6.8e-6
GRADIENTS = 2e-4  # of the largest entry of the tensor's gradient; worst 4.4e-5
CACHED = 5e-5  # worst 5.4e-6
BFLOAT16 = 0.2  # of the largest logit; worst 0.075


@pytest.fixture(params=VARIANTS, ids=lambda variant: variant.name)
def both(request: pytest.FixtureRequest) -> Pair:
    return pair(request.param)


def scored(both: Pair, ids: Tensor, mask: Tensor, targets: Tensor, *, checkpointing: bool = False) -> Tensor:
    return both.ours.score(ids, mask, targets, prepared=bare(), rows=alone(len(ids)), checkpointing=checkpointing)


def expected_scores(both: Pair, ids: Tensor, mask: Tensor, targets: Tensor) -> Tensor:
    """Every row by itself, without padding, in `transformers`."""
    rows: list[Tensor] = []
    for row, real, answer in zip(ids, mask, targets, strict=True):
        whole = torch.cat((row[real], answer))[None]
        logits = their_logits(both.theirs, whole, torch.ones_like(whole).bool())
        rows.append(logits[0, int(real.sum()) - 1 : -1])
    return torch.stack(rows)


@pytest.mark.parametrize("side", ["left", "right"])
def test_parity_of_scores_with_padding_on_either_side(both: Pair, side: str) -> None:
    ids, mask = batch([25, 7, 18, 1], seed=0, side=side)
    targets, _ = batch([6] * 4, seed=1)
    assert worst(scored(both, ids, mask, targets), expected_scores(both, ids, mask, targets)) < LOGITS


@pytest.mark.parametrize("length", [1, 6])
def test_parity_of_targets_that_share_an_input(both: Pair, length: int) -> None:
    """Choices of one prompt, which is read once for all of them."""
    ids, mask = batch([12, 5, 9], seed=0)
    targets, _ = batch([length] * 4, seed=1)
    owner = torch.tensor([2, 0, 0, 2])
    found = both.ours.score(ids, mask, targets, prepared=bare(), rows=alone(3), owner=owner)
    assert worst(found, expected_scores(both, ids[owner], mask[owner], targets)) < LOGITS


def test_parity_of_padded_batches_with_padded_batches_of_theirs(both: Pair) -> None:
    ids, mask = batch([25, 7, 18, 1], seed=0, side="left")
    logits, _ = both.ours.begin(ids, mask, prepared=bare(), rows=alone(4))
    assert worst(logits, their_logits(both.theirs, ids, mask)[:, -1]) < LOGITS


def test_parity_of_what_is_read_with_padding_on_either_side(both: Pair) -> None:
    for side in ("left", "right"):
        ids, mask = batch([25, 7, 18, 1], seed=0, side=side)
        read = both.ours.read(ids, mask)
        expected = [
            their_logits(both.theirs, row[real][None], real[real][None])[0] for row, real in zip(ids, mask, strict=True)
        ]
        assert worst(both.ours.logits(read.hidden[mask]), torch.cat(expected)) < LOGITS


@pytest.mark.parametrize("checkpointing", [False, True])
def test_parity_of_the_gradient_of_every_parameter(both: Pair, checkpointing: bool) -> None:
    ids, mask = batch([9, 14], seed=0)
    targets, _ = batch([6, 6], seed=1)
    both.theirs.zero_grad()
    both.ours.zero_grad()
    for logits in (
        expected_scores(both, ids, mask, targets),
        scored(both, ids, mask, targets, checkpointing=checkpointing),
    ):
        F.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
    theirs = {name: parameter.grad for name, parameter in both.theirs.named_parameters()}
    gradients = copy.deepcopy(both.ours)  # a model whose weights are the gradients, for files' names of them
    with torch.no_grad():
        for kept, parameter in zip(gradients.parameters(), both.ours.parameters(), strict=True):
            assert parameter.grad is not None
            kept.copy_(parameter.grad)
    found = named(gradients, torch.float32)
    assert found.keys() == theirs.keys()
    for name, gradient in theirs.items():
        assert gradient is not None, name
        # A bias of keys that are not rotated moves all scores of a query alike: its gradient is nothing but rounding.
        scale = max(float(gradient.abs().max()), 1e-3)
        assert worst(found[name] / scale, gradient / scale) < GRADIENTS, name


def test_parity_of_steps_with_one_pass(both: Pair) -> None:
    ids, mask = batch([12, 3, 8], seed=2)
    targets, _ = batch([7, 7, 7], seed=3)
    for room in (0, 3, 20):
        logits, cache = both.ours.begin(ids, mask, prepared=bare(), rows=alone(3), room=room)
        steps = [logits]
        for token in targets[:, :-1].T:
            logits, cache = both.ours.step(token, cache)
            steps.append(logits)
        assert worst(torch.stack(steps, dim=1), expected_scores(both, ids, mask, targets)) < CACHED


def test_parity_of_greedy_tokens_in_random_batches(both: Pair) -> None:
    generator = torch.Generator().manual_seed(4)
    for start in range(0, 60, 6):
        lengths = torch.randint(1, 20, (6,), generator=generator).tolist()
        ids, mask = batch(lengths, seed=start, side="left")
        logits, cache = both.ours.begin(ids, mask, prepared=bare(), rows=alone(6))
        found = [logits.argmax(1)]
        for _ in range(9):
            logits, cache = both.ours.step(found[-1], cache)
            found.append(logits.argmax(1))
        expected = both.theirs.generate(
            input_ids=ids, attention_mask=mask.long(), do_sample=False, max_new_tokens=10, eos_token_id=None
        )
        assert torch.equal(torch.stack(found, dim=1), expected[:, ids.shape[1] :])


def test_parity_after_rows_leave_join_and_repeat(both: Pair) -> None:
    (ids, mask), (more, more_mask) = batch([12, 3, 8], seed=2), batch([2, 15], seed=5)
    targets, _ = batch([6] * 4, seed=6)
    _, cache = both.ours.begin(ids, mask, prepared=bare(), rows=alone(3))
    _, cache = both.ours.step(targets[:3, 0], cache)
    _, other = both.ours.begin(more, more_mask, prepared=bare(), rows=alone(2), room=5)
    kept = torch.tensor([2, 0])
    joined = cache.select(kept).stack(other, bare(), alone(4), room=4)
    steps: list[Tensor] = []
    for token in targets[:, 1:].T:
        logits, joined = both.ours.step(token, joined)
        steps.append(logits)
    found = torch.stack(steps, dim=1)
    for row in range(4):
        begun = (
            [ids[kept[row]][mask[kept[row]]], targets[kept[row], :1]]
            if row < 2
            else [more[row - 2][more_mask[row - 2]]]
        )
        whole = torch.cat([*begun, targets[row, 1:]])[None]
        expected = their_logits(both.theirs, whole, torch.ones_like(whole).bool())[0, -5:]
        assert worst(found[row], expected) < CACHED


def test_parity_of_bfloat16(both: Pair) -> None:
    ids, mask = batch([12, 3, 8], seed=2)
    targets, _ = batch([6] * 3, seed=3)
    exact = expected_scores(both, ids, mask, targets)
    ours = load_decoder(both.folder, torch.bfloat16)
    found = ours.score(ids, mask, targets, prepared=bare(), rows=alone(3))
    assert found.dtype == torch.bfloat16
    scale = exact.detach().abs().max()
    assert worst(found.float() / scale, exact / scale) < BFLOAT16


def test_parity_of_saved_files(both: Pair, tmp_path: Path) -> None:
    save_decoder(both.ours, tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    expected = both.theirs.state_dict()
    assert theirs.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in theirs.state_dict().items())
    assert load_decoder(tmp_path).shape == both.ours.shape
    ids, mask = batch([9, 14], seed=0, side="left")
    assert worst(their_logits(theirs, ids, mask), their_logits(both.theirs, ids, mask)) == 0.0


def test_parity_of_sharded_files(both: Pair, tmp_path: Path) -> None:
    both.theirs.save_pretrained(tmp_path, max_shard_size="8KB")
    assert len(json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]) > 1
    ours = load_decoder(tmp_path).state_dict()
    assert all(torch.equal(tensor, ours[name]) for name, tensor in both.ours.state_dict().items())
