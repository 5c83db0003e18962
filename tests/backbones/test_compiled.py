"""Compiled steps against plain ones: the same tokens, few graphs, and what CUDA graphs ask for."""

from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from tagi.infer.compiled import Compiled, rounded
from tagi.infer.decode import Request, decode
from tagi.infer.steps import StepInput
from test_decode import END, MOST, collected, lively, prompts, worn
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._guards import TracingContext

from builders import normal, small_causal, small_t5, small_tagi, trained, worst
from cli_runs import Run, mistake
from tagi import Tagi
from tagi.backbones.cache import FixedPast, KeyValue, Past
from tagi.backbones.rows import Rows
from tagi.errors import ConfigError
from tagi.infer.answers import at_hand
from tagi.infer.search import GenerationConfig, Limits
from tagi.model.tagi import TagiModel

CAPACITY = 4


class Counting:
    """A backend that runs graphs as they are, and counts them."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: Any, inputs: Sequence[Tensor]) -> Callable[..., Any]:
        self.graphs += 1
        return graph.forward


def a_model(method: str, layers: int = 2) -> TagiModel:
    return trained(small_tagi(method, backbone=lively(small_t5(5, num_decoder_layers=layers))))


def mixed(model: TagiModel, count: int, seed: int, *, beams: int = 1, members: int = 1) -> list[Request]:
    """Requests of ten tasks, prepared together and apart, with inputs of 1 to 20 tokens."""
    rng = Random(seed)
    tasks = [worn(model, size, seed + number) for number, size in enumerate((5, 1, 1, 3))]
    limits = [Limits(END, most) for most in (3, 6, MOST)]
    texts = prompts(count * members, seed)
    return [
        Request(
            number,
            texts[number * members : (number + 1) * members],
            prepared := rng.choice(tasks),
            rng.randrange(prepared.adapter.tasks),
            "",
            rng.choice(limits),
            GenerationConfig(beams=beams),
        )
        for number in range(count)
    ]


def answered(model: TagiModel, wanted: Sequence[Request], compiled: Compiled | None) -> list[list[int]]:
    """In batches of random size that others join."""
    left, rng = iter(wanted), Random(7)

    def waiting(free: int, idle: bool) -> list[Request]:
        return [one for _, one in zip(range(rng.randint(int(idle), free)), left, strict=False)]

    return collected(decode(model, waiting, CAPACITY, compiled), len(wanted))


def check_equal(model: TagiModel, compiled: Compiled, wanted: Sequence[Request]) -> None:
    plain = answered(model, wanted, None)
    assert answered(model, wanted, compiled) == plain
    assert len({tuple(tokens) for tokens in plain}) > len(wanted) // 3


def warm_up(model: TagiModel, compiled: Compiled) -> None:
    """Every form of batches of up to four: one task, many at once, one at a time, and with most of them done early."""
    one, many = worn(model, 1, 0), worn(model, 4, 1)
    texts = prompts(4, seed=0)
    for tasks in (one, many):
        for mosts in ((MOST,), (MOST,) * 2, (MOST,) * 4, (MOST, 3, 3, 3)):
            wanted = [
                Request(i, [text], tasks, i % tasks.adapter.tasks, "", Limits(END, most, most))
                for i, (text, most) in enumerate(zip(texts, mosts, strict=False))
            ]
            list(decode(model, at_hand(wanted), CAPACITY, compiled))
    for count in (2, 4):
        left = at_hand([Request(i, [texts[i]], one, 0, "", Limits(END, MOST, MOST)) for i in range(count)])
        list(decode(model, lambda free, idle, left=left: left(1, idle), CAPACITY, compiled))


def test_few_graphs_serve_every_request() -> None:
    """Sizes 1, 2 and 4 of one task, its memory beside or inside the inputs, 2 and 4 of many, and the check itself."""
    model, backend = a_model("tagi", layers=1), Counting()
    compiled = Compiled(model.backbone, backend)
    warm_up(model, compiled)
    assert backend.graphs == 3 + 3 + 2 + 1
    check_equal(model, compiled, mixed(model, 50, seed=2))
    assert backend.graphs == 3 + 3 + 2 + 1


def test_beams_go_on_in_the_places_of_others() -> None:
    model = a_model("tagi")
    check_equal(model, Compiled(model.backbone, "eager"), mixed(model, 12, seed=1, beams=3))


OTHERS = [
    ("tagi", 1, 1),
    ("tagi", 3, 1),
    ("lora_only", 1, 1),
    ("lora_only", 3, 1),
    ("hypertuning_prefix", 1, 1),
    ("metatrain", 2, 3),
]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize(("method", "beams", "members"), OTHERS)
def test_tokens_are_those_of_plain_steps_behind_real_backends(
    method: str, beams: int, members: int, backend: str
) -> None:
    model = a_model(method)
    compiled = Compiled(model.backbone, backend)
    check_equal(model, compiled, mixed(model, 60, seed=3, beams=beams, members=members))


class Watching(Compiled):
    """Keeps every step's logits."""

    steps_logits: list[Tensor]

    def logits(self, read: StepInput) -> Tensor:
        self.steps_logits.append(super().logits(read).clone())
        return self.steps_logits[-1]


