"""Every system as one point in one design space; the paper's Table 1 is computed from these definitions."""

import difflib
from dataclasses import dataclass

from tagi.config import Part
from tagi.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Method:
    """What a system does with an instruction, and what of it is trained."""

    name: str
    title: str
    prompt: bool = False
    """The language model reads the instruction with every input."""
    lora: bool = False
    """A hypernetwork writes LoRA from the instruction."""
    fuses_encoder: bool = False
    """Cross-attention to the encoded instruction in the encoder (Eq. 1)."""
    fuses_decoder: bool = False
    """The encoded instruction stands before the encoded input for the decoder: (I; F)."""
    pretrained: bool = False
    """The parts that read the instruction are pretrained on plain text (Eq. 3)."""
    trainable: tuple[Part, ...] = ()
    """What its finetuning trains in the paper's setting; a run's config may say otherwise."""

    @property
    def reads_instruction_once(self) -> bool:
        """The instruction is encoded once per task, not once per input."""
        return self.lora or self.fuses_encoder or self.fuses_decoder

    @property
    def fuses_instruction(self) -> bool:
        """Table 1, "Instr. Fus.": every input meets the instruction's own tokens in the encoder."""
        return self.prompt or self.fuses_encoder

    @property
    def low_inference_cost(self) -> bool:
        """Table 1, "Low Infer. Cost": no input pays for reading the instruction."""
        return not self.prompt


METHODS = (
    Method("no_ft", "No FT", prompt=True),
    Method("metatrain", "Tk-Instruct / T0 (metatraining)", prompt=True, trainable=("backbone",)),
    Method("no_instruction", "No instruction (control)", trainable=("backbone",)),
    Method(
        "lora_only",
        "Generated LoRA only (HyperTuning-LoRA)",
        lora=True,
        pretrained=True,
        trainable=("hypernetwork",),
    ),
    Method(
        "lora_concat",
        "LoRA + decoder concatenation (HINT-like)",
        lora=True,
        fuses_decoder=True,
        pretrained=True,
        trainable=("backbone", "hypernetwork"),
    ),
    Method(
        "fusion_only",
        "Fusion + decoder concatenation, no LoRA",
        fuses_encoder=True,
        fuses_decoder=True,
        pretrained=True,
        trainable=("fusion",),
    ),
    Method(
        "tagi",
        "TAGI",
        lora=True,
        fuses_encoder=True,
        fuses_decoder=True,
        pretrained=True,
        trainable=("hypernetwork", "fusion"),
    ),
)


def get(name: str) -> Method:
    """The method of that name.

    Raises:
        ConfigError: unknown; names the nearest.
    """
    by_name = {method.name: method for method in METHODS}
    if name not in by_name:
        near = difflib.get_close_matches(name, by_name, n=1)
        hint = f", did you mean {near[0]}?" if near else f"; there are {', '.join(by_name)}"
        raise ConfigError(f"method: {name!r} is unknown{hint}")
    return by_name[name]
