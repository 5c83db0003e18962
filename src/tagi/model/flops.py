"""Floating-point operations of every piece of the model, as functions of shapes and lengths (matrix products only).

A multiply-add is two. What is counted here is what `torch.utils.flop_counter` counts on a real forward pass, to the
last digit. Shape suffixes as in `rows.py`: T tasks, R rows, S instruction, N input and O target tokens.
"""

from collections.abc import Set
from dataclasses import dataclass

from tagi.config import CausalShape, FusionConfig, HypernetworkConfig, ModuleKind, Part, Shape, T5Shape
from tagi.methods import Method

PROJECTIONS = 2
"""Of an attention that wear LoRA: q and v."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """Sizes of one batch, padding included."""

    tasks: int
    rows: int
    instruction: int
    input: int
    target: int
    pieces: int = 1
    """Equal parts of the instruction that are encoded apart (FiD)."""


@dataclass(frozen=True, slots=True)
class Flops:
    """Operations of a piece, by what its matrix products multiply."""

    weights: float = 0.0
    """Activations with parameters: backward costs the same again, and once more where the parameters are trained."""
    mixed: float = 0.0
    """Activations with activations (attention, generated LoRA): backward costs twice as much."""

    @property
    def forward(self) -> float:
        """Of one forward pass."""
        return self.weights + self.mixed

    def backward(self, *, trained: bool) -> float:
        """Of the backward pass to the activations, and to the parameters where they are trained."""
        return self.weights * (2 if trained else 1) + 2 * self.mixed

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(self.weights + other.weights, self.mixed + other.mixed)

    def __mul__(self, times: float) -> "Flops":
        return Flops(self.weights * times, self.mixed * times)


def linear(tokens: int, width_in: int, width_out: int) -> Flops:
    """x Wᵀ for so many tokens."""
    return Flops(weights=2.0 * tokens * width_in * width_out)


def attention(rows: int, queries: int, keys: int, inner: int) -> Flops:
    """q kᵀ and weights · v over all heads."""
    return Flops(mixed=4.0 * rows * queries * keys * inner)


def feed_forward(shape: T5Shape, tokens: int) -> Flops:
    """wi, its gate and wo."""
    return linear(tokens, shape.d_model, shape.d_ff) * (3 if shape.gated else 2)


def encoder(shape: T5Shape, rows: int, length: int) -> Flops:
    """The bare encoder on (rows, length)."""
    projections = linear(rows * length, shape.d_model, shape.inner_dim) * 4
    own = attention(rows, length, length, shape.inner_dim)
    return (projections + own + feed_forward(shape, rows * length)) * shape.num_layers


def cross_keys(shape: T5Shape, rows: int, length: int) -> Flops:
    """Keys and values of every decoder block's cross-attention, for encoded inputs or instructions."""
    return linear(rows * length, shape.d_model, shape.inner_dim) * (2 * shape.num_decoder_layers)


def decoder(shape: T5Shape, rows: int, length: int, context: int, past: int = 0) -> Flops:
    """The bare decoder on (rows, length) new tokens after `past`, attending to `context` tokens; with logits."""
    projections = linear(rows * length, shape.d_model, shape.inner_dim) * 6
    own = attention(rows, length, past + length, shape.inner_dim)
    cross = attention(rows, length, context, shape.inner_dim)
    blocks = (projections + own + cross + feed_forward(shape, rows * length)) * shape.num_decoder_layers
    return blocks + linear(rows * length, shape.d_model, shape.vocab_size)


def decoder_only(shape: CausalShape, rows: int, prompt: int, answer: int) -> Flops:
    """A decoder-only model on prompts, then on answers that attend to them; logits for the answers."""
    tokens, width = rows * (prompt + answer), shape.d_embedding or shape.d_model
    blocks = linear(tokens, shape.d_model, shape.d_model) * 4 + linear(tokens, shape.d_model, shape.d_ff) * 2
    blocks += attention(rows, prompt, prompt, shape.d_model) + attention(rows, answer, prompt + answer, shape.d_model)
    around = linear(tokens, width, shape.d_model) * 2 if width != shape.d_model else Flops()
    return blocks * shape.num_layers + around + linear(rows * answer, width, shape.vocab_size)


