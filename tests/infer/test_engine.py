"""The engine: one decoding loop for every caller, whatever else is in the batch."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from builders import model_config, small_tagi, token_batch, trained, worst
from tagi import Tagi
from tagi.backbones.rows import Rows
from tagi.config import PromptConfig
from tagi.data.collate import assemble
from tagi.data.tokenizers import word_level
from tagi.data.types import Demonstration, Instruction
from tagi.errors import CheckpointError, InputError
from tagi.files import DiskError
from tagi.infer.search import GenerationConfig
from tagi.model import adapter as adapters
from tagi.model.adapter import Origin, TaskAdapter

WORDS = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p"]
INSTRUCTIONS = ("a b c d .", "e f .", "g h i j k l m n .")
INPUTS = ("a", "b c d", "e f g h i j", "k l", "a a a a a a a a a a")


def make(method: str = "tagi", seed: int = 0, **prompt: object) -> Tagi:
    model = trained(small_tagi(method, seed=seed))
    with torch.no_grad():  # a random T5 with tied embeddings would only repeat its last token
        for name, parameter in model.backbone.named_parameters():
            if name.startswith("decoder.") and name.endswith((".o.weight", ".v.weight")):
                parameter.mul_(4.0)
    settings = PromptConfig.model_validate({"style": "plain", "max_target": 8} | prompt)
    return Tagi(model, word_level([*WORDS, "."]), model_config(model).model_copy(update={"prompt": settings}))


def test_an_answer_does_not_depend_on_what_else_is_in_the_batch() -> None:
    tagi = make()
    stacked = adapters.stack([tagi.adapt(text) for text in INSTRUCTIONS])
    owners = [i % 3 for i in range(15)]
    inputs = [INPUTS[i % 5] for i in range(15)]
    mixed = tagi.generate(inputs, stacked, tasks=owners)
    alone = [
        tagi.generate([text], tagi.adapt(INSTRUCTIONS[task]))[0] for text, task in zip(inputs, owners, strict=True)
    ]
    assert mixed == alone
    assert len(set(alone)) > 3  # the random model does tell tasks and inputs apart


def test_adapting_together_equals_adapting_alone() -> None:
    """Worst difference measured 2e-7 on values of order 1: padding takes no part."""
    tagi = make()
    together = tagi.adapt_all([Instruction(text) for text in INSTRUCTIONS])
    for number, text in enumerate(INSTRUCTIONS):
        alone = tagi.adapt(text)
        length = int(alone.mask.sum())
        torch.testing.assert_close(together.memory[number, :length], alone.memory[0], atol=2e-6, rtol=0)
        for site, factors in alone.modules.items():
            torch.testing.assert_close(together.modules[site].a[number], factors.a[0], atol=2e-6, rtol=0)
            torch.testing.assert_close(together.modules[site].b[number], factors.b[0], atol=2e-6, rtol=0)


def test_the_prompt_method_reads_the_instruction_with_every_input() -> None:
    tagi = make("metatrain")
    answers = {text: tagi.solve(Instruction(text), ["a b c"])[0] for text in INSTRUCTIONS}
    assert len(set(answers.values())) > 1
    assert tagi.generate(["a b c"], tagi.neutral()) != [] and tagi.collator.input(None, "a b c") == [3, 4, 5, 1]
    with pytest.raises(InputError, match="no adapter"):
        tagi.adapt("a b .")


@pytest.mark.parametrize("method", ["tagi", "metatrain"])
def test_demonstrations_are_shown_as_many_as_asked(method: str) -> None:
    tagi = make(method, positives=2)
    told = Instruction(INSTRUCTIONS[0], (Demonstration("a b", "b a"), Demonstration("c d e", "e d c")))
    bare, one = replace(told, positives=()), replace(told, positives=told.positives[:1])

    def read(model: Tagi, told: Instruction) -> tuple[list[int], list[int]]:
        return model.collator.instruction(told), model.collator.input(told, "f")

    assert read(tagi.showing(0), told) == read(tagi, bare) != read(tagi, told)
    assert read(tagi.showing(1), told) == read(tagi, one) != read(tagi, told)
    assert tagi.showing(0).solve(told, ["f"]) == tagi.solve(bare, ["f"])
    assert tagi.config.prompt.positives == 2


def test_forward_gives_logits_with_gradients() -> None:
    tagi = make()
    batch = assemble(
        [[3, 4, 1], [5, 1]], [[3, 1], [4, 5, 1], [6, 1]], [[3, 1], [4, 1], [5, 6, 1]], torch.tensor([0, 0, 1])
    )
    output = tagi.forward(batch)
    assert output.logits.shape == (3, 3, tagi.model.backbone.shape.vocab_size)
    output.logits.sum().backward()
    hypernetwork = tagi.model.hypernetwork
    assert hypernetwork is not None and hypernetwork.head_a.grad is not None


def test_a_checkpoint_and_its_adapters_come_back(tmp_path: Path) -> None:
    tagi = make()
    tagi.save_pretrained(tmp_path / "checkpoint")
    again = Tagi.from_pretrained(tmp_path / "checkpoint")
    adapter = tagi.adapt(INSTRUCTIONS[0])
    expected = tagi.generate(INPUTS, adapter)
    assert again.generate(INPUTS, again.adapt(INSTRUCTIONS[0])) == expected
    adapter.save_pretrained(tmp_path / "adapter")
    assert again.generate(INPUTS, again.load_adapter(tmp_path / "adapter")) == expected


def test_an_adapter_of_another_checkpoint_is_neither_opened_nor_worn(tmp_path: Path) -> None:
    tagi, other = make(), make(seed=5)
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
    tagi = make(positives=1)
    told = Instruction("a b .", (Demonstration("c", "d"),))
    origin = Origin(checkpoint=tagi.fingerprint(), method="tagi", definition="a b .", positives=(("c", "d"),))
    assert tagi.adapt(told).origins == (origin,)
    stacked = tagi.adapt_all([Instruction("c ."), told])
    assert [one.origins for one in adapters.unstack(stacked)][1] == (origin,)
    assert tagi.told(told).origins == (), "what training evaluates need not say whose it is"


def test_the_weights_are_hashed_once_and_only_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    tagi, calls = make(), []
    monkeypatch.setattr("tagi.model.checkpoint.fingerprint", lambda model: calls.append(model) or "abc")
    tagi.generate(INPUTS, tagi.told(Instruction(INSTRUCTIONS[0])))
    assert calls == []
    tagi.generate(INPUTS, tagi.adapt(INSTRUCTIONS[0]))
    tagi.adapt(INSTRUCTIONS[1])
    assert calls == [tagi.model]


def test_an_adapter_is_worn_at_another_precision(tmp_path: Path) -> None:
    tagi = make()
    tagi.save_pretrained(tmp_path / "checkpoint")
    tagi.adapt(INSTRUCTIONS[0]).save_pretrained(tmp_path / "adapter")
    half = Tagi.from_pretrained(tmp_path / "checkpoint", dtype=torch.bfloat16)
    adapter = half.load_adapter(tmp_path / "adapter")
    assert adapter.instruction.hidden.dtype == torch.bfloat16
    batch = token_batch([9, 4], seed=0)
    exact, bare, found = (
        model.model.respond(worn, *batch, batch[0], Rows(1, 2)).logits.float()
        for model, worn in ((tagi, tagi.load_adapter(tmp_path / "adapter")), (tagi, tagi.neutral()), (half, adapter))
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
    tagi = make(max_instruction=6, max_input=4, positives=2)
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


def test_beams_and_draws_reach_the_search() -> None:
    tagi = make()
    adapter = tagi.adapt(INSTRUCTIONS[2])
    drawn = GenerationConfig(temperature=2.0, seed=3)
    many = tagi.generate([INPUTS[1]] * 20, adapter, generation=drawn)
    assert len(set(many)) > 10 and many == tagi.generate([INPUTS[1]] * 20, adapter, generation=drawn)
    assert tagi.generate([INPUTS[1]], adapter, generation=drawn) == many[:1]
    assert tagi.generate([INPUTS[1]] * 20, adapter, generation=replace(drawn, seed=4)) != many
    assert tagi.generate(INPUTS, adapter, generation=GenerationConfig(beams=4)) != tagi.generate(INPUTS, adapter)


def test_an_answer_ends_before_a_stop_string_or_says_that_it_was_cut() -> None:
    tagi, drawn = make(), GenerationConfig(temperature=2.0)
    adapter = tagi.adapt(INSTRUCTIONS[2])
    (whole,) = tagi.answer(adapter, [INPUTS[1]], generation=drawn)
    words = whole.text.split()
    stop = next(word for word in words[1:] if word != words[0])
    (ended,) = tagi.answer(adapter, [INPUTS[1]], generation=replace(drawn, stop=("zzz", stop)))
    assert ended.text == whole.text[: whole.text.index(stop)].strip() != ""
    assert ended.reason == "stop" and ended.tokens < whole.tokens
    (never,) = tagi.answer(adapter, [INPUTS[1]], generation=replace(drawn, stop=("zzz",), max_new_tokens=3))
    assert (never.reason, never.tokens) == ("length", 3) and whole.text.startswith(never.text) and never.text


def test_a_stream_is_the_answer_in_pieces() -> None:
    tagi = make()
    adapter = tagi.adapt(INSTRUCTIONS[2])
    for text in INPUTS:
        for decoding in (
            GenerationConfig(temperature=2.0),
            GenerationConfig(temperature=2.0, stop=("b c", "d")),
            GenerationConfig(beams=2),
        ):
            (answer,) = tagi.answer(adapter, [text], generation=decoding)
            pieces = list(tagi.stream(adapter, text, generation=decoding))
            assert "".join(pieces) == answer.text and all(pieces)
    pieces = list(tagi.stream(adapter, INPUTS[1]))
    assert len(pieces) > 3


def test_no_inputs_and_very_many() -> None:
    tagi = make(max_target=2)
    adapter = tagi.adapt(INSTRUCTIONS[0])
    assert tagi.generate([], adapter) == []
    assert tagi.generate([INPUTS[0]] * 10_000, adapter) == tagi.generate([INPUTS[0]], adapter) * 10_000
