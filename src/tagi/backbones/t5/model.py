"""T5 with adapters and encoded instructions as arguments (Raffel et al., 2020).

Three code paths cover the family: relu with tied embeddings (v1.0), gated-gelu untied (v1.1, LM-adapt, Flan)
and, by its configuration, mT5. Shapes: see `rows.py`.
"""

from collections.abc import Iterable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tagi.backbones import attention as att
from tagi.backbones.attention import padding_bias
from tagi.backbones.base import Fuse, Prepared
from tagi.backbones.cache import KeyValue, Past, distances
from tagi.backbones.encoded import Attended, EncodedInstruction
from tagi.backbones.layers import RMSNorm
from tagi.backbones.rows import Rows
from tagi.backbones.sites import Modules, Site
from tagi.backbones.t5.blocks import Attention, DecoderBlock, EncoderBlock, FeedForward
from tagi.backbones.t5.cache import Inputs, T5Cache
from tagi.backbones.t5.names import ATTENTIONS
from tagi.config import ModuleKind, T5Shape, Target
from tagi.errors import ConfigError

POSITION_STD = 3.0
"""Of the relative position biases at random initialisation. With T5's own d_model^-0.5 every head is nearly blind to
order at first, and a small model trained from scratch names the right words in the wrong order for long."""


