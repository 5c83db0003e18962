"""What a person should know before trusting answers: what was cut, what was left out, what a model cannot read."""

from collections.abc import Iterator, Sequence

from tagi.data.collate import Collator, Reading
from tagi.data.tokenizers import unknown_words
from tagi.data.types import Instruction


def of(collator: Collator, instruction: Instruction | None, inputs: Sequence[str], numbers: Sequence[int]) -> list[str]:
    """Notes on an instruction and inputs, which are called by their numbers."""
    named = [f"input {number}" for number in numbers]
    each = [collator.read_with(instruction, text) for text in inputs]
    once = [] if instruction is None else collator.read_once(instruction)
    found = [] if instruction is None else list(_undemonstrated(len(instruction.demonstrations), once, each, named))
    for number, reading in enumerate(once, 1):
        found += _cut(collator, f"demonstration {number}" if collator.method.apart else "the instruction", reading)
    prompted = instruction is not None and collator.method.prompt
    for name, readings in zip(named, each, strict=True):
        most = max(readings, key=collator.dropped)
        found += _cut(collator, f"the prompt of {name}" if prompted else name, most)
    texts = [*_written(collator, instruction), *inputs]
    if unknown := [word for text in texts for word in unknown_words(collator.tokenizer, text)]:
        found.append(f"the model does not know {', '.join(dict.fromkeys(unknown))}")
    return found


def _undemonstrated(
    asked: int, once: Sequence[Reading], each: Sequence[Sequence[Reading]], named: Sequence[str]
) -> Iterator[str]:
    """Of demonstrations that are not read for want of room, or because the model was trained with fewer."""
    apart = sum(one.demonstrations for one in once)
    shown = [apart + sum(one.demonstrations for one in readings) for readings in each] or [apart]
    if len(set(shown)) == 1:
        if shown[0] < asked:
            yield f"the model reads {shown[0]} of the {asked} demonstrations"
        return
    for name, count in zip(named, shown, strict=True):
        if count < asked:
            yield f"with {name} the model reads {count} of the {asked} demonstrations"


def _cut(collator: Collator, name: str, reading: Reading) -> Iterator[str]:
    if dropped := collator.dropped(reading):
        length = collator.length(reading)
        where = "" if len(reading.parts) > 1 else "its first "
        yield f"{name} has {length} tokens and was cut to {where}{length - dropped}"


def _written(collator: Collator, instruction: Instruction | None) -> Iterator[str]:
    """What a person wrote of an instruction, as far as it is read."""
    if instruction is not None:
        yield instruction.definition
        for one in instruction.demonstrations[: collator.prompt.demonstrations]:
            yield from (one.input, one.output)