def lora(shape: T5Shape, rank: int, tokens: int, projections: int) -> Flops:
    """(x Aᵀ) Bᵀ at so many projections, for so many tokens."""
    return Flops(mixed=2.0 * tokens * rank * (shape.d_model + shape.inner_dim) * projections)


def encoder_lora(shape: T5Shape, rank: int, rows: int, length: int) -> Flops:
    """LoRA of the encoder's q and v."""
    return lora(shape, rank, rows * length, PROJECTIONS * shape.num_layers)


def cross_keys_lora(shape: T5Shape, rank: int, rows: int, length: int) -> Flops:
    """LoRA of the v of every cross-attention."""
    return lora(shape, rank, rows * length, shape.num_decoder_layers)


def decoder_lora(shape: T5Shape, rank: int, rows: int, length: int) -> Flops:
    """LoRA of the decoder's own q and v and of the cross-attention's q."""
    return lora(shape, rank, rows * length, 3 * shape.num_decoder_layers)


def prefix(shape: T5Shape, length: int, lengths: Lengths) -> Flops:
    """Attention to a prefix in every self-attention."""
    encoder = attention(lengths.rows, lengths.input, length, shape.inner_dim) * shape.num_layers
    return encoder + attention(lengths.rows, lengths.target, length, shape.inner_dim) * shape.num_decoder_layers


def bottleneck(shape: T5Shape, width: int, lengths: Lengths) -> Flops:
    """A bottleneck adapter behind every feed-forward layer."""
    tokens = lengths.input * shape.num_layers + lengths.target * shape.num_decoder_layers
    return Flops(mixed=4.0 * lengths.rows * tokens * width * shape.d_model)


def worn(shape: T5Shape, method: Method, generator: HypernetworkConfig, lengths: Lengths) -> Flops:
    """Everything that the hypernetwork wrote, at work on inputs and targets."""
    total = Flops()
    if "lora" in method.writes:
        total += worn_lora(shape, generator.rank, lengths, memory=method.fuses_decoder)
    if "prefix" in method.writes:
        total += prefix(shape, generator.prefix, lengths)
    if "bottleneck" in method.writes:
        total += bottleneck(shape, generator.bottleneck, lengths)
    return total


def hypernetwork(
    shape: T5Shape, config: HypernetworkConfig, tasks: int, instruction: int, kind: ModuleKind = "lora"
) -> Flops:
    """Eq. 2: pooling the encoded instruction, the first layer and both heads of every module's MLP."""
    sites = generated_sites(shape, kind)
    rankwise, rows = config.generator == "rankwise", config.size(kind)
    per_site, per_query = (rows, 1) if rankwise else (1, rows)
    vectors = tasks * per_site * sites
    mlp = linear(vectors, shape.d_model, config.hidden)
    heads = linear(vectors, config.hidden, per_query * sum(site_widths(shape, kind)))
    return attention(1, vectors, instruction, shape.d_model) + mlp + heads


def generated_sites(shape: T5Shape, kind: ModuleKind) -> int:
    """Places that a hypernetwork writes a module of that kind for."""
    if kind == "lora":
        return PROJECTIONS * (shape.num_layers + 2 * shape.num_decoder_layers)
    return shape.num_layers + shape.num_decoder_layers


def site_widths(shape: T5Shape, kind: ModuleKind) -> tuple[int, int]:
    """(in, out) of such a module's two matrices."""
    width_in = shape.inner_dim if kind == "prefix" else shape.d_model
    return width_in, shape.d_model if kind == "bottleneck" else shape.inner_dim


def fusion(shape: T5Shape, config: FusionConfig, rows: int, length: int, instruction: int) -> Flops:
    """Eq. 1 in every n-th encoder block, keys and values of the instruction given."""
    width = config.width or shape.d_model // 4
    each = linear(rows * length, shape.d_model, width) * 2 + attention(rows, length, instruction, width)
    return each * _fusion_layers(shape, config)


