"""Distillation from a teacher that reads (a; b) into the student that reads b (Eq. 5)."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tagi import methods
from tagi.config import FusionConfig, HypernetworkConfig, PromptConfig, RunConfig
from tagi.data.collate import Batch
from tagi.errors import CheckpointError, ConfigError
from tagi.infer.engine import load_tokenizer, teacher_forced
from tagi.losses import Loss, TokenDistribution, distillation, soften, valid_positions
from tagi.model import checkpoint
from tagi.model.backbone import Factors
from tagi.model.bank import Bank
from tagi.model.language_model import LanguageModel, load_language_model
from tagi.model.rows import Rows
from tagi.model.t5_hf import locate
from tagi.model.tagi import Output, TagiModel, neutral, shift_right
from tagi.train.align import lane_of
from tagi.train.stage import Term

Teacher = Callable[[Batch], TokenDistribution]
"""The teacher's distribution at every target position of a batch, at the run's temperature."""


def distillation_term(
    teacher: Teacher, weight: float, temperature: float, lanes: Mapping[str, int] | None = None
) -> Term:
    """λ1 · L_kl; with `lanes`, rows of tasks that have no teacher LoRA are left out."""

    def taught(batch: Batch) -> Tensor:
        valid = valid_positions(batch.labels)
        if lanes is None:
            return valid
        has_teacher = lane_of(batch, lanes).to(valid.device) >= 0
        return valid & has_teacher[batch.task_index][:, None]

    def loss(output: Output, batch: Batch) -> Loss:
        return distillation(output.logits, teacher(batch).to(output.logits.device), taught(batch), temperature)

    return Term("kl", weight, loss, lambda batch: taught(batch).sum())


def instruct_teacher(model: TagiModel, temperature: float) -> Teacher:
    """The instruct model reading (a; b), or FiD-ICL reading the prompt and, apart from it, demonstrations."""
    model = _at_rest(model)

    @torch.no_grad()
    def distribution(batch: Batch) -> TokenDistribution:
        model.to(batch.labels.device)
        return soften(teacher_forced(model, model.backbone.shape, batch.as_prompt()).logits, temperature)

    return distribution


def lora_teacher(model: TagiModel, bank: Bank, temperature: float) -> Teacher:
    """LM + Δ_i reading (a; b) (Eq. 5); rows of tasks without a teacher wear nothing."""
    model, lanes = _at_rest(model), bank.lanes()
    shape = model.backbone.shape

    @torch.no_grad()
    def distribution(batch: Batch) -> TokenDistribution:
        device = batch.labels.device
        model.to(device)
        worn = {site: _wear(factors, lane_of(batch, lanes), device) for site, factors in bank.lora.items()}
        adapter = replace(neutral(model.backbone, len(batch.names)), modules=worn)
        prompt = batch.as_prompt()
        decoder_ids = shift_right(batch.labels, shape.decoder_start_token_id, shape.pad_token_id)
        rows = Rows.of(batch.task_index, len(batch.names))
        output = model.respond(adapter, prompt.input_ids, prompt.input_mask, decoder_ids, rows)
        return soften(output.logits, temperature)

    return distribution


def build_teacher(config: RunConfig, tokenizer: PreTrainedTokenizerBase, bank: Bank | None) -> tuple[Teacher, str]:
    """The online teacher of a run, and the fingerprint of everything that its logits depend on.

    Raises:
        ConfigError: a teacher that does not read (a; b), has other tokens, or whose LoRAs are missing.
        CheckpointError: it cannot be loaded, or the bank belongs to another model.
    """
    settings = config.objective.teacher
    assert settings is not None
    model = load_reader(settings.checkpoint, config.prompt, bare=settings.kind == "lora")
    if model.method.apart != (settings.kind == "fid"):
        raise ConfigError(
            f"objective.teacher.kind: {settings.checkpoint} was trained as {model.method.name}; "
            "fid needs fid_icl, and fid_icl is no other teacher"
        )
    _check_tokens(settings.checkpoint, tokenizer)
    temperature, identity = config.objective.temperature, checkpoint.fingerprint(model)
    if settings.kind == "instruct":
        return instruct_teacher(model, temperature), identity
    if settings.kind == "fid":
        return instruct_teacher(model, temperature), f"{identity}+{settings.shots} shots"
    if bank is None:
        raise ConfigError("objective.teacher.kind: lora needs a teacher bank (bank)")
    if bank.manifest.base_fingerprint != checkpoint.fingerprint(model.backbone):
        raise CheckpointError(f"{config.bank}: was trained on another model than {settings.checkpoint}")
    loras = checkpoint.fingerprint_tensors({f"{site}.{n}": x for site, f in bank.lora.items() for n, x in _pair(f)})
    return lora_teacher(model, bank, temperature), f"{identity}+{loras}"


def load_reader(source: str, prompt: PromptConfig, *, bare: bool) -> TagiModel:
    """A model that reads (a; b): a checkpoint of metatraining, or a Hugging Face T5.

    Args:
        bare: take the backbone of whatever checkpoint it is.

    Raises:
        ConfigError: a checkpoint whose method does not read the instruction in the prompt, or in another style.
        CheckpointError: it cannot be loaded.
    """
    folder = locate(source)
    if bare or not (folder / checkpoint.CONFIG).exists():
        return TagiModel(load_base(source), methods.get("metatrain"), HypernetworkConfig(), FusionConfig())
    loaded = checkpoint.load(folder)
    if not loaded.model.method.prompt:
        raise ConfigError(f"objective.teacher.checkpoint: {source} ({loaded.config.method}) does not read (a; b)")
    if loaded.config.prompt.style != prompt.style:
        raise ConfigError(f"objective.teacher.checkpoint: {source} reads prompts of style {loaded.config.prompt.style}")
    return loaded.model


def load_base(source: str) -> LanguageModel:
    """The language model of a checkpoint of ours, or a Hugging Face folder.

    Raises:
        CheckpointError: it cannot be loaded.
    """
    folder = locate(source)
    ours = (folder / checkpoint.CONFIG).exists()
    return checkpoint.load(folder).model.backbone if ours else load_language_model(folder)


def _check_tokens(source: str, tokenizer: PreTrainedTokenizerBase) -> None:
    if load_tokenizer(locate(source)).get_vocab() != tokenizer.get_vocab():
        raise ConfigError(f"objective.teacher.checkpoint: {source} has another vocabulary than the student")


def _at_rest(model: TagiModel) -> TagiModel:
    return model.eval().requires_grad_(False)


def _wear(factors: Factors, lane_T: Tensor, device: torch.device) -> Factors:
    """Each task's own teacher; B is zero for a task that has none."""
    present = (lane_T >= 0)[:, None, None]
    chosen = lane_T.clamp(min=0)
    a, b = factors.a[chosen], factors.b[chosen] * present
    return Factors(a.to(device), b.to(device), factors.scale)


def _pair(factors: Factors) -> tuple[tuple[str, Tensor], tuple[str, Tensor]]:
    return ("A", factors.a), ("B", factors.b)
