"""Which method a stage can have."""

from tagi.config import RunConfig
from tagi.errors import ConfigError
from tagi.methods import Method


def check_stage(config: RunConfig, method: Method) -> None:
    """Refuse a stage that its method cannot be, by a `ConfigError` that names the field."""
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
