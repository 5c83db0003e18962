"""FLOPs of solving one task: what is done once for it, and what every example costs, for every system.

A task is an instruction, demonstrations and examples of given lengths, in tokens; answers are decoded token by token
with cached keys and values. As in `flops.py`, matrix products only, and to the last digit what torch's counter counts.
"""

from dataclasses import dataclass

from tagi.config import FusionConfig, HypernetworkConfig, Shape, T5Shape
from tagi.methods import Method
from tagi.model import flops
from tagi.model.flops import Lengths


@dataclass(frozen=True, slots=True)
class TaskLengths:
    """Tokens of one task's texts."""

    instruction: int
    """The definition by itself."""
    demonstration: int
    """One demonstration."""
    shots: int
    """Demonstrations that are read."""
    input: int
    """One input with whatever stands around it."""
    target: int
    examples: int = 100


@dataclass(frozen=True, slots=True)
class TaskFlops:
    """FLOPs of a task."""

    adaptation: float
    """Once: encoding the instruction, generating modules, preparing keys and values."""
    answering: float
    """All examples."""

    @property
    def total(self) -> float:
        """Of the task."""
        return self.adaptation + self.answering


@dataclass(frozen=True, slots=True)
class Reading:
    """How long the texts are that a method reads, in tokens."""

    once: int
    """Of what is read once per task."""
    pieces: int
    """Parts of it that are encoded apart."""
    prompt: int
    """Of what the language model reads for one example."""
    prompts: int
    """Such texts of one example, whose predictions are averaged."""


def task_flops(
    shape: Shape, method: Method, generator: HypernetworkConfig, fused: FusionConfig, task: TaskLengths
) -> TaskFlops:
    """What a method spends on a task (Table 2: 100 examples)."""
    reads = reading(method, task)
    lengths = Lengths(1, task.examples * reads.prompts, reads.once, reads.prompt, task.target, reads.pieces)
    passes = flops.forward(shape, method, generator, fused, lengths)
    once = passes.instruction + passes.memory + passes.hypernetwork
    if method.fuses_encoder and isinstance(shape, T5Shape):
        once += flops.fusion_keys(shape, fused, 1, reads.once)
    if method.fuses_decoder and method.lora and isinstance(shape, T5Shape):
        once += flops.cross_keys_lora(shape, generator.rank, 1, reads.once)
    whole = passes.total - _saved(shape, lengths)
    return TaskFlops(once.forward, whole - once.forward)


def floor(shape: T5Shape, task: TaskLengths) -> float:
    """The same language model reading the inputs only: nothing with this decoder can cost less."""
    rows, n = task.examples, task.input
    lengths = Lengths(1, rows, 0, n, task.target)
    read = flops.encoder(shape, rows, n) + flops.cross_keys(shape, rows, n)
    return (read + flops.decoder(shape, rows, task.target, n)).forward - _saved(shape, lengths)


def _saved(shape: Shape, lengths: Lengths) -> float:
    """Self-attention to later tokens, which a whole sequence computes and token by token does not."""
    o = lengths.target
    later = o * o - o * (o + 1) // 2
    return flops.attention(lengths.rows, later, 1, shape.inner_dim).forward * shape.num_decoder_layers


def reading(method: Method, task: TaskLengths) -> Reading:
    """What a method reads of a task."""
    shown = task.shots * task.demonstration
    if not method.prompt:
        return Reading(task.instruction + shown if method.reads_instruction_once else 0, 1, task.input, 1)
    alone = task.instruction + task.input
    if method.demonstrations == "fused":
        return Reading(shown, max(task.shots, 1), alone, 1)
    if method.demonstrations == "averaged" and task.shots:
        return Reading(0, 1, alone + task.demonstration, task.shots)
    return Reading(0, 1, alone + shown, 1)
