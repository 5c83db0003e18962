"""The engine: one decoding loop for every caller, whatever else is in the batch."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from answering import FAMILIES, answering
from builders import model_config, small_decoder, small_tagi, token_batch, worst
from tagi import Tagi
from tagi.backbones.language_model import save_language_model
from tagi.backbones.rows import Rows
from tagi.config import PromptConfig
from tagi.data.collate import assemble
from tagi.data.tokenizers import word_level
from tagi.data.types import Demonstration, Instruction
from tagi.errors import CheckpointError, InputError
from tagi.files import DiskError
from tagi.infer.engine import teacher_forced
from tagi.infer.search import GenerationConfig
from tagi.model import adapter as adapters
from tagi.model import checkpoint
from tagi.model.adapter import Origin, TaskAdapter

WORDS = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p"]
INSTRUCTIONS = ("a b c d .", "e f .", "g h i j k l m n .")
INPUTS = ("a", "b c d", "e f g h i j", "k l", "a a a a a a a a a a")


KINDS = [("tagi", "t5"), ("tagi", "decoder"), ("lora_only", "decoder")]
BOTH = pytest.mark.parametrize("family", FAMILIES)


def make(method: str = "tagi", seed: int = 0, family: str = "t5", **prompt: object) -> Tagi:
    model = answering(method, family, seed)
    settings = PromptConfig.model_validate({"style": "plain", "max_target": 8} | prompt)
    return Tagi(model, word_level([*WORDS, "."]), model_config(model).model_copy(update={"prompt": settings}))


@pytest.mark.parametrize(("method", "family"), KINDS)
def test_an_answer_does_not_depend_on_what_else_is_in_the_batch(method: str, family: str) -> None:
    tagi = make(method, family=family)
    stacked = adapters.stack([tagi.adapt(text) for text in INSTRUCTIONS])
    owners = [i % 3 for i in range(15)]
    inputs = [INPUTS[i % 5] for i in range(15)]
    mixed = tagi.generate(inputs, stacked, tasks=owners)
    alone = [
        tagi.generate([text], tagi.adapt(INSTRUCTIONS[task]))[0] for text, task in zip(inputs, owners, strict=True)
    ]
    assert mixed == alone
    assert len(set(alone)) > 3  # the random model does tell tasks and inputs apart


@pytest.mark.parametrize(("method", "family"), KINDS)
def test_adapting_together_equals_adapting_alone(method: str, family: str) -> None:
    """Worst difference measured 2e-7 on values of order 1: padding takes no part."""
    tagi = make(method, family=family)
    together = tagi.adapt_all([Instruction(text) for text in INSTRUCTIONS])
    for number, text in enumerate(INSTRUCTIONS):
        alone = tagi.adapt(text)
        read, whole = alone.instruction, together.instruction.select(torch.tensor([number]))
        length = int(read.mask.sum())
        assert int(whole.mask.sum()) == length
        for ours, theirs in zip(whole.cut(length).tensors, read.tensors, strict=True):
            torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=0)
        for site, factors in alone.modules.items():
            torch.testing.assert_close(together.modules[site].a[number], factors.a[0], atol=2e-6, rtol=0)
            torch.testing.assert_close(together.modules[site].b[number], factors.b[0], atol=2e-6, rtol=0)


@BOTH
def test_the_prompt_method_reads_the_instruction_with_every_input(family: str) -> None:
    tagi = make("metatrain", family=family)
    answers = {text: tagi.solve(Instruction(text), ["a b c"])[0] for text in INSTRUCTIONS}
    assert len(set(answers.values())) > 1
    assert tagi.generate(["a b c"], tagi.neutral()) != [] and tagi.collator.input(None, "a b c") == [3, 4, 5, 1]
    with pytest.raises(InputError, match="no adapter"):
        tagi.adapt("a b .")


@BOTH
@pytest.mark.parametrize("method", ["tagi", "metatrain"])
def test_demonstrations_are_shown_as_many_as_asked(method: str, family: str) -> None:
    tagi = make(method, family=family, demonstrations=2)
    told = Instruction(INSTRUCTIONS[0], (Demonstration("a b", "b a"), Demonstration("c d e", "e d c")))
    bare, one = replace(told, demonstrations=()), replace(told, demonstrations=told.demonstrations[:1])

    def read(model: Tagi, told: Instruction) -> tuple[list[int], list[int]]:
        return model.collator.instruction(told), model.collator.input(told, "f")

    assert read(tagi.showing(0), told) == read(tagi, bare) != read(tagi, told)
    assert read(tagi.showing(1), told) == read(tagi, one) != read(tagi, told)
    assert tagi.showing(0).solve(told, ["f"]) == tagi.solve(bare, ["f"])
    assert tagi.config.prompt.demonstrations == 2


@BOTH
def test_forward_gives_logits_with_gradients(family: str) -> None:
    tagi = make(family=family)
    batch = assemble(
        [[3, 4, 1], [5, 1]], [[3, 1], [4, 5, 1], [6, 1]], [[3, 1], [4, 1], [5, 6, 1]], torch.tensor([0, 0, 1])
    )
    output = teacher_forced(tagi.model, batch)
    assert output.logits.shape == (3, 3, tagi.model.backbone.shape.vocab_size)
    output.logits.sum().backward()
    hypernetwork = tagi.model.hypernetwork
    assert hypernetwork is not None and all(one.grad is not None for one in hypernetwork.parameters())


@pytest.mark.parametrize(("method", "family"), KINDS)
def test_a_checkpoint_and_its_adapters_come_back(method: str, family: str, tmp_path: Path) -> None:
    tagi = make(method, family=family)
    tagi.save_pretrained(tmp_path / "checkpoint")
    again = Tagi.from_pretrained(tmp_path / "checkpoint")
    adapter = tagi.adapt(INSTRUCTIONS[0])
    expected = tagi.generate(INPUTS, adapter)
    assert again.generate(INPUTS, again.adapt(INSTRUCTIONS[0])) == expected
    adapter.save_pretrained(tmp_path / "adapter")
    assert again.generate(INPUTS, again.load_adapter(tmp_path / "adapter")) == expected


@BOTH
def test_an_adapter_of_another_checkpoint_is_neither_opened_nor_applied(family: str, tmp_path: Path) -> None:
    tagi, other = make(family=family), make(seed=5, family=family)
    adapter = tagi.adapt(INSTRUCTIONS[0])
    adapter.save_pretrained(tmp_path)
    fingerprints = f"fingerprint {tagi.fingerprint()}, not {other.fingerprint()}"
    with pytest.raises(CheckpointError, match=f"{tmp_path}: another checkpoint wrote it .{fingerprints}"):
        other.load_adapter(tmp_path)
    for foreign in (adapter, TaskAdapter.from_pretrained(tmp_path), adapter.without_instruction()):
        with pytest.raises(CheckpointError, match=f"another checkpoint wrote it .{fingerprints}"):
            other.generate(INPUTS, foreign)
    mixed = adapters.stack([other.adapt(INSTRUCTIONS[1]), adapter])
    with pytest.raises(CheckpointError, match="another checkpoint"):
        other.generate(INPUTS[:2], mixed, tasks=[0, 1])


def test_an_adapter_knows_its_instruction() -> None:
    tagi = make(demonstrations=1)
    told = Instruction("a b .", (Demonstration("c", "d"),))
    origin = Origin(checkpoint=tagi.fingerprint(), method="tagi", definition="a b .", demonstrations=(("c", "d"),))
    assert tagi.adapt(told).origins == (origin,)
    stacked = tagi.adapt_all([Instruction("c ."), told])
    assert [one.origins for one in adapters.unstack(stacked)][1] == (origin,)


def test_the_weights_are_hashed_once_and_only_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    tagi, calls = make(), []
    monkeypatch.setattr("tagi.model.checkpoint.fingerprint", lambda model: calls.append(model) or "abc")
    tagi.solve(INSTRUCTIONS[0], INPUTS)
    assert calls == [], "what training evaluates need not say whose it is"
    tagi.generate(INPUTS, tagi.adapt(INSTRUCTIONS[0]))
    tagi.adapt(INSTRUCTIONS[1])
    assert calls == [tagi.model]


@BOTH
@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
def test_opening_hashes_every_tensor_once_as_it_is_written(
    family: str, dtype: torch.dtype | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tagi, hashed = make(family=family), list[Tensor]()
    save_language_model(tagi.model.backbone, tmp_path / "llm")
    tagi.config = model_config(tagi.model, backbone=str(tmp_path / "llm"))
    tagi.save_pretrained(tmp_path / "checkpoint")
    plain = checkpoint._hash
    monkeypatch.setattr(checkpoint, "_hash", lambda tensor: hashed.append(tensor) or plain(tensor))
    opened = Tagi.from_pretrained(tmp_path / "checkpoint", dtype=dtype)
    (origin,) = opened.adapt(INSTRUCTIONS[0]).origins
    assert len(hashed) == len(tagi.model.state_dict())
    assert {tensor.dtype for tensor in opened.model.state_dict().values()} == {dtype or torch.float32}
    assert origin.checkpoint == opened.fingerprint() == checkpoint.fingerprint(tagi.model)


@BOTH
def test_an_adapter_is_applied_at_another_precision(family: str, tmp_path: Path) -> None:
    tagi = make(family=family)
    tagi.save_pretrained(tmp_path / "checkpoint")
    tagi.adapt(INSTRUCTIONS[0]).save_pretrained(tmp_path / "adapter")
    half = Tagi.from_pretrained(tmp_path / "checkpoint", dtype=torch.bfloat16)
    adapter = half.load_adapter(tmp_path / "adapter")
    assert adapter.instruction.hidden.dtype == torch.bfloat16
    batch = token_batch([9, 4], seed=0)
    exact, bare, found = (
        model.model.respond(applied, *batch, batch[0], Rows(1, 2)).logits.float()
        for model, applied in ((tagi, tagi.load_adapter(tmp_path / "adapter")), (tagi, tagi.neutral()), (half, adapter))
    )
    largest = float(exact.detach().abs().max())
    assert 0 < worst(found, exact) < 0.05 * largest < worst(bare, exact)  # 0.011 and 0.55 of the largest measured
    assert len(half.generate(INPUTS, adapter)) == len(INPUTS)


def test_only_a_checkpoint_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "work.txt").write_text("mine")
    for save in (make().save_pretrained, make().adapt("a .").save_pretrained):
        with pytest.raises(DiskError, match="exists and is no"):
            save(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["work.txt"]


def test_notes_say_what_was_cut_and_what_is_unknown() -> None:
    tagi = make(max_instruction=6, max_input=4, demonstrations=2)
    shown = Instruction("a b .", (Demonstration("c", "d"), Demonstration("e", "f g h")))
    notes = tagi.notes(shown, ["a b c d e f", "zebra a"])
    assert any("demonstrations" in note for note in notes)
    assert "input 1 has 7 tokens and was cut to its first 4" in notes
    assert any("zebra" in note for note in notes)
    assert make().notes(Instruction("a b ."), ["c d"]) == []


@pytest.mark.parametrize(("instruction", "text", "sentence"), [("", "a", "instruction"), ("a .", " ", "input")])
def test_empty_text_is_refused(instruction: str, text: str, sentence: str) -> None:
    with pytest.raises(InputError, match=f"{sentence} is empty"):
        make().solve(Instruction(instruction), [text])


@BOTH
def test_beams_and_draws_reach_the_search(family: str) -> None:
    tagi = make(family=family)
    adapter = tagi.adapt(INSTRUCTIONS[2])
    drawn = GenerationConfig(temperature=2.0, seed=3)
    many = tagi.generate([INPUTS[1]] * 20, adapter, generation=drawn)
    assert len(set(many)) > 10 and many == tagi.generate([INPUTS[1]] * 20, adapter, generation=drawn)
    assert tagi.generate([INPUTS[1]], adapter, generation=drawn) == many[:1]
    assert tagi.generate([INPUTS[1]] * 20, adapter, generation=replace(drawn, seed=4)) != many
    assert tagi.generate(INPUTS, adapter, generation=GenerationConfig(beams=4)) != tagi.generate(INPUTS, adapter)


@BOTH
def test_an_answer_ends_before_a_stop_string_or_says_that_it_was_cut(family: str) -> None:
    tagi, drawn = make(family=family), GenerationConfig(temperature=2.0)
    adapter = tagi.adapt(INSTRUCTIONS[2])
    (whole,) = tagi.answer(adapter, [INPUTS[1]], generation=drawn)
    words = whole.text.split()
    stop = next(word for word in words[1:] if word != words[0])
    (ended,) = tagi.answer(adapter, [INPUTS[1]], generation=replace(drawn, stop=("zzz", stop)))
    assert ended.text == whole.text[: whole.text.index(stop)].strip() != ""
    assert ended.finish_reason == "stop" and ended.tokens < whole.tokens
    (never,) = tagi.answer(adapter, [INPUTS[1]], generation=replace(drawn, stop=("zzz",), max_new_tokens=3))
    assert (never.finish_reason, never.tokens) == ("length", 3) and whole.text.startswith(never.text) and never.text


@BOTH
def test_a_stream_is_the_answer_in_pieces(family: str) -> None:
    tagi = make(family=family)
    adapter = tagi.adapt(INSTRUCTIONS[2])
    for text in INPUTS:
        for generation in (
            GenerationConfig(temperature=2.0),
            GenerationConfig(temperature=2.0, stop=("b c", "d")),
            GenerationConfig(beams=2),
        ):
            (answer,) = tagi.answer(adapter, [text], generation=generation)
            pieces = list(tagi.stream(adapter, text, generation=generation))
            assert "".join(pieces) == answer.text and all(pieces)
    assert max(len(list(tagi.stream(adapter, text))) for text in INPUTS) > 3, "greedy answers come piece by piece too"


def test_no_inputs_and_very_many() -> None:
    tagi = make(max_target=2)
    adapter = tagi.adapt(INSTRUCTIONS[0])
    assert tagi.generate([], adapter) == []
    assert tagi.generate([INPUTS[0]] * 10_000, adapter) == tagi.generate([INPUTS[0]], adapter) * 10_000


def test_an_answer_of_a_decoder_ends_at_its_last_position_and_a_longer_instruction_is_refused() -> None:
    """Of 24 positions: what instruction and input leave is the answer's, and none is left of a longer instruction."""
    model = small_tagi("tagi", backbone=small_decoder(max_positions=24, eos_token_ids=(47,)))
    settings = PromptConfig(style="plain", max_target=100)
    tagi = Tagi(model, word_level([*WORDS, "."]), model_config(model).model_copy(update={"prompt": settings}))
    told = tagi.adapt("a b c d e .")
    answers = tagi.answer(told, ["a b", "a b c d e f g h", "b " * 16])
    assert [(one.finish_reason, one.tokens) for one in answers] == [("length", 15), ("length", 9), ("length", 1)]
    answers = tagi.answer(told, ["a b", "b " * 17], keep_errors=True)
    assert answers[0].tokens == 15 and "have 24 tokens" in str(answers[1].error)
    with pytest.raises(InputError, match="have 26 tokens together, more than the 24 positions"):
        tagi.adapt("a " * 25 + ".")