def worst_logit(backend: Any) -> float:
    """Of five requests of different tasks, from the second token on, against one pass over the whole answers."""
    model = a_model("tagi")
    tasks = worn(model, 5, 0)
    limits = Limits(END, MOST, MOST)
    wanted = [Request(i, [text], tasks, i, "", limits) for i, text in enumerate(prompts(5, seed=1))]
    compiled = Watching(model.backbone, backend)
    compiled.steps_logits = []
    tokens = collected(decode(model, at_hand(wanted), 5, compiled), 5)
    start = model.backbone.shape.decoder_start_token_id
    found = torch.cat(compiled.steps_logits, dim=1)[:5]
    with torch.inference_mode():
        contexts = []
        for one in wanted:
            ids, prepared = torch.tensor(one.prompts), tasks.select(torch.tensor([one.task]))
            context = model.encode_input(ids, torch.ones_like(ids), prepared, Rows(1, 1))
            read = torch.tensor([[start, *tokens[one.number][:-1]]])
            logits, _ = model.backbone.decode(read, context, modules=prepared.adapter.modules, rows=Rows(1, 1))
            contexts.append(logits[:, 1:])
    return worst(found, torch.cat(contexts))


def test_logits_are_those_of_one_pass_over_the_answer() -> None:
    """Worst difference measured 1.2e-6."""
    assert worst_logit("eager") <= 1e-5


@pytest.mark.slow
def test_inductor_s_logits_are_those_of_one_pass_over_the_answer() -> None:
    """Worst difference measured 1.2e-6."""
    assert worst_logit("inductor") <= 1e-5


def test_steps_can_be_cuda_graphs() -> None:
    """Seen without a GPU: only last tokens and lengths come from anywhere; what is written to lies where it lay."""
    loose: list[list[tuple[int, ...]]] = []
    addresses: list[set[tuple[int, ...]]] = []

    def backend(graph: Any, inputs: Sequence[Tensor]) -> Any:
        meta = TracingContext.get().fw_metadata
        assert meta is not None
        static = sorted(set(meta.static_input_indices or ()))
        assert set(meta.mutated_inp_runtime_indices) <= set(static)
        assert all(x.dim() for x in inputs)
        loose.append([tuple(x.shape) for i, x in enumerate(inputs) if i not in static])
        addresses.append(seen := set())

        def run(*given: Tensor) -> Any:
            seen.add(tuple(given[i].data_ptr() for i in static))
            return graph.forward(*given)

        return run

    model = a_model("tagi", layers=1)
    compiled = Compiled(model.backbone, aot_autograd(fw_compiler=backend))
    wanted = mixed(model, 8, seed=4)
    plain = answered(model, wanted, None)
    assert answered(model, wanted, compiled) == plain
    for seen in addresses:
        seen.clear()
    assert answered(model, wanted, compiled) == plain
    assert len(loose) > 2
    assert all({(size, 1), (size,)} == set(shapes) for shapes in loose[1:] for size in [shapes[0][0]])
    assert all(len(seen) == 1 for seen in addresses[1:])


