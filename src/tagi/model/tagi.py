"""The whole model as one module of tensors: backbone, hypernetwork, fusion (§3.2). Shapes: see `rows.py`."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tagi.backbones.cache import DecoderContext, DecoderMemory
from tagi.backbones.causal import CausalLM
from tagi.backbones.language_model import LanguageModel, as_t5
from tagi.backbones.lora import folded
from tagi.backbones.rows import Rows
from tagi.backbones.sites import Factors, Site
from tagi.config import FusionConfig, HypernetworkConfig, ModuleKind, Part
from tagi.errors import ConfigError
from tagi.methods import Method
from tagi.model import adapter as adapters
from tagi.model import fusion as fusion_module
from tagi.model import hypernetwork as hypernetwork_module
from tagi.model.adapter import TaskAdapter
from tagi.model.fusion import Fusion, FusionMemory
from tagi.model.hypernetwork import Hypernetwork


@dataclass(frozen=True, slots=True)
class Prepared:
    """A task adapter and everything that can be computed from it once, before any input is seen."""

    adapter: TaskAdapter
    fusion: FusionMemory | None
    decoder: DecoderMemory | None

    def select(self, index: Tensor) -> "Prepared":
        """What some tasks share, in the order of `index`."""
        fusion = None if self.fusion is None else self.fusion.select(index)
        decoder = None if self.decoder is None else self.decoder.select(index)
        return Prepared(self.adapter.select(index), fusion, decoder)

    def beside(self, other: "Prepared") -> "Prepared":
        """These tasks, then the other's.

        Raises:
            ValueError: adapters of different sites or scales.
        """
        fusion = None if self.fusion is None or other.fusion is None else self.fusion.beside(other.fusion)
        decoder = None if self.decoder is None or other.decoder is None else self.decoder.beside(other.decoder)
        return Prepared(adapters.stack([self.adapter, other.adapter]), fusion, decoder)


class Output(NamedTuple):
    """What the losses read: logits of the student, and the adapter that it wore."""

    logits: Tensor  # (R, O, V)
    adapter: TaskAdapter


class TagiModel(nn.Module):
    """LLM + Hypernetwork(a): the student of Eqs. 3 to 6, and, with parts left out, its relatives."""

    def __init__(
        self, backbone: LanguageModel, method: Method, hypernetwork: HypernetworkConfig, fusion: FusionConfig
    ) -> None:
        """
        Raises:
            ConfigError: a method for another kind of language model.
        """
        super().__init__()
        _check_kind(backbone, method)
        self.backbone, self.method = backbone, method
        shape = backbone.shape
        self.fusion = self.instruction_encoder = None
        self.hypernetwork = self._generator("lora", hypernetwork)
        self.prefix_generator = self._generator("prefix", hypernetwork)
        self.bottleneck_generator = self._generator("bottleneck", hypernetwork)
        if method.fuses_encoder:
            self.fusion = Fusion(shape.d_model, shape.num_layers, fusion)
        if method.reads_instruction_once and has_own_encoder(method, hypernetwork):
            self.instruction_encoder = as_t5(backbone).encoder_alone()

    def _generator(self, kind: ModuleKind, config: HypernetworkConfig) -> Hypernetwork | None:
        if kind not in self.method.writes:
            return None
        sites, d_model = self.backbone.sites(kind), self.backbone.d_model
        return Hypernetwork(sites, d_model, self.backbone.site_shape(sites[0]), config, kind)

    @property
    def generators(self) -> tuple[Hypernetwork, ...]:
        """The generators of everything that the method writes."""
        every = (self.hypernetwork, self.prefix_generator, self.bottleneck_generator)
        return tuple(one for one in every if one is not None)

    def sites(self) -> tuple[Site, ...]:
        """Every place that the method writes a module for."""
        return tuple(site for generator in self.generators for site in generator.sites)

    def part(self, part: Part) -> tuple[nn.Module, ...]:
        """The modules of a part that can be trained or frozen; a part that the method lacks is empty."""
        modules: dict[Part, tuple[nn.Module | None, ...]] = {
            "backbone": (self.backbone,),
            "hypernetwork": (*self.generators, self.instruction_encoder),
            "fusion": (self.fusion,),
        }
        return tuple(module for module in modules[part] if module is not None)

    def encode_instruction(self, ids_TS: Tensor, mask_TS: Tensor) -> Tensor:
        """I: the instruction through the encoder, adapters and fusion off, (T, S, D).

        Given as pieces (T, E, S) it is encoded piece by piece, and I is their concatenation (T, E·S, D).
        """
        if ids_TS.dim() == 3 and not ids_TS.shape[1]:
            return neutral(self.backbone, ids_TS.shape[0]).memory
        if ids_TS.dim() == 3:
            pieces = self.encode_instruction(ids_TS.flatten(0, 1), mask_TS.flatten(0, 1))
            return pieces.unflatten(0, ids_TS.shape[:2]).flatten(1, 2)
        encoder = self.instruction_encoder or self.backbone
        return encoder.encode(ids_TS, mask_TS, modules={}, rows=Rows(ids_TS.shape[0], ids_TS.shape[0]))

    def adapt(self, ids_TS: Tensor, mask_TS: Tensor) -> TaskAdapter:
        """Instructions (T, S) to the adapters of T tasks, neutral ones if the method reads no instruction."""
        if not self.method.reads_instruction_once:
            return neutral(self.backbone, ids_TS.shape[0])
        return self.generate(self.encode_instruction(ids_TS, mask_TS), mask_TS)

    def generate(self, memory_TSD: Tensor, mask_TS: Tensor) -> TaskAdapter:
        """Encoded instructions (T, S, D) to the adapters of T tasks; what padding holds does not matter."""
        mask_TS = mask_TS.flatten(1)
        modules: dict[Site, Factors] = {}
        for generator in self.generators:
            modules |= generator.factors(memory_TSD, mask_TS)
        return TaskAdapter(modules, memory_TSD, mask_TS)

    def prepare(self, adapter: TaskAdapter, *, fold: bool = False) -> Prepared:
        """Keys and values of the instruction memory for fusion and decoder, once per task.

        Args:
            fold: add the LoRA of a single task into copies of the weights that wear it; worth it from a few inputs on.
        """
        if fold:
            adapter = replace(adapter, modules=folded(adapter.modules, self.backbone.site_weights()))
        fusion = decoder = None
        if self.fusion is not None:
            fusion = self.fusion.prepare(adapter.memory, adapter.mask)
        if self.method.fuses_decoder:
            decoder = self.backbone.project_memory(adapter.memory, adapter.mask, modules=adapter.modules)
        return Prepared(adapter, fusion, decoder)

    def encode_input(self, ids_RN: Tensor, mask_RN: Tensor, prepared: Prepared, rows: Rows) -> DecoderContext:
        """F: the inputs through the adapted, fused encoder, ready for the decoder beside I."""
        modules, fusion, memory = prepared.adapter.modules, self.fusion, prepared.fusion

        def fuse(block: int, x_RND: Tensor) -> Tensor:
            assert fusion is not None and memory is not None
            return fusion.fuse(block, x_RND, memory, rows)

        after = fuse if fusion is not None else None
        hidden = self.backbone.encode(ids_RN, mask_RN, modules=modules, rows=rows, after_self_attention=after)
        return self.backbone.context(hidden, mask_RN, modules=modules, rows=rows, memory=prepared.decoder)

    def forward(
        self,
        instruction_ids: Tensor,
        instruction_mask: Tensor,
        input_ids: Tensor,
        input_mask: Tensor,
        decoder_ids: Tensor,
        rows: Rows,
        memory: Tensor | None = None,
    ) -> Output:
        """Instructions (T, S), inputs (R, N), shifted targets (R, O) to logits (R, O, V).

        `memory` (T, S, D) are the instructions already encoded, where that was done before.
        """
        if memory is None:
            adapter = self.adapt(instruction_ids, instruction_mask)
        else:
            adapter = self.generate(memory, instruction_mask)
        return self.respond(adapter, input_ids, input_mask, decoder_ids, rows)

    def respond(
        self, adapter: TaskAdapter, input_ids: Tensor, input_mask: Tensor, decoder_ids: Tensor, rows: Rows
    ) -> Output:
        """Inputs (R, N) and shifted targets (R, O) to logits (R, O, V), wearing adapters given from outside."""
        prepared = self.prepare(adapter)
        context = self.encode_input(input_ids, input_mask, prepared, rows)
        logits, _ = self.backbone.decode(decoder_ids, context, modules=adapter.modules, rows=rows)
        return Output(logits, adapter)


def neutral(backbone: LanguageModel, tasks: int) -> TaskAdapter:
    """The adapter that changes nothing: no modules and an empty memory."""
    weight = backbone.embedding.weight
    mask = torch.zeros(tasks, 0, dtype=torch.long, device=weight.device)
    return TaskAdapter({}, weight.new_zeros(tasks, 0, backbone.d_model), mask)


def has_own_encoder(method: Method, config: HypernetworkConfig) -> bool:
    """Whether an encoder of its own reads the instruction: as the config says, else as the method is defined."""
    return method.own_encoder if config.instruction_encoder is None else config.instruction_encoder == "separate"


def _check_kind(backbone: LanguageModel, method: Method) -> None:
    if method.decoder_only and not isinstance(backbone, CausalLM):
        raise ConfigError(f"method: {method.name} needs GPT-2 or OPT, but the language model is a T5")
    if isinstance(backbone, CausalLM) and not method.decoder_only:
        family = backbone.shape.architecture
        raise ConfigError(f"method: {method.name} needs an encoder-decoder; {family} is for decoder_only")


def initialise(model: TagiModel, generator: torch.Generator) -> None:
    """Random initialisation of the parts that no backbone checkpoint holds."""
    for written in model.generators:
        hypernetwork_module.initialise(written, generator)
    if model.fusion is not None:
        fusion_module.initialise(model.fusion, generator)


def shift_right(labels_RO: Tensor, start: int, pad: int) -> Tensor:
    """Labels (ignored positions -100) to decoder inputs: the start token, then all but the last label."""
    shifted = labels_RO.roll(1, dims=1)
    shifted[:, 0] = start
    return shifted.masked_fill(shifted == -100, pad)
