"""Which data and which method a stage can have, and where its batches come from."""

from collections.abc import Callable, Set

from tagi.config import RunConfig
from tagi.data.collate import Batch, Collator
from tagi.data.mixture import Shares
from tagi.errors import ConfigError
from tagi.methods import Method
from tagi.pretraining.packing import repacked
from tagi.train.datasets import Datasets
from tagi.train.finetune import task_source, training_batches
from tagi.train.pretrain import text_batches


def batches(
    config: RunConfig, collator: Collator, processes: int = 1, datasets: Datasets | None = None
) -> Callable[[int], Batch]:
    """Batch number i of a run's data, a pure function of the run's seed, the number of batches of a step, and i."""
    if config.stage == "pretrain":
        draw = text_batches(config, collator)
    else:
        draw = training_batches(config, collator, processes, datasets)
    return (lambda index: repacked(draw(index))) if config.training.packing else draw


def check_taught(config: RunConfig, taught: Set[str], datasets: Datasets) -> None:
    """Refuse a bank that has no LoRA for any training task: every term that reads it would be 0 without a word.

    Args:
        taught: names of the tasks that the bank's LoRAs were trained on.

    Raises:
        ConfigError: no training task is among them.
    """
    if config.stage == "pretrain":
        raise ConfigError("objective.lambda_ins: plain text has no tasks that a bank could have LoRAs for")
    source = task_source(config, datasets)
    each = source.sources if isinstance(source, Shares) else (source,)
    if not any(one.task(number, 0).name in taught for one in each for number in range(len(one))):
        raise ConfigError(f"bank: {config.bank} has no LoRA for any of this run's training tasks")


def check_stage(config: RunConfig, method: Method) -> None:
    """Refuse a stage that its method or data cannot be.

    Raises:
        ConfigError: one sentence that names the field.
    """
    stage, name, once, source = config.stage, config.method, method.reads_instruction_once, config.data.source
    if (stage == "backbone") != (source == "corpus"):
        raise ConfigError(f"data.source: {source} does not suit stage {stage}")
    if stage == "backbone" and (once or method.prompt or method.decoder_only):
        raise ConfigError(f"method: stage backbone needs no_instruction, for it reads nothing but text, not {name}")
    if method.decoder_only and config.training.gradient_checkpointing:
        raise ConfigError(f"training.gradient_checkpointing: {name} trains through cached keys, which it would drop")
    _check_rows(config, method)
    if method.on_target != (config.data.part == "test"):
        raise ConfigError(f"data.part: method {name} is trained on the part {'test' if method.on_target else 'train'}")
    if stage == "teachers" and (once or method.decoder_only):
        raise ConfigError(f"method: stage teachers needs no_instruction (b) or metatrain (a; b), not {name}")
    if stage == "metatrain" and once:
        raise ConfigError(f"stage: metatrain puts the instruction in the prompt, but method {name} does not")
    if stage in ("pretrain", "finetune") and not once:
        raise ConfigError(f"stage: {stage} trains the parts that read an instruction; {name} has none")
    if source in (("sni", "p3", "text", "mixture") if stage == "pretrain" else ("c4",)):
        raise ConfigError(f"data.source: {source} does not suit stage {stage}")


def _check_rows(config: RunConfig, method: Method) -> None:
    if config.training.bucket == "prompt" and not method.prompt:
        raise ConfigError(f"training.bucket: {method.name} reads no prompt of which rows could have the length")
    if config.training.packing:
        _check_packing(config, method)


def _check_packing(config: RunConfig, method: Method) -> None:
    stage, distils = config.stage, bool(config.objective.lambda_kl)
    if stage == "backbone":
        raise ConfigError("training.packing: stage backbone packs its text in any case; leave it out")
    if method.reads_instruction_once or method.decoder_only or distils or stage == "teachers":
        what = "with a teacher's logits" if distils else f"of {method.name} at stage {stage}"
        raise ConfigError(f"training.packing: rows {what} cannot stand end to end")