def test_a_fixed_past_is_a_past_whose_rows_have_their_own_lengths() -> None:
    def tokens(rows: int, length: int, seed: int) -> KeyValue:
        return KeyValue(normal(rows, 1, length, 4, seed=seed), normal(rows, 1, length, 4, seed=seed + 1))

    long, short, new = tokens(2, 3, 0), tokens(1, 1, 2), tokens(3, 1, 4)
    fixed = FixedPast.of(Past((long,), 3), 4).beside(FixedPast.of(Past((short,), 1), 8), room=1)
    assert (fixed.capacity, fixed.length.tolist()) == (8, [3, 3, 1])
    read = fixed.append(0, new)
    for row, before in enumerate((long.k[0], long.k[1], short.k[0])):
        assert torch.equal(read.k[row, :, : before.shape[1] + 1], torch.cat((before, new.k[row]), dim=1))
    assert (fixed.distances(1)[:, 0] <= 0).sum(1).tolist() == [4, 4, 2]
    longer = fixed.after((read,))
    assert longer.length.tolist() == [4, 4, 2]
    picked = longer.select(torch.tensor([2, 0]))
    held = longer.layers[0].k.clone()
    turned = longer.reordered(torch.tensor([2, 0, 0]))
    assert turned.layers[0].k is longer.layers[0].k and torch.equal(turned.layers[0].k, held[[2, 0, 0]])
    assert turned.length.tolist() == [2, 4, 4] and torch.equal(picked.layers[0].k, held[[2, 0]])
    for _ in range(9):
        longer = longer.after(longer.layers)
    assert longer.length.tolist() == [7, 7, 7]


def test_rounding() -> None:
    assert [rounded(n, 1) for n in (0, 1, 2, 3, 5, 8, 9)] == [0, 1, 2, 4, 8, 8, 16]
    assert [rounded(n, 64) for n in (0, 1, 64, 65)] == [0, 64, 64, 128]


def test_the_engine_answers_as_before(checkpoint: Path) -> None:
    """Three inputs of one task: its LoRA is folded into the weights."""
    plain = Tagi.from_pretrained(checkpoint)
    compiled = plain.compiled(backend="eager")
    adapter, inputs = plain.adapt("Reverse the list."), ["red wolf", "plum dog saw", "bus"]
    assert compiled.answer(adapter, inputs) == plain.answer(adapter, inputs)
    assert "".join(compiled.stream(adapter, inputs[0])).strip() == plain.generate(inputs[:1], adapter)[0]


def test_what_cannot_be_compiled(tagi: Run, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="only the decoder of a T5"):
        Compiled(small_causal())
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (str(tmp_path / "none"),))
    monkeypatch.setattr("torch._inductor.config.force_disable_caches", True)
    asked = ("run", "Reverse the list.", "--input", "red wolf", "--checkpoint", checkpoint, "--compile")
    mistake(tagi(*asked), "compile: this machine cannot compile for cpu")


@pytest.mark.slow
def test_the_command_line_answers_as_before(tagi: Run, checkpoint: Path) -> None:
    asked = (
        "Reverse the list.",
        "--input",
        "red wolf",
        "--input",
        "plum",
        "--input",
        "bus",
        "--checkpoint",
        checkpoint,
    )
    assert tagi("run", *asked, "--compile").out == tagi("run", *asked).out
    small = ("--tasks", 3, "--instances", 4, "--checkpoint", checkpoint, "--json")
    plain, compiled = (tagi("eval", "micro", *small, *more).json for more in ((), ("--compile",)))
    assert compiled["command"]["compile"] and compiled["by_task"] == plain["by_task"]
