"""The whole model as one module of tensors: language model, hypernetwork, fusion (§3.2). Shapes: see
`tagi.backbones.rows`."""

from dataclasses import replace
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from tagi.backbones import lora
from tagi.backbones.base import Backbone, Prepared, Reader
from tagi.backbones.encoded import EncodedInstruction
from tagi.backbones.language_model import LanguageModel
from tagi.backbones.rows import Rows
from tagi.backbones.sites import Factors, Modules, Site
from tagi.config import FusionConfig, HypernetworkConfig, ModuleKind, Part
from tagi.errors import ConfigError
from tagi.methods import Method
from tagi.model import fusion as fusion_module
from tagi.model.adapter import TaskAdapter
from tagi.model.fusion import Fusion
from tagi.model.hypernetwork import Hypernetwork
from tagi.model.states import StateGenerator


class Output(NamedTuple):
    """What the losses read: logits of the student, and the adapter that it ran with."""

    logits: Tensor  # (R, O, V)
    adapter: TaskAdapter


class TagiModel(nn.Module):
    """LLM + Hypernetwork(a): the student of Eqs. 3 to 6, and, with parts left out, its relatives."""

    def __init__(
        self, backbone: LanguageModel, method: Method, hypernetwork: HypernetworkConfig, fusion: FusionConfig
    ) -> None:
        """
        Raises:
            ConfigError: a method that this language model cannot have, or a target module that it has not.
        """
        super().__init__()
        _check(backbone, method, hypernetwork)
        self.backbone, self.method, self.settings = backbone, method, hypernetwork
        self.reads_again = method.fuses_decoder and not backbone.has_encoder and fusion.prefix == "adapted"
        self.fusion = self.instruction_encoder = None
        self.hypernetwork = self._lora(hypernetwork)
        self.prefix_generator = self._generator("prefix", hypernetwork)
        self.bottleneck_generator = self._generator("bottleneck", hypernetwork)
        if method.fuses_encoder and backbone.has_encoder:
            self.fusion = Fusion(backbone.d_model, backbone.shape.num_layers, fusion)
        encoder = hypernetwork.instruction_encoder  # where the config says none, the method's definition does
        own_encoder = method.own_encoder if encoder is None else encoder == "separate"
        if method.reads_instruction_once and own_encoder:
            self.instruction_encoder = backbone.reader()

    def _lora(self, config: HypernetworkConfig) -> Hypernetwork | StateGenerator | None:
        backbone = self.backbone
        if config.generator == "mlp" or not self.method.lora:
            return self._generator("lora", config)
        sites = backbone.sites("lora", config.target_modules)
        return StateGenerator(sites, backbone.d_model, backbone.site_shape, backbone.state, config)

    def _generator(self, kind: ModuleKind, config: HypernetworkConfig) -> Hypernetwork | None:
        shared = kind == "lora" and self.method.one_lora
        if kind not in self.method.writes and not shared:
            return None
        backbone = self.backbone
        sites = backbone.sites(kind, config.target_modules)
        return Hypernetwork(sites, backbone.d_model, backbone.site_shape, config, kind, generates=not shared)

    @property
    def generators(self) -> tuple[Hypernetwork | StateGenerator, ...]:
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

    def read(self, ids: Tensor, mask: Tensor, *, checkpointing: bool = False) -> EncodedInstruction:
        """I: instructions (T, S) through the language model, without adapters and fusion.

        Given as pieces (T, E, S) they are encoded piece by piece, and I is their concatenation, (T, E·S, D).
        """
        if ids.dim() == 3 and not ids.shape[1]:
            return neutral(self.backbone, len(ids)).instruction
        if ids.dim() == 3:
            pieces = self.read(ids.flatten(0, 1), mask.flatten(0, 1), checkpointing=checkpointing)
            return EncodedInstruction(pieces.hidden.unflatten(0, ids.shape[:2]).flatten(1, 2), mask.flatten(1).bool())
        reader = cast(Reader, self.instruction_encoder or self.backbone)
        states = self.method.lora and self.settings.generator == "states"
        read = reader.read(ids, mask, states=states, checkpointing=checkpointing)
        if not self.method.fuses_decoder:
            return replace(read, attended=None)  # which nothing would read
        if self.instruction_encoder is None or self.backbone.has_encoder:
            return read
        return replace(read, attended=self.backbone.read(ids, mask).attended)

    def adapt(self, ids: Tensor, mask: Tensor, *, checkpointing: bool = False) -> TaskAdapter:
        """Instructions (T, S) to the adapters of T tasks; where the method reads none, without an instruction."""
        if not self.method.reads_instruction_once:
            return self.generate(neutral(self.backbone, len(ids)).instruction, ids)
        return self.generate(self.read(ids, mask, checkpointing=checkpointing), ids, checkpointing=checkpointing)

    def generate(self, encoded: EncodedInstruction, ids: Tensor, *, checkpointing: bool = False) -> TaskAdapter:
        """Encoded instructions, and their tokens (T, S), to the adapters of T tasks; what padding holds does not
        matter."""
        modules, summaries = dict[Site, Factors](), None
        for generator in self.generators:
            if isinstance(generator, StateGenerator):
                summaries = generator(encoded.states, encoded.mask)
            else:
                modules |= generator(encoded.hidden, encoded.mask)
        adapter = TaskAdapter(modules, replace(encoded, states=None), summaries=summaries)
        if self.reads_again:
            own = self.modules_of(adapter)
            again = self.backbone.read(ids, encoded.mask, modules=own, checkpointing=checkpointing)
            adapter = replace(adapter, instruction=replace(adapter.instruction, attended=again.attended))
        return adapter

    @property
    def summaries(self) -> tuple[int, ...] | None:
        """States, vectors and width (P, r, D) of the summaries that an adapter holds; None where it holds none."""
        found = self.hypernetwork
        return tuple(found.query.shape) if isinstance(found, StateGenerator) else None

    def modules_of(self, adapter: TaskAdapter) -> Modules:
        """Everything that adapters apply to the language model's layers: what they hold, and what their summaries and
        the generator's own matrices are together."""
        if adapter.summaries is None:
            return adapter.modules
        assert isinstance(self.hypernetwork, StateGenerator)
        return {**adapter.modules, **self.hypernetwork.lora(adapter.summaries)}

    @torch.no_grad()
    def lora(self, adapter: TaskAdapter) -> dict[Site, Factors]:
        """The modules of adapters as two matrices each, whoever wrote them: what other programs open."""
        return lora.whole(self.modules_of(adapter), self.backbone.site_weights())

    def prepare(self, adapter: TaskAdapter, *, merge: bool = False) -> Prepared:
        """Everything that can be computed of adapters once, before any input is seen.

        Args:
            merge: add the LoRA of a single task into copies of the weights; worth it from a few inputs on.
        """
        modules = self.modules_of(adapter)
        if merge:
            modules = lora.merged(modules, self.backbone.site_weights())
        fuse = None if self.fusion is None else self.fusion.prepare(adapter.instruction)
        return self.backbone.prepare(adapter.instruction, modules, attends=self.method.fuses_decoder, fuse=fuse)

    def forward(
        self,
        instruction_ids: Tensor,
        instruction_mask: Tensor,
        input_ids: Tensor,
        input_mask: Tensor,
        target_ids: Tensor,
        rows: Rows,
        encoded: EncodedInstruction | None = None,
        checkpointing: bool = False,
    ) -> Output:
        """Instructions (T, S), inputs (R, N), targets (R, O) to logits (R, O, V).

        Args:
            encoded: the instructions already read, where that was done before.
            checkpointing: see `Backbone.score`.
        """
        if encoded is None:
            adapter = self.adapt(instruction_ids, instruction_mask, checkpointing=checkpointing)
        else:
            adapter = self.generate(encoded, instruction_ids, checkpointing=checkpointing)
        return self.respond(adapter, input_ids, input_mask, target_ids, rows, checkpointing=checkpointing)

    def respond(
        self,
        adapter: TaskAdapter,
        input_ids: Tensor,
        input_mask: Tensor,
        target_ids: Tensor,
        rows: Rows,
        *,
        checkpointing: bool = False,
    ) -> Output:
        """Inputs (R, N) and targets (R, O) to logits (R, O, V), with adapters given from outside."""
        prepared = self.prepare(adapter)
        logits = self.backbone.score(
            input_ids, input_mask, target_ids, prepared=prepared, rows=rows, checkpointing=checkpointing
        )
        return Output(logits, adapter)


