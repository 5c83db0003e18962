"""A decoder-only language model of any family, with adapters and encoded instructions as arguments.

Llama, SmolLM, Mistral, Qwen2, Qwen3, GPT-2 and OPT are points in the space of `DecoderShape`; nothing here asks which.
Shapes: see `tagi.backbones.rows`.
"""

import copy
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tagi.backbones.base import Fuse, Prepared
from tagi.backbones.cache import KeyValue, Past, distances
from tagi.backbones.decoder.attention import right_aligned, view
from tagi.backbones.decoder.blocks import Block, Pass, lora_site, norm
from tagi.backbones.decoder.names import NAMES
from tagi.backbones.decoder.rotary import angles
from tagi.backbones.encoded import Attended, EncodedInstruction
from tagi.backbones.rows import Rows
from tagi.backbones.sites import Modules, Site
from tagi.config import DecoderShape, ModuleKind, Target
from tagi.errors import ConfigError, InputError


@dataclass(frozen=True, slots=True)
class DecoderCache:
    """What rows have read of input and answer. Implements `tagi.backbones.base.Cache`."""

    past: Past
    prepared: Prepared
    rows: Rows

    def select(self, index: Tensor) -> "DecoderCache":
        return DecoderCache(self.past.select(index), self.prepared, self.rows.select(index))

    def reordered(self, index: Tensor) -> "DecoderCache":
        return replace(self, past=self.past.select(index))

    def stack(self, other: "DecoderCache", prepared: Prepared, rows: Rows, room: int) -> "DecoderCache":
        return DecoderCache(self.past.stack(other.past, room), prepared, rows)

    def put(self, places: Tensor, other: "DecoderCache", prepared: Prepared, rows: Rows, room: int) -> "DecoderCache":
        return DecoderCache(self.past.put(places, other.past, room), prepared, rows)

    def given(self, prepared: Prepared, rows: Rows) -> "DecoderCache":
        return replace(self, prepared=prepared, rows=rows)


