"""Distillation from a teacher that reads (a; b) into the student that reads b (Eq. 5)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tagi import methods
from tagi.backbones.files import locate
from tagi.backbones.language_model import LanguageModel, load_language_model
from tagi.backbones.lora import select
from tagi.backbones.rows import Rows
from tagi.backbones.sites import Factors
from tagi.config import FusionConfig, HypernetworkConfig, PromptConfig, RunConfig, TeacherKind
from tagi.data import tokenizers
from tagi.data.collate import Batch
from tagi.errors import CheckpointError, ConfigError
from tagi.infer.engine import teacher_forced
from tagi.losses import Loss, TokenDistribution, distillation, soften, valid_positions
from tagi.model import checkpoint
from tagi.model.bank import Bank
from tagi.model.tagi import Output, TagiModel, neutral
from tagi.train.objectives.align import group_of
from tagi.train.stage import Term

Teacher = Callable[[Batch], TokenDistribution]
"""The teacher's distribution at every target position of a batch, at the run's temperature."""

TaskIdentity = Callable[[str], str]
"""What a row's distribution depends on besides the teacher and the tokens of its prompt and target, given its task."""


@dataclass(frozen=True, slots=True)
class BuiltTeacher:
    """A teacher, and everything that tells its logits from another's."""

    teacher: Teacher
    identity: str
    """Fingerprint of its tensors, and how many demonstrations it reads."""
    vocabulary: int
    """Tokens that its distributions are over."""
    of_task: TaskIdentity


def distillation_term(
    teacher: Teacher, weight: float, temperature: float, groups: Mapping[str, int] | None = None
) -> Term:
    """λ1 · L_kl; with `groups`, rows of tasks that have no per-task LoRA are left out."""

    def taught(batch: Batch) -> Tensor:
        valid = valid_positions(batch.labels)
        if groups is None:
            return valid
        has_teacher = group_of(batch, groups).to(valid.device) >= 0
        return valid & has_teacher[batch.task_index][:, None]

    def loss(output: Output, batch: Batch) -> Loss:
        return distillation(output.logits, teacher(batch).to(output.logits.device), taught(batch), temperature)

    return Term("kl", weight, loss, lambda batch: taught(batch).sum())


def instruct_teacher(
    model: TagiModel, temperature: float, vocabulary: int | None = None, bank: Bank | None = None
) -> Teacher:
    """The instruct model reading (a; b); LM + Δ_i reading it (Eq. 5), rows of tasks without a LoRA without; or FiD-ICL
    reading the prompt and, apart from it, demonstrations.

    Args:
        vocabulary: tokens, from the first on, that its distribution is over; None means all rows of its output.
        bank: of the LoRAs.
    """
    model.eval().requires_grad_(False)
    groups = {} if bank is None else bank.group_of_task()

    @torch.no_grad()
    def distribution(batch: Batch) -> TokenDistribution:
        device, prompt = batch.labels.device, batch.as_prompt()
        model.to(device)
        if bank is None:
            output = teacher_forced(model, prompt)
        else:
            own = select(bank.lora, (group := group_of(batch, groups)).clamp(min=0))
            present = (group >= 0)[:, None, None]  # B is zero for a task that has none
            lora = {site: Factors(f.a.to(device), (f.b * present).to(device), f.scale) for site, f in own.items()}
            tasks = len(batch.names)
            adapter, rows = replace(neutral(model.backbone, tasks), modules=lora), Rows.of(batch.task_index, tasks)
            output = model.respond(adapter, prompt.input_ids, prompt.input_mask, batch.target_ids, rows)
        return soften(output.logits[..., :vocabulary], temperature)

    return distribution


