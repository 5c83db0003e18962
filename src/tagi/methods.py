"""Every system as one point in one design space; the paper's Tables 1 and 8 are computed from these definitions."""

import difflib
from dataclasses import dataclass, replace
from typing import Literal

from tagi.config import ModuleKind, Part, RunConfig
from tagi.errors import ConfigError

Demonstrations = Literal["together", "fused", "averaged"]


@dataclass(frozen=True, slots=True)
class Method:
    """What a system does with an instruction, and what of it is trained."""

    name: str
    title: str
    prompt: bool = False
    """The language model reads the instruction with every input."""
    writes: tuple[ModuleKind, ...] = ()
    """What a hypernetwork writes from the instruction."""
    one_lora: bool = False
    """LoRA is learned, one for all tasks, and written from no instruction."""
    own_encoder: bool = False
    """An encoder of its own, which starts as a copy of the language model's and is trained, reads the instruction."""
    fuses_encoder: bool = False
    """Cross-attention to the encoded instruction in the encoder (Eq. 1)."""
    fuses_decoder: bool = False
    """The encoded instruction stands before the encoded input for the decoder: (I; F)."""
    demonstrations: Demonstrations | None = None
    """How a method that cannot do without demonstrations reads them: together in one text; each encoded apart and fused
    in the decoder; or each in a prompt of its own, log-probabilities averaged. None: a text may show some or none."""
    pretrained: bool = False
    """The parts that read the instruction are pretrained on plain text (Eq. 3)."""
    distilled: bool = False
    """Learns from teachers that were trained on instances: their logits and their weights (Eqs. 4 and 5)."""
    on_target: bool = False
    """Trained on the target task itself, not on other tasks."""
    trainable: tuple[Part, ...] = ()
    """What its finetuning trains in the paper's setting; a run's config may say otherwise."""

    @property
    def lora(self) -> bool:
        """The hypernetwork writes LoRA."""
        return "lora" in self.writes

    @property
    def apart(self) -> bool:
        """Demonstrations are encoded one by one, without the input."""
        return self.demonstrations == "fused"

    @property
    def reads_instruction_once(self) -> bool:
        """The instruction, or its demonstrations, are encoded once per task, not once per input."""
        return bool(self.writes) or self.fuses_encoder or self.fuses_decoder

    @property
    def adapts(self) -> bool:
        """All that the method does with an instruction is done once per task: an adapter holds it."""
        return self.reads_instruction_once and not self.prompt

    @property
    def meta_trained(self) -> bool:
        """Table 8, "Meta-Train": something is trained, on other tasks than those it is scored on."""
        return bool(self.trainable) and not self.on_target

    @property
    def concatenates_instruction(self) -> bool:
        """Table 8, "Instr. Concat.": the decoder sees the instruction beside the input."""
        return self.prompt or self.fuses_decoder

    @property
    def fuses_instruction(self) -> bool:
        """Tables 1 and 8, "Instr. Fus.": every input meets the instruction's own tokens in the encoder."""
        return self.prompt or self.fuses_encoder

    @property
    def low_update_parameters(self) -> bool:
        """Table 8, "Low Up. Params": all that a new task changes is a small module that is written for it."""
        return bool(self.writes)

    @property
    def low_inference_cost(self) -> bool:
        """Tables 1 and 8, "Low Infer. Cost": no input pays for reading the instruction."""
        return not self.prompt

    @property
    def unseen_tasks(self) -> int:
        """Tables 1 and 8, "Unseen Task", ticks out of three: one for learning from other tasks than the target, and one
        each for seeing the instruction's tokens in the decoder and in the encoder. The rule gives the paper's ticks."""
        if not (self.meta_trained and (self.prompt or self.reads_instruction_once)):
            return 0
        return 1 + self.concatenates_instruction + self.fuses_instruction