class Decoder(nn.Module):
    """The language model. Implements `tagi.backbones.base.Backbone`."""

    has_encoder = False

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__()
        self.shape, width = shape, shape.d_embedding or shape.d_model
        self.embedding = _table(shape.vocab_size, width)
        learned = shape.learned
        self.position = None if learned is None else _table(shape.max_positions + learned.offset, shape.d_model)
        projected = width != shape.d_model
        self.project_in = nn.Linear(width, shape.d_model, bias=False) if projected else None
        self.project_out = nn.Linear(shape.d_model, width, bias=False) if projected else None
        self.blocks = nn.ModuleList(Block(shape, layer) for layer in range(shape.num_layers))
        self.norm = norm(shape) if shape.norm_first else None
        self.output = None if shape.tied else nn.Linear(width, shape.vocab_size, bias=False)

    @property
    def family(self) -> str:
        return self.shape.family

    @property
    def d_model(self) -> int:
        return self.shape.d_model

    @property
    def max_positions(self) -> int:
        return self.shape.max_positions

    @property
    def end_ids(self) -> tuple[int, ...]:
        return self.shape.eos_token_ids

    def reader(self) -> "Decoder":
        return copy.deepcopy(self)

    def sites(self, kind: ModuleKind = "lora", targets: tuple[Target, ...] = ("q", "v")) -> tuple[Site, ...]:
        if "gate" in targets and not self.shape.gated:
            raise ConfigError("target_modules: gate: the MLP of this language model has no gate")
        layers = range(self.shape.num_layers)
        if kind == "prefix":
            return tuple(Site("decoder.self", layer, "prefix") for layer in layers)
        if kind == "bottleneck":
            return tuple(Site("decoder.feed_forward", layer, "bottleneck") for layer in layers)
        return tuple(lora_site(layer, target) for layer in layers for target in targets)

    def site_shape(self, site: Site) -> tuple[int, int]:
        shape = self.shape
        if site.place == "prefix":
            return shape.q_dim, shape.q_dim
        if site.place == "bottleneck":
            return shape.d_model, shape.d_model
        out, width = self._linear(site).weight.shape
        return width, out

    def site_weights(self) -> dict[Site, Tensor]:
        present: list[Target] = ["q", "k", "v", "o", "up", "down"]
        if self.shape.gated:
            present.insert(4, "gate")
        return {site: self._linear(site).weight for site in self.sites("lora", tuple(present))}

    def state(self, site: Site) -> int | None:
        if site.place not in ("q", "k", "v", "gate", "up"):
            return None
        return 2 * site.layer + (site.kind == "decoder.feed_forward")

    def site_name(self, site: Site) -> str:
        names = NAMES[self.shape.family]
        part = "attention" if site.kind == "decoder.self" else "feed_forward"
        return f"{names['blocks']}.{site.layer}.{names[f'{part}.{site.place}']}"

    def read(
        self,
        ids: Tensor,
        mask: Tensor,
        *,
        modules: Modules | None = None,
        states: bool = False,
        checkpointing: bool = False,
    ) -> EncodedInstruction:
        mask = mask.bool()
        if not mask.any():
            return EncodedInstruction(self.embedding.weight.new_zeros(*ids.shape, self.d_model), mask)
        positions, prepared = (mask.cumsum(1) - 1).clamp(min=0), Prepared(len(ids), modules or {})
        hidden = None if mask.all() else ~mask[:, None, None, :]
        rows, seen = Rows(len(ids), len(ids)), list[Tensor]() if states else None
        x_TSD, layers = self._run(ids, positions, hidden, prepared, rows, checkpointing=checkpointing, states=seen)
        return EncodedInstruction(x_TSD, mask, Attended(layers, mask), None if seen is None else torch.stack(seen, 2))

    def prepare(
        self, encoded: EncodedInstruction, modules: Modules, *, attends: bool = True, fuse: Fuse | None = None
    ) -> Prepared:
        if fuse is not None:
            raise ValueError("a decoder-only model has no encoder to fuse anything into")
        return Prepared(encoded.tasks, modules, encoded.attended if attends else None)

    def begin(
        self, ids: Tensor, mask: Tensor, *, prepared: Prepared, rows: Rows, room: int = 0
    ) -> tuple[Tensor, DecoderCache]:
        ids, mask = right_aligned(ids, mask.bool())
        positions, hidden = _positions(mask, prepared, rows)
        x_RND, layers = self._run(ids, positions, hidden, prepared, rows)
        first = None if hidden is None else mask.shape[1] - mask.sum(1)
        past = Past(layers, mask.shape[1], first)
        return self.logits(x_RND[:, -1]), DecoderCache(past.with_room(room) if room else past, prepared, rows)

    def step(self, ids: Tensor, cache: DecoderCache) -> tuple[Tensor, DecoderCache]:
        past, prepared, rows = cache.past, cache.prepared, cache.rows
        positions = self._next_position(cache, ids)
        hidden = past.hidden(past.length + 1)
        x_R1D, layers = self._run(ids[:, None], positions[:, None], hidden, prepared, rows, past)
        return self.logits(x_R1D[:, -1]), DecoderCache(past.after(layers), prepared, rows)

    def score(
        self,
        input_ids: Tensor,
        input_mask: Tensor,
        target_ids: Tensor,
        *,
        prepared: Prepared,
        rows: Rows,
        owner: Tensor | None = None,
        checkpointing: bool = False,
    ) -> Tensor:
        if owner is not None:
            return self._score_after(input_ids, input_mask, target_ids, prepared, rows, owner)
        states = self._answering(input_ids, input_mask, target_ids, prepared, rows, checkpointing=checkpointing)
        return self.logits(states)

    def attention(
        self, input_ids: Tensor, input_mask: Tensor, target_ids: Tensor, *, prepared: Prepared, rows: Rows
    ) -> Tensor | None:
        watched: list[Tensor] = []
        self._answering(input_ids, input_mask, target_ids, prepared, rows, watched=watched)
        if not watched:
            return None
        return torch.stack([weights.mean(1)[:, -target_ids.shape[1] :] for weights in watched]).mean(0)

    def _answering(
        self,
        input_ids: Tensor,
        input_mask: Tensor,
        target_ids: Tensor,
        prepared: Prepared,
        rows: Rows,
        *,
        checkpointing: bool = False,
        watched: list[Tensor] | None = None,
    ) -> Tensor:
        """Hidden states (R, O, D) that every target token is predicted from, in one pass."""
        ids, mask = right_aligned(input_ids, input_mask.bool())
        inputs, targets = ids.shape[1], target_ids.shape[1]
        both = torch.cat((ids, target_ids[:, :-1]), dim=1)  # nothing is read after the last target
        mask = F.pad(mask, (0, targets - 1), value=True)
        positions, hidden = _positions(mask, prepared, rows)
        states = self._run(both, positions, hidden, prepared, rows, checkpointing=checkpointing, watched=watched)[0]
        return states[:, inputs - 1 :]

    def _score_after(
        self, ids: Tensor, mask: Tensor, target_ids: Tensor, prepared: Prepared, rows: Rows, owner: Tensor
    ) -> Tensor:
        """Logits (C, O, V) of targets, several of which share one reading of their input."""
        first, cache = self.begin(ids, mask, prepared=prepared, rows=rows)
        cache = cache.select(owner)
        if target_ids.shape[1] == 1:
            return first[owner][:, None]
        more = target_ids[:, :-1]
        positions = self._next_position(cache, owner)[:, None] + torch.arange(more.shape[1], device=ids.device)
        hidden = cache.past.hidden(cache.past.length + more.shape[1])
        states, _ = self._run(more, positions, hidden, prepared, cache.rows, cache.past)
        return torch.cat((first[owner][:, None], self.logits(states)), dim=1)

    def _next_position(self, cache: DecoderCache, like: Tensor) -> Tensor:
        """Of the token (R,) that comes next in every row."""
        first = torch.zeros_like(like) if cache.past.first is None else cache.past.first
        attended = cache.prepared.attended
        return cache.past.length - first + (0 if attended is None else cache.rows.pick(attended.start))

    def logits(self, x_LD: Tensor) -> Tensor:
        """Hidden states (..., D) to scores over the vocabulary (..., V)."""
        flat = x_LD.reshape(-1, x_LD.shape[-1])  # a slice of three dimensions would make torch copy the whole matrix
        if self.project_out is not None:
            flat = self.project_out(flat)
        matrix = self.embedding.weight if self.output is None else self.output.weight
        return F.linear(flat, matrix).unflatten(0, x_LD.shape[:-1])

    def _run(
        self,
        ids: Tensor,
        positions: Tensor,
        hidden: Tensor | None,
        prepared: Prepared,
        rows: Rows,
        past: Past | None = None,
        checkpointing: bool = False,
        watched: list[Tensor] | None = None,
        states: list[Tensor] | None = None,
    ) -> tuple[Tensor, tuple[KeyValue, ...]]:
        """Tokens and positions (R, L) to hidden states (R, L, D) and each block's keys and values, the past's first."""
        self._check_length(positions)
        shape, x_RLD = self.shape, self.embedding(ids)
        if self.project_in is not None:
            x_RLD = self.project_in(x_RLD)
        if self.position is not None and shape.learned is not None:
            x_RLD = x_RLD + self.position(positions + shape.learned.offset)
        by = None if shape.rotary is None else angles(shape.rotary, shape.head_dim, positions, x_RLD.dtype)
        length = ids.shape[1]
        distance = distances(length, 0 if past is None else past.length, ids.device)
        full, windowed = (
            view(distance, hidden, positions, prepared.attended, rows, window) for window in (None, shape.window)
        )
        this = Pass(prepared, rows, full, windowed if shape.window_layers else None, by, past, watched, states)
        read: list[KeyValue] = []
        for block in cast(Iterable[Block], self.blocks):
            x_RLD, own = checkpoint(block, x_RLD, this, use_reentrant=False) if checkpointing else block(x_RLD, this)
            read.append(own)
        return x_RLD if self.norm is None else self.norm(x_RLD), tuple(read)

    def _check_length(self, positions: Tensor) -> None:
        if positions.numel() and positions.device.type != "meta" and int(positions.max()) >= self.shape.max_positions:
            raise InputError(
                f"instruction, input and answer have {int(positions.max()) + 1} tokens together, more than the "
                f"{self.shape.max_positions} positions of this language model; shorten prompt.max_*"
            )

    def _linear(self, site: Site) -> nn.Linear:
        block: Any = self.blocks[site.layer]
        part = block.attention if site.kind == "decoder.self" else block.feed_forward
        return part.get_submodule(site.place)


def _table(rows: int, width: int) -> nn.Embedding:
    """An embedding, its numbers left open: to draw them on the meta device torch imports its compiler for seconds."""
    return nn.Embedding.from_pretrained(torch.empty(rows, width), freeze=False)


def initialise(model: Decoder, generator: torch.Generator) -> None:
    """Random initialisation, in place: matrices by their fan-in, those that write into the residual stream by depth."""
    depth = (2 * model.shape.num_layers) ** -0.5
    outputs = {
        part for block in cast(Iterable[Block], model.blocks) for part in (block.attention.o, block.feed_forward.down)
    }
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, 0.0, 0.02, generator=generator)
        elif isinstance(module, nn.Linear):
            std = module.in_features**-0.5 * (depth if module in outputs else 1.0)
            nn.init.normal_(module.weight, 0.0, std, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _positions(mask: Tensor, prepared: Prepared, rows: Rows) -> tuple[Tensor, Tensor | None]:
    """Positions (R, L) of inputs that stand at the end of their rows, and the padding before them (R, 1, 1, L)."""
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    if prepared.attended is not None:
        positions = positions + rows.pick(prepared.attended.start)[:, None]
    return positions, None if mask.all() else ~mask[:, None, None, :]