def fusion_keys(shape: T5Shape, config: FusionConfig, tasks: int, instruction: int) -> Flops:
    """Keys and values of the instruction for every fusion layer, once per task."""
    width = config.width or shape.d_model // 4
    return linear(tasks * instruction, shape.d_model, width) * (2 * _fusion_layers(shape, config))


def _fusion_layers(shape: T5Shape, config: FusionConfig) -> int:
    return len(range(0, shape.num_layers, config.every))


@dataclass(frozen=True, slots=True)
class ForwardFlops:
    """A teacher-forced forward pass, piece by piece."""

    instruction: Flops
    """Encoding the instructions; nothing where the method has them in the prompt."""
    backbone: Flops
    """Encoder and decoder on inputs and targets."""
    memory: Flops
    """The instruction's cross-attention keys and values."""
    modules: Flops
    """What the hypernetwork wrote, at work."""
    hypernetwork: Flops
    fusion: Flops

    @property
    def total(self) -> float:
        """Of the whole pass."""
        pieces = (self.instruction, self.backbone, self.memory, self.modules, self.hypernetwork, self.fusion)
        return sum(piece.forward for piece in pieces)


def forward(
    shape: Shape, method: Method, generator: HypernetworkConfig, fused: FusionConfig, lengths: Lengths
) -> ForwardFlops:
    """A student's forward pass on one batch.

    For a method with the instruction in its prompt, `lengths.input` is the length of the whole prompt.
    """
    none, once = Flops(), method.reads_instruction_once
    tasks, rows, s, n, o = lengths.tasks, lengths.rows, lengths.instruction, lengths.input, lengths.target
    if isinstance(shape, CausalShape):
        return ForwardFlops(none, decoder_only(shape, rows, n, o), none, none, none, none)
    seen = n + (s if method.fuses_decoder else 0)
    backbone = encoder(shape, rows, n) + cross_keys(shape, rows, n) + decoder(shape, rows, o, seen)
    return ForwardFlops(
        instruction=encoder(shape, tasks * lengths.pieces, s // lengths.pieces) if once else none,
        backbone=backbone,
        memory=cross_keys(shape, tasks, s) if method.fuses_decoder else none,
        modules=worn(shape, method, generator, lengths),
        hypernetwork=sum((hypernetwork(shape, generator, tasks, s, kind) for kind in method.writes), start=none),
        fusion=fusion(shape, fused, rows, n, s) + fusion_keys(shape, fused, tasks, s) if method.fuses_encoder else none,
    )


def worn_lora(shape: T5Shape, rank: int, lengths: Lengths, *, memory: bool) -> Flops:
    """LoRA at every site, over inputs, targets and, where the decoder sees it, the instruction memory."""
    rows, n = lengths.rows, lengths.input
    own = encoder_lora(shape, rank, rows, n) + cross_keys_lora(shape, rank, rows, n)
    own += decoder_lora(shape, rank, rows, lengths.target)
    return own + cross_keys_lora(shape, rank, lengths.tasks, lengths.instruction) if memory else own


def training(passes: ForwardFlops, trained: Set[Part], *, separate_encoder: bool = False) -> float:
    """Forward and backward: gradients of the activations everywhere, of the weights in the trained parts only.

    The instruction encoding has a backward pass only where its encoder is trained. The backward pass is counted to
    the embeddings; with a frozen backbone the first block's projections really need none (an upper bound).
    """
    backbone = "backbone" in trained
    generator = "hypernetwork" in trained
    back = passes.backbone.backward(trained=backbone)
    back += passes.modules.backward(trained=False)
    back += passes.hypernetwork.backward(trained=generator)
    back += passes.fusion.backward(trained="fusion" in trained)
    if backbone or (separate_encoder and generator):
        back += passes.instruction.backward(trained=True) + passes.memory.backward(trained=backbone)
    return passes.total + back


def recomputed(passes: ForwardFlops) -> float:
    """What gradient checkpointing computes a second time."""
    return passes.backbone.forward + passes.modules.forward + passes.fusion.forward
