"""Which method and which bank a stage can have."""

from collections.abc import Set

from tagi.config import RunConfig
from tagi.data.sources import Sources
from tagi.errors import ConfigError
from tagi.methods import Method
from tagi.train.batches import task_source


def check_taught(config: RunConfig, taught: Set[str], sources: Sources) -> None:
    """Refuse a bank that has no LoRA for any training task: every term that reads it would be 0 without a word.

    Args:
        taught: names of the tasks that the bank's LoRAs were trained on.

    Raises:
        ConfigError: no training task is among them.
    """
    if config.stage == "pretrain":
        raise ConfigError("objective.lambda_ins: plain text has no tasks that a bank could have LoRAs for")
    each = task_source(config, sources).sources
    if not any(one.task(number, 0).name in taught for one in each for number in range(len(one))):
        raise ConfigError(f"bank: {config.bank} has no LoRA for any of this run's training tasks")


def check_stage(config: RunConfig, method: Method) -> None:
    """Refuse a stage that its method cannot be.

    Raises:
        ConfigError: one sentence that names the field.
    """
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