def neutral(backbone: Backbone, tasks: int) -> TaskAdapter:
    """The adapter that changes nothing: no modules and an empty instruction."""
    weight = backbone.embedding.weight
    mask = torch.zeros(tasks, 0, dtype=torch.bool, device=weight.device)
    return TaskAdapter({}, EncodedInstruction(weight.new_zeros(tasks, 0, backbone.d_model), mask))


def _check(backbone: Backbone, method: Method, hypernetwork: HypernetworkConfig) -> None:
    if backbone.has_encoder:
        if hypernetwork.generator == "states":
            raise ConfigError(
                f"hypernetwork.generator: states are read in decoder-only models; {backbone.family} has an encoder"
            )
        return
    if method.apart:
        raise ConfigError(
            f"method: {method.name} encodes demonstrations apart; {backbone.family} is a decoder-only model without an "
            "encoder"
        )
    if method.fuses_encoder and not method.fuses_decoder:
        raise ConfigError(
            f"method: {method.name} fuses the instruction into an encoder; {backbone.family} is a decoder-only model "
            "without one"
        )


def initialise(model: TagiModel, generator: torch.Generator) -> None:
    """Random initialisation of the parts that no language model's checkpoint holds."""
    for written in model.generators:
        written.initialise(generator)
    if model.fusion is not None:
        fusion_module.initialise(model.fusion, generator)
