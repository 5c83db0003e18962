"""Tiny random models and batches that several test files share; nothing here needs a network."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tagi import methods
from tagi.backbones.base import Prepared
from tagi.backbones.decoder.model import Decoder
from tagi.backbones.decoder.model import initialise as initialise_decoder
from tagi.backbones.language_model import LanguageModel
from tagi.backbones.layers import RMSNorm
from tagi.backbones.rows import Rows
from tagi.backbones.sites import Factors, Site
from tagi.backbones.t5.model import T5, initialise
from tagi.config import DecoderShape, FusionConfig, HypernetworkConfig, PromptConfig, T5Shape
from tagi.data.collate import pad
from tagi.files import atomic_folder
from tagi.infer.scheduler import Scheduler
from tagi.infer.search import Limits
from tagi.infer.tasks import Request
from tagi.model import tagi
from tagi.model.adapter import TaskAdapter
from tagi.model.checkpoint import BACKBONE, ModelConfig, fingerprint, write
from tagi.model.tagi import TagiModel

VOCABULARY = 48
SMALL_HYPERNETWORK = HypernetworkConfig(rank=3, alpha=6.0, prefix=2, bottleneck=5, hidden=8)
SMALL_FUSION = FusionConfig(width=8, heads=2)


def seeded(seed: int) -> torch.Generator:
    """A random generator of its own."""
    return torch.Generator().manual_seed(seed)


def normal(*size: int, seed: int) -> Tensor:
    """A standard normal tensor."""
    return torch.randn(*size, generator=seeded(seed))


def small_shape(**overrides: Any) -> T5Shape:
    """A T5 of a few thousand parameters whose heads together are not as wide as the model."""
    values: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "d_model": 32,
        "d_kv": 6,
        "d_ff": 40,
        "num_layers": 2,
        "num_decoder_layers": 2,
        "num_heads": 4,
        "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 16,
    }
    return T5Shape.model_validate(values | overrides)


def small_t5(seed: int = 0, **overrides: Any) -> T5:
    """A random backbone whose norms are random too, ready for inference."""
    model = T5(small_shape(**overrides))
    generator = seeded(seed)
    initialise(model, generator)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, RMSNorm):
                module.weight.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


def small_decoder(seed: int = 0, **overrides: Any) -> Decoder:
    """A random decoder-only model of a few thousand parameters, its heads grouped, ready for inference."""
    values: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "d_model": 32,
        "d_ff": 40,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 6,
        "max_positions": 128,
        "rotary": {},
        "eos_token_ids": (1,),
    }
    model = Decoder(DecoderShape.model_validate(values | overrides))
    initialise_decoder(model, seeded(seed))
    return model.eval()


def small_tagi(
    method: str = "tagi",
    *,
    seed: int = 0,
    hypernetwork: HypernetworkConfig = SMALL_HYPERNETWORK,
    fusion: FusionConfig = SMALL_FUSION,
    backbone: LanguageModel | None = None,
) -> TagiModel:
    """An untrained model: its LoRA and its fusion change nothing yet."""
    model = TagiModel(backbone or small_t5(seed), methods.get(method), hypernetwork, fusion)
    tagi.initialise(model, seeded(seed + 1))
    return model.eval()


def trained(model: TagiModel, seed: int = 0) -> TagiModel:
    """The same model with everything that starts at zero made random, as if it had been trained."""
    generator = seeded(seed + 2)
    with torch.no_grad():
        for written in model.generators:
            for name, parameter in written.named_parameters():
                if ".head_b." in name or ".b0_" in name or name.startswith(("b_shared.", "gain.")):
                    parameter.normal_(0.0, 0.1, generator=generator)
        if model.fusion is not None:
            for name, parameter in model.fusion.named_parameters():
                if name.endswith("gate"):
                    parameter.uniform_(0.5, 1.0, generator=generator)
    return model


def model_config(model: TagiModel, backbone: str = BACKBONE) -> ModelConfig:
    """The checkpoint config of a model that `small_tagi` built."""
    return ModelConfig(
        method=model.method.name,
        hypernetwork=SMALL_HYPERNETWORK,
        fusion=SMALL_FUSION,
        prompt=PromptConfig(),
        backbone=backbone,
        backbone_fingerprint=fingerprint(model.backbone),
    )


def save_checkpoint(model: TagiModel, config: ModelConfig, folder: Path, *, dtype: torch.dtype = torch.float32) -> None:
    """A checkpoint without a tokenizer, whole or not at all."""
    with atomic_folder(folder) as draft:
        write(model, config, draft, dtype=dtype)


def random_lora(
    model: LanguageModel, tasks: int, *, seed: int, rank: int = 3, scale: float = 2.0
) -> dict[Site, Factors]:
    """Random LoRA at every site, large enough to move the logits."""
    lora: dict[Site, Factors] = {}
    for number, site in enumerate(model.sites()):
        width_in, width_out = model.site_shape(site)
        a = normal(tasks, rank, width_in, seed=seed + 2 * number) * width_in**-0.5
        b = normal(tasks, width_out, rank, seed=seed + 2 * number + 1) * 0.3
        lora[site] = Factors(a, b, scale)
    return lora


def token_batch(lengths: Sequence[int], *, seed: int) -> tuple[Tensor, Tensor]:
    """Random token ids and their bool mask, padded on the right to the longest."""
    ids = torch.randint(2, VOCABULARY, (len(lengths), max(lengths)), generator=seeded(seed))
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return ids * mask, mask


def greedy(
    model: TagiModel, ids: Tensor, mask: Tensor, prepared: Prepared, rows: Rows, most: int, members: int = 1
) -> Tensor:
    """Greedy tokens (R / members, at most `most`) of the decoding loop, padded after a row's end."""
    backbone = model.backbone
    prompts = [row[:length].tolist() for row, length in zip(ids, mask.sum(1).tolist(), strict=True)]
    owner = rows.pick(torch.arange(rows.tasks)).tolist()
    limits = Limits(backbone.end_ids, most)
    requests = [
        Request(number, prompts[start : start + members], prepared, owner[start], "", limits)
        for number, start in enumerate(range(0, len(prompts), members))
    ]
    tokens: list[list[int]] = [[] for _ in requests]
    for step in Scheduler(backbone, len(requests) * members).run(requests):
        tokens[step.number] += step.new
    padded, real = pad(tokens)
    return padded.masked_fill(~real, backbone.shape.pad_token_id)


@contextmanager
def counter() -> Iterator[FlopCounterMode]:
    """Counts operations, those of attention too: the counter sees no fused kernel."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counting:
        yield counting


def same_adapter(one: TaskAdapter, other: TaskAdapter) -> None:
    """Equal in every number, and in what inputs attend to."""
    ours, theirs = one.instruction, other.instruction
    assert all(torch.equal(*pair) for pair in zip(ours.tensors, theirs.tensors, strict=True))
    assert (ours.attended is None) == (theirs.attended is None)
    if ours.attended is not None and theirs.attended is not None:
        assert torch.equal(ours.attended.mask, theirs.attended.mask)
    assert one.modules.keys() == other.modules.keys() and (one.summaries is None) == (other.summaries is None)
    if one.summaries is not None and other.summaries is not None:
        assert torch.equal(one.summaries, other.summaries)
    for site, factors in one.modules.items():
        assert torch.equal(factors.a, other.modules[site].a)
        assert torch.equal(factors.b, other.modules[site].b)
        assert factors.scale == other.modules[site].scale


def worst(ours: Tensor, reference: Tensor) -> float:
    """Largest absolute difference."""
    assert ours.shape == reference.shape
    return float((ours.detach() - reference.detach()).abs().max())