def build_teacher(
    config: RunConfig, tokenizer: PreTrainedTokenizerBase, bank: Bank | None, vocabulary: int
) -> BuiltTeacher:
    """The online teacher of a run, and what its logits depend on.

    Args:
        vocabulary: rows of the student's output. The teacher may have other rows that no token has (T5-LM has 28 of
            them, Tk-Instruct none); what both have is compared.

    Raises:
        ConfigError: a teacher that does not read (a; b), has other tokens, or whose LoRAs are missing.
        CheckpointError: it cannot be loaded, or the bank belongs to another model.
    """
    settings = config.objective.teacher
    assert settings is not None
    model = _load_reader(settings.checkpoint, config.prompt, settings.kind)
    if model.method.apart != (settings.kind == "fid"):
        raise ConfigError(
            f"objective.teacher.kind: {settings.checkpoint} was trained as {model.method.name}; "
            "fid needs fid_icl, and fid_icl is no other teacher"
        )
    if tokenizers.load(locate(settings.checkpoint)).get_vocab() != tokenizer.get_vocab():
        raise ConfigError(
            f"objective.teacher.checkpoint: {settings.checkpoint} has another vocabulary than the student"
        )
    temperature, identity = config.objective.temperature, checkpoint.fingerprint(model)
    shared = min(vocabulary, model.backbone.shape.vocab_size)
    if settings.kind != "lora":
        teacher = instruct_teacher(model, temperature, shared)
        if settings.kind == "fid":  # its rows depend on their task's name, for it reads demonstrations of the task
            return BuiltTeacher(teacher, f"{identity}+{settings.shots} shots", shared, str)
        return BuiltTeacher(teacher, identity, shared, same_for_all)
    if bank is None:
        raise ConfigError("objective.teacher.kind: lora needs a LoRA bank (bank)")
    if bank.manifest.base_fingerprint != checkpoint.fingerprint(model.backbone):
        raise CheckpointError(f"{config.bank}: was trained on another model than {settings.checkpoint}")
    return BuiltTeacher(instruct_teacher(model, temperature, shared, bank), identity, shared, own_lora(bank))


def same_for_all(task: str) -> str:
    """Of a teacher that reads nothing of a task but a row's prompt."""
    return ""


def own_lora(bank: Bank) -> TaskIdentity:
    """Of a teacher with the task's LoRA: that LoRA's fingerprint, or nothing where the task has none."""
    fingerprints: list[str] = []
    for number in range(len(bank.manifest.teachers)):
        own = {f"{site}.{name}": x[number] for site, f in bank.lora.items() for name, x in (("A", f.a), ("B", f.b))}
        fingerprints.append(f"{checkpoint.fingerprint_tensors(own)} x {bank.manifest.scale}")
    groups = bank.group_of_task()
    return lambda task: fingerprints[groups[task]] if task in groups else ""


def _load_reader(source: str, prompt: PromptConfig, kind: TeacherKind) -> TagiModel:
    """A model that reads (a; b): a checkpoint of metatraining or of FiD-ICL, or a Hugging Face T5, which does not say
    how it was trained and is taken as what the config says it is.

    A teacher of kind `lora` takes the backbone of whatever checkpoint it is.
    """
    folder = locate(source)
    if kind == "lora" or not (folder / checkpoint.CONFIG).exists():
        method = methods.get("fid_icl" if kind == "fid" else "metatrain")
        return TagiModel(load_base(source), method, HypernetworkConfig(), FusionConfig())
    loaded = checkpoint.load(folder)
    if not loaded.model.method.prompt:
        raise ConfigError(f"objective.teacher.checkpoint: {source} ({loaded.config.method}) does not read (a; b)")
    if loaded.config.prompt.style != prompt.style:
        raise ConfigError(f"objective.teacher.checkpoint: {source} reads prompts of style {loaded.config.prompt.style}")
    return loaded.model


def load_base(source: str) -> LanguageModel:
    """The language model of a checkpoint of ours, or of a Hugging Face folder."""
    folder = locate(source)
    ours = (folder / checkpoint.CONFIG).exists()
    return checkpoint.load(folder).model.backbone if ours else load_language_model(folder)