_TAGI = Method(
    "tagi",
    "TAGI",
    writes=("lora",),
    fuses_encoder=True,
    fuses_decoder=True,
    pretrained=True,
    distilled=True,
    trainable=("hypernetwork", "fusion"),
)
METHODS = (
    Method("no_ft", "No FT", prompt=True),
    Method("full_ft", "Full FT", prompt=True, on_target=True, trainable=("backbone",)),
    Method("metatrain", "Metatraining (Tk-Instruct, T0, GPT-2, OPT)", prompt=True, trainable=("backbone",)),
    Method("no_instruction", "No instruction (control)", trainable=("backbone",)),
    Method("concat_icl", "Concat-ICL", prompt=True, demonstrations="together", trainable=("backbone",)),
    Method("fid_icl", "FiD-ICL", prompt=True, fuses_decoder=True, demonstrations="fused", trainable=("backbone",)),
    Method("ensemble_icl", "Ensemble-ICL", prompt=True, demonstrations="averaged", trainable=("backbone",)),
    Method(
        "prompt_lora",
        "One LoRA for all tasks, instruction in the prompt",
        prompt=True,
        one_lora=True,
        trainable=("hypernetwork",),
    ),
    Method(
        "shared_lora",
        "One LoRA for all tasks, encoded instruction",
        one_lora=True,
        fuses_decoder=True,
        trainable=("hypernetwork",),
    ),
    Method("hypter", "Hypter", writes=("bottleneck",), own_encoder=True, trainable=("hypernetwork",)),
    Method(
        "hypertuning_prefix",
        "HyperTuning (HyperT5-Prefix)",
        writes=("prefix",),
        own_encoder=True,
        demonstrations="together",
        pretrained=True,
        trainable=("hypernetwork",),
    ),
    Method(
        "hypertuning_lora",
        "HyperTuning (HyperT5-LoRA)",
        writes=("lora",),
        own_encoder=True,
        demonstrations="together",
        pretrained=True,
        trainable=("hypernetwork",),
    ),
    Method(
        "hint",
        "HINT",
        writes=("bottleneck", "prefix"),
        fuses_decoder=True,
        pretrained=True,
        trainable=("backbone", "hypernetwork"),
    ),
    _TAGI,
    replace(
        _TAGI,
        name="lora_only",
        title="TAGI without fusion (LoRA only)",
        fuses_encoder=False,
        fuses_decoder=False,
        trainable=("hypernetwork",),
    ),
    replace(
        _TAGI,
        name="lora_concat",
        title="TAGI without encoder fusion",
        fuses_encoder=False,
        trainable=("hypernetwork",),
    ),
    replace(_TAGI, name="lora_fusion", title="TAGI without decoder concatenation", fuses_decoder=False),
    replace(_TAGI, name="fusion_only", title="TAGI without LoRA", writes=(), trainable=("fusion",)),
)


def get(name: str) -> Method:
    """The method of that name; an unknown one is a `ConfigError` that names the nearest."""
    by_name = {method.name: method for method in METHODS}
    if name not in by_name:
        near = difflib.get_close_matches(name, by_name, n=1)
        hint = f", did you mean {near[0]}?" if near else f"; there are {', '.join(by_name)}"
        raise ConfigError(f"method: {name!r} is unknown{hint}")
    return by_name[name]


def of(config: RunConfig) -> Method:
    """The method of a run; one that its stage or data cannot have is a `ConfigError` that names the field."""
    method = get(config.method)
    stage, name, once = config.stage, config.method, method.reads_instruction_once
    if stage == "backbone" and (once or method.prompt):
        raise ConfigError(f"method: stage backbone needs no_instruction, for it reads nothing but text, not {name}")
    if config.training.bucket == "prompt" and not method.prompt:
        raise ConfigError(f"training.bucket: {name} reads no prompt of which rows could have the length")
    if method.on_target != (config.data.part == "test"):
        raise ConfigError(f"data.part: method {name} is trained on the part {'test' if method.on_target else 'train'}")
    if stage == "teachers" and once:
        raise ConfigError(f"method: stage teachers needs no_instruction (b) or metatrain (a; b), not {name}")
    if stage == "metatrain" and once:
        raise ConfigError(f"stage: metatrain puts the instruction in the prompt, but method {name} does not")
    if stage in ("pretrain", "finetune") and not once:
        raise ConfigError(f"stage: {stage} trains the parts that read an instruction; {name} has none")
    return method