class T5Encoder(nn.Module):
    """The encoder with its embeddings: half of a language model, and by itself what reads instructions."""

    def __init__(self, shape: T5Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(shape.vocab_size, shape.d_model)
        self.encoder = nn.ModuleList(EncoderBlock(shape, i) for i in range(shape.num_layers))
        self.encoder_position = nn.Embedding(shape.relative_attention_num_buckets, shape.num_heads)
        self.encoder_norm = RMSNorm(shape.d_model, shape.layer_norm_epsilon)
        self.dropout = nn.Dropout(shape.dropout_rate)

    def read(
        self,
        ids: Tensor,
        mask: Tensor,
        *,
        modules: Modules | None = None,
        states: bool = False,
        checkpointing: bool = False,
    ) -> EncodedInstruction:
        """See `Backbone.read`."""
        if states:
            raise ValueError("the projections of an encoder-decoder read no states of an instruction")
        rows = Rows(len(ids), len(ids))
        hidden = self.encode(ids, mask, Prepared(len(ids), modules or {}), rows, checkpointing=checkpointing)
        return EncodedInstruction(hidden, mask.bool())

    def encode(
        self, ids: Tensor, mask: Tensor, prepared: Prepared, rows: Rows, *, checkpointing: bool = False
    ) -> Tensor:
        """Token ids (R, N) to hidden states (R, N, D); the mask (R, N), or by query (R, N, N)."""
        x_RND = self.dropout(self.embedding(ids))
        position = position_bias(self.encoder_position, distances(ids.shape[1], 0, ids.device), self.shape)
        bias = position + padding_bias(mask, x_RND.dtype)
        for block in self.encoder:
            x_RND = _through(block, checkpointing, x_RND, bias, prepared.modules, rows, prepared.fuse)
        return self.dropout(self.encoder_norm(x_RND))


class T5(T5Encoder):
    """The language model. Implements `tagi.backbones.base.Backbone`."""

    has_encoder, max_positions, family = True, None, "T5"

    def __init__(self, shape: T5Shape) -> None:
        super().__init__(shape)
        self.decoder = nn.ModuleList(DecoderBlock(shape, i) for i in range(shape.num_decoder_layers))
        self.decoder_position = nn.Embedding(shape.relative_attention_num_buckets, shape.num_heads)
        self.decoder_norm = RMSNorm(shape.d_model, shape.layer_norm_epsilon)
        for name in ("encoder_position", "decoder_position", "encoder_norm", "decoder_norm"):
            self.register_module(name, self._modules.pop(name))  # parameters keep the order that runs were saved in
        self.output = None if shape.tied else nn.Linear(shape.d_model, shape.vocab_size, bias=False)

    @property
    def d_model(self) -> int:
        return self.shape.d_model

    @property
    def end_ids(self) -> tuple[int, ...]:
        return self.shape.eos_token_ids

    @property
    def blocks(self) -> Iterable[nn.Module]:
        # a decoder block's cross-attention also gives keys and values outside of its forward
        return [*self.encoder, *(cast(DecoderBlock, block).feed_forward for block in self.decoder)]

    def reader(self) -> T5Encoder:
        """A copy of the encoder with its embeddings, which shares no tensor with this model."""
        weight = self.embedding.weight
        with weight.device:
            made = T5Encoder(self.shape).to(weight.dtype)
        own = self.state_dict()
        made.load_state_dict({name: own[name] for name in made.state_dict()})
        return made.train(self.training)

    def sites(self, kind: ModuleKind = "lora", targets: tuple[Target, ...] = ("q", "v")) -> tuple[Site, ...]:
        if kind == "lora":
            if others := [one for one in targets if one not in ("q", "v")]:
                raise ConfigError(f"target_modules: {others[0]}: LoRA of a T5 adapts q and v only")
            return tuple(site for m in self._attentions() for site in (m.site_q, m.site_v) if site.place in targets)
        if kind == "prefix":
            return tuple(module.site_prefix for module in self._attentions() if module.site_prefix is not None)
        return tuple(module.site for module in self.modules() if isinstance(module, FeedForward))

    def site_shape(self, site: Site) -> tuple[int, int]:
        if site.place == "prefix":
            return self.shape.inner_dim, self.shape.inner_dim
        return self.shape.d_model, self.shape.d_model if site.place == "bottleneck" else self.shape.inner_dim

    def site_weights(self) -> dict[Site, Tensor]:
        found: dict[Site, Tensor] = {}
        for module in self._attentions():
            found |= {module.site_q: module.q.weight, module.site_v: module.v.weight}
        return found

    def state(self, site: Site) -> None:
        """See `Backbone.state`."""
        return

    def site_name(self, site: Site) -> str:
        stack, _, attention = ATTENTIONS[site.kind]
        return f"{stack}.block.{site.layer}.layer.{attention}.{site.place}"

    def prepare(
        self, encoded: EncodedInstruction, modules: Modules, *, attends: bool = True, fuse: Fuse | None = None
    ) -> Prepared:
        attended = None
        if attends and encoded.mask.shape[1]:
            each = Rows(encoded.tasks, encoded.tasks)
            attended = Attended(self.cross_key_values(encoded.hidden, modules, each), encoded.mask)
        return Prepared(encoded.tasks, modules, attended, fuse)

    def begin(
        self, ids: Tensor, mask: Tensor, *, prepared: Prepared, rows: Rows, room: int = 0
    ) -> tuple[Tensor, T5Cache]:
        inputs = self.inputs(ids, mask, prepared, rows)
        if prepared.attended is not None and rows.tasks == rows.count:
            inputs = inputs.with_instruction(prepared.attended, rows)
        start = ids.new_full((rows.count, 1), self.shape.decoder_start_token_id)
        logits, layers = self.decode(start, inputs, prepared, rows)
        past = Past(layers, 1)
        return logits[:, 0], T5Cache(past.with_room(room) if room else past, inputs, prepared.encoder_done(), rows)

    def step(self, ids: Tensor, cache: T5Cache) -> tuple[Tensor, T5Cache]:
        logits, layers = self.decode(ids[:, None], cache.inputs, cache.prepared, cache.rows, past=cache.past)
        return logits[:, 0], cache.after(layers)

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
        inputs = self.inputs(input_ids, input_mask, prepared, rows, checkpointing=checkpointing)
        if owner is not None:
            inputs, rows = inputs.select(owner), rows.select(owner)
        shifted = F.pad(target_ids[:, :-1], (1, 0), value=self.shape.decoder_start_token_id)
        return self.decode(shifted, inputs, prepared, rows, checkpointing=checkpointing)[0]

    def attention(
        self, input_ids: Tensor, input_mask: Tensor, target_ids: Tensor, *, prepared: Prepared, rows: Rows
    ) -> None:
        return None  # its decoder attends to encoded instruction and input in one

    def inputs(
        self, ids: Tensor, mask: Tensor, prepared: Prepared, rows: Rows, *, checkpointing: bool = False
    ) -> Inputs:
        """Inputs (R, N), encoded, as the decoder attends to them."""
        hidden = self.encode(ids, mask, prepared, rows, checkpointing=checkpointing)
        return Inputs(self.cross_key_values(hidden, prepared.modules, rows), padding_bias(mask, hidden.dtype))

    def decode(
        self,
        ids: Tensor,
        inputs: Inputs,
        prepared: Prepared,
        rows: Rows,
        *,
        past: Past | None = None,
        seen: Tensor | None = None,
        checkpointing: bool = False,
    ) -> tuple[Tensor, tuple[KeyValue, ...]]:
        """Decoder ids (R, O) after `past` to logits (R, O, V), and what each layer's self-attention has read.

        Args:
            seen: (R, O, O), which tokens each one sees of those before it, if not all.
        """
        x_ROD = self.dropout(self.embedding(ids))
        bias = self._decoder_bias(ids.shape[1], past)
        if seen is not None:
            bias = bias + padding_bias(seen, bias.dtype)
        attended = None if inputs.whole else prepared.attended
        told_bias = None if attended is None else padding_bias(attended.mask, x_ROD.dtype)
        read: list[KeyValue] = []
        for block in self.decoder:
            x_ROD, own = _through(block, checkpointing, x_ROD, bias, inputs, told_bias, prepared, rows, past)
            read.append(own)
        return self.logits(self.dropout(self.decoder_norm(x_ROD))), tuple(read)

    def logits(self, x_ROD: Tensor) -> Tensor:
        """Decoder outputs to scores over the vocabulary (R, O, V)."""
        if self.shape.scale_outputs:
            x_ROD = x_ROD * self.shape.d_model**-0.5
        return F.linear(x_ROD, self.embedding.weight if self.output is None else self.output.weight)

    def _attentions(self) -> Iterator[Attention]:
        return (module for module in self.modules() if isinstance(module, Attention))

    def cross_key_values(self, hidden: Tensor, modules: Modules, rows: Rows) -> tuple[KeyValue, ...]:
        """Laid out head by head once, for every step of decoding reads them."""
        blocks = cast(Iterable[DecoderBlock], self.decoder)
        each = (block.cross.key_value(hidden, modules, rows) for block in blocks)
        return tuple(KeyValue(own.k.contiguous(), own.v.contiguous()) for own in each)

    def _decoder_bias(self, length: int, past: Past | None) -> Tensor:
        """Positions, the future and what a row cannot see of a shared past, (1 or R, H, length, read places)."""
        distance = distances(length, 0 if past is None else past.length, self.decoder_position.weight.device)
        hidden = None if past is None else past.hidden(distance.shape[-1])
        future = (distance > 0)[:, None]
        bias = position_bias(self.decoder_position, distance, self.shape, bidirectional=False)
        return bias.masked_fill(future if hidden is None else future | hidden, torch.finfo(bias.dtype).min)


def _through(block: nn.Module, checkpointing: bool, *arguments: Any) -> Any:
    """The block's output, its activations kept or, with `checkpointing`, forgotten until the backward pass."""
    if checkpointing and torch.is_grad_enabled():
        return checkpoint(block, *arguments, use_reentrant=False)
    return block(*arguments)


def position_bias(table: nn.Embedding, distance: Tensor, shape: T5Shape, *, bidirectional: bool = True) -> Tensor:
    """Relative position bias (1 or R, H, queries, keys) of key places - query places (1 or R, queries, keys)."""
    bucket = att.relative_bucket(
        distance,
        bidirectional=bidirectional,
        buckets=shape.relative_attention_num_buckets,
        max_distance=shape.relative_attention_max_distance,
    )
    return table(bucket).permute(0, 3, 1, 2)


def initialise(model: T5, generator: torch.Generator) -> None:
    """T5's random initialisation, in place: every matrix by its fan-in, queries also by 1/sqrt(d_kv)."""
    shape = model.shape
    width = shape.d_model**-0.5
    for module in model.modules():
        if isinstance(module, RMSNorm):
            nn.init.ones_(module.weight)
        elif isinstance(module, Attention):
            _normal(module.q, (shape.d_model * shape.d_kv) ** -0.5, generator)
            _normal(module.k, width, generator)
            _normal(module.v, width, generator)
            _normal(module.o, shape.inner_dim**-0.5, generator)
        elif isinstance(module, FeedForward):
            for matrix in (module.wi, module.wi_gate):
                if matrix is not None:
                    _normal(matrix, width, generator)
            _normal(module.wo, shape.d_ff**-0.5, generator)
    for table in (model.encoder_position, model.decoder_position):
        _normal(table, POSITION_STD, generator)
    _normal(model.embedding, 1.0, generator)
    if model.output is not None:
        _normal(model.output, width, generator)


def _normal(module: nn.Linear | nn.Embedding, std: float, generator: torch.Generator) -> None:
    nn.init.normal_(module.weight, 0.0, std, generator=generator)
