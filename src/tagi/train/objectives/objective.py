"""From a run's config to the terms of its objective: L = L_ce + λ1 L_kl + λ2 L_ins (Eq. 6)."""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from tagi.config import RunConfig
from tagi.errors import CheckpointError, ConfigError
from tagi.model import bank as banks
from tagi.model import checkpoint
from tagi.model.bank import Bank
from tagi.model.tagi import TagiModel
from tagi.train.objectives.align import alignment_term
from tagi.train.objectives.distill import build_teacher, distillation_term, load_base
from tagi.train.objectives.logits import CacheIdentity, LogitCache
from tagi.train.stage import LABELS, Term


@dataclass(frozen=True, slots=True)
class Objective:
    """The terms of Eq. 6 that a run has, and the cache of teacher logits that must be written with a checkpoint."""

    terms: tuple[Term, ...]
    cache: LogitCache | None
    taught: frozenset[str] | None = None
    """Names of the tasks that the bank's LoRAs were trained on, where the terms read them."""


def build_objective(config: RunConfig, model: TagiModel, tokenizer: PreTrainedTokenizerBase) -> Objective:
    """The terms of a run's objective; refused are terms that this method or data cannot have, and a bank or a cache of
    another model."""
    settings, teacher = config.objective, config.objective.teacher
    terms = LABELS if settings.labels else ()
    bank = _bank(config, model)
    cache = taught = None
    if settings.lambda_kl:
        if config.stage == "pretrain":
            raise ConfigError("objective.lambda_kl: plain text has no instruction for a teacher to read")
        assert teacher is not None
        built = build_teacher(config, tokenizer, bank, model.backbone.shape.vocab_size)
        if teacher.cache is not None:
            kept = CacheIdentity(
                teacher=built.identity,
                temperature=settings.temperature,
                top_k=min(teacher.top_k or built.vocabulary, built.vocabulary),
                vocabulary=built.vocabulary,
            )
            cache = LogitCache(Path(teacher.cache), kept, built.teacher, built.of_task)
        groups = bank.group_of_task() if teacher.kind == "lora" and bank is not None else None
        taught = None if groups is None else frozenset(groups)
        terms += (distillation_term(cache or built.teacher, settings.lambda_kl, settings.temperature, groups),)
    if settings.lambda_ins:
        assert bank is not None
        terms += (alignment_term(bank, settings.lambda_ins, settings.align),)
        taught = frozenset(bank.group_of_task())
    return Objective(terms, cache, taught)


def _bank(config: RunConfig, model: TagiModel) -> Bank | None:
    """The run's LoRA bank, if any; refused where it is of another language model, rank or A₀ than the generator's."""
    if config.bank is None or model.hypernetwork is None:
        if config.objective.lambda_ins:
            raise ConfigError(f"objective.lambda_ins: method {config.method} generates no LoRA to align")
        return None
    folder = Path(config.bank)
    bank = banks.load(folder, model.backbone)
    base = model.backbone if config.bank_base is None else load_base(config.bank_base)
    settings = model.hypernetwork.config
    banks.check(bank, folder, checkpoint.fingerprint(base), settings.rank, settings.target_modules)
    own, aligned = model.hypernetwork.a0, config.objective.lambda_ins and config.objective.align == "factors"
    if aligned and not all(site in own and torch.equal(own[site].cpu(), a0) for site, a0 in bank.a0.items()):
        raise CheckpointError(
            f"{folder}: has another A₀ than the generator; align by delta, or pretrain with this bank"
        )
    return bank
