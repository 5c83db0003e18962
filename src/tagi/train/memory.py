"""How much memory a training step needs: weights, gradients, optimizer state, and what the backward pass keeps.

Activations are counted value by value as autograd keeps them for our T5 (`tests/test_plan.py` holds the formula
against the tensors that autograd really saves). Bytes; the CUDA context and fragmentation come on top.
Shape letters as in `rows.py`.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace

from torch import Size, nn

from tagi.config import FusionConfig, HypernetworkConfig, ModuleKind, Part, T5Shape, TrainingConfig
from tagi.methods import Method
from tagi.model.flops import Lengths, generated_sites, site_widths
from tagi.train import optim

WIDE = 4
"""Bytes of a value in fp32: masters, optimizer state, norms and losses."""
LOSS_COPIES = 3
"""Of the logits in fp32: widened, log-softmax, gradient."""
SCORE_COPIES = 3
"""Of one attention's scores that live at once while they are computed or differentiated."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of a training step, at its peak."""

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.activations


def value_bytes(training: TrainingConfig) -> int:
    """Bytes of a weight that computes."""
    return WIDE if training.precision == "fp32" else 2


def optimizer_bytes(parts: Mapping[str, Sequence[nn.Parameter]], training: TrainingConfig) -> int:
    """State of the trained tensors, by part as `optim.trainable` names them: two moments (AdamW), one (Muon's matrices)
    or row and column means (Adafactor), and fp32 masters."""
    masters = 1 if training.precision != "fp32" else 0
    each = ((part, parameter.shape) for part, parameters in parts.items() for parameter in parameters)
    return sum(WIDE * (_moments(part, shape, training) + masters * shape.numel()) for part, shape in each)


def _moments(part: str, shape: Size, training: TrainingConfig) -> int:
    if training.optimizer != "adafactor":
        return shape.numel() * (1 if part == optim.MATRICES else 2)
    return shape[:-1].numel() + (shape[:-2] + shape[-1:]).numel() if len(shape) > 1 else shape.numel()


@dataclass(frozen=True, slots=True)
class Keeping:
    """What decides which values a block keeps for its backward pass."""

    shape: T5Shape
    size: int
    """Bytes of a value."""
    trained: bool
    """Whether the block's own weights are trained; a frozen one does not keep what its weight gradients would read."""
    rank: int
    """Of the LoRA that is worn; 0 for none."""
    prefix: int = 0
    """Length of the prefix that every row wears."""
    bottleneck: int = 0
    """Width of the bottleneck adapter that is worn."""

    @property
    def drops(self) -> bool:
        """Whether dropout is on, which keeps a mask of one byte a value."""
        return self.shape.dropout_rate > 0


def norm(keep: Keeping, *, read: bool) -> int:
    """A norm for one token: its input, widened in half precision, and its output where a gradient reads it."""
    values = 3 if keep.trained else 1 + read
    return keep.shape.d_model * (values * keep.size + (WIDE if keep.size < WIDE else 0))


def feed_forward(keep: Keeping) -> int:
    """The feed-forward layer for one token."""
    gated, inner = keep.shape.gated, keep.shape.d_ff
    values = (3 + keep.trained) if gated else (1 + (keep.trained and keep.drops))
    masks = (inner + keep.shape.d_model) if keep.drops else 0
    adapter = (keep.shape.d_model + keep.bottleneck) * keep.size if keep.bottleneck else 0
    return norm(keep, read=False) + values * inner * keep.size + masks + adapter


def projections(keep: Keeping, count: int, sites: int) -> int:
    """Norm, `count` kept projections (q, k, v), the joined heads where trained, and LoRA, for one token."""
    inner = (count + keep.trained) * keep.shape.inner_dim + sites * keep.rank
    masks = keep.shape.d_model if keep.drops else 0
    return norm(keep, read=keep.rank > 0) + inner * keep.size + masks


def scores(keep: Keeping, rows: int, queries: int, keys: int) -> int:
    """Attention weights of one layer, and what dropout makes of them, with its mask."""
    each = keep.size + (1 + keep.size if keep.drops else 0)
    return rows * keep.shape.num_heads * queries * keys * each


def self_attention(keep: Keeping, rows: int, length: int) -> int:
    """A self-attention with its norm, and attention to the prefix: its queries and its weights laid out by task."""
    prefix = 0
    if keep.prefix:
        by_task = keep.shape.inner_dim + keep.shape.num_heads * keep.prefix
        prefix = scores(keep, rows, length, keep.prefix) + rows * length * by_task * keep.size
    return rows * length * projections(keep, 3, 2) + scores(keep, rows, length, length) + prefix


def encoder_block(keep: Keeping, rows: int, length: int) -> int:
    """One encoder block on (rows, length)."""
    return self_attention(keep, rows, length) + rows * length * feed_forward(keep)


def decoder_block(keep: Keeping, rows: int, length: int, context: int, memory: int) -> int:
    """One decoder block, the keys and values of `context` tokens a row included; `memory` more tokens are seen."""
    per_token = projections(keep, 1, 1) + feed_forward(keep)
    keys = rows * context * (2 * keep.shape.inner_dim + keep.rank) * keep.size
    seen = self_attention(keep, rows, length) + scores(keep, rows, length, context + memory)
    return rows * length * per_token + keys + seen


def fusion_layer(shape: T5Shape, config: FusionConfig, size: int, lengths: Lengths) -> int:
    """One fusion layer: norm, q twice, the joined heads, the gated output, and the weights."""
    width = config.width or shape.d_model // 4
    keep = Keeping(shape, size, trained=True, rank=0)
    per_token = norm(keep, read=True) + (3 * width + shape.d_model) * size
    weights = config.heads * lengths.instruction * size
    keys = lengths.tasks * lengths.instruction * 2 * width * size
    return lengths.rows * lengths.input * (per_token + weights) + keys


def before_the_first(keep: Keeping, method: Method, lengths: Lengths) -> int:
    """What a frozen model does not keep after all, since no gradient passes what is before the first adapter."""
    rows, n, o = lengths.rows, lengths.input, lengths.target
    if keep.trained:
        return 0
    if method.writes == ("bottleneck",):
        return encoder_block(replace(keep, bottleneck=0), rows, n) + self_attention(keep, rows, o)
    if method.writes == ("prefix",):
        bare = replace(keep, prefix=0)
        return self_attention(bare, rows, n) + self_attention(bare, rows, o)
    return 0


def generator(
    shape: T5Shape, config: HypernetworkConfig, size: int, lengths: Lengths, kind: ModuleKind = "lora"
) -> int:
    """A generator: pooled vectors, the hidden layer twice, A and B, and the attention over the instruction."""
    sites, rows = generated_sites(shape, kind), config.size(kind)
    vectors = rows if config.generator == "rankwise" else 1
    inner = vectors * (2 * shape.d_model + 2 * config.hidden + 2 * lengths.instruction)
    factors = (1 if kind == "bottleneck" else 2) * rows * sum(site_widths(shape, kind))
    return lengths.tasks * sites * (inner + factors) * size


def activations(
    shape: T5Shape,
    method: Method,
    hypernetwork: HypernetworkConfig,
    fused: FusionConfig,
    training: TrainingConfig,
    trained: Set[Part],
    lengths: Lengths,
    *,
    rank: int | None = None,
    own_encoder: bool = False,
) -> int:
    """Everything that one batch keeps for its backward pass, and the largest temporaries.

    Args:
        rank: of LoRA that is worn but not generated (a teacher's).
        own_encoder: whether an encoder of the hypernetwork's own, trained with it, reads the instruction.
    """
    worn = rank or (hypernetwork.rank if method.lora else 0)
    prefix = hypernetwork.prefix if "prefix" in method.writes else 0
    width = hypernetwork.bottleneck if "bottleneck" in method.writes else 0
    keep = Keeping(shape, value_bytes(training), "backbone" in trained, worn, prefix, width)
    seen = lengths.instruction if method.fuses_decoder else 0
    rows, n, o = lengths.rows, lengths.input, lengths.target
    encoder, decoder = encoder_block(keep, rows, n), decoder_block(keep, rows, o, n, seen)
    extra = fusion_layer(shape, fused, keep.size, lengths) if method.fuses_encoder else 0
    if training.gradient_checkpointing:
        token = shape.d_model * keep.size
        kept = rows * token * (n * shape.num_layers + o * shape.num_decoder_layers) + max(encoder + extra, decoder)
    else:
        kept = encoder * shape.num_layers + decoder * shape.num_decoder_layers
        kept += extra * len(range(0, shape.num_layers, fused.every))
        kept -= before_the_first(keep, method, lengths)
    kept += sum(generator(shape, hypernetwork, keep.size, lengths, kind) for kind in method.writes)
    encoder_trained = "hypernetwork" in trained if own_encoder else keep.trained
    return kept + instruction(keep, method, lengths, encoder_trained) + temporaries(keep, lengths, seen)


def instruction(keep: Keeping, method: Method, lengths: Lengths, encoder_trained: bool) -> int:
    """The encoded instruction's decoder keys and values, and its encoder's activations where that is trained."""
    if not method.reads_instruction_once:
        return 0
    tokens = lengths.tasks * lengths.instruction
    bare = replace(keep, trained=encoder_trained, prefix=0, bottleneck=0)  # it is encoded without adapters
    blocks = keep.shape.num_layers if encoder_trained else 0
    encoder = encoder_block(bare, lengths.tasks, lengths.instruction) * blocks
    keys = tokens * (2 * keep.shape.inner_dim + keep.rank) * keep.size * keep.shape.num_decoder_layers
    return encoder + (keys if method.fuses_decoder else 0)


def temporaries(keep: Keeping, lengths: Lengths, seen: int) -> int:
    """Logits with their loss, the encoder's position and padding bias, and one attention's scores at work."""
    rows, n, o = lengths.rows, lengths.input, lengths.target
    logits = rows * o * keep.shape.vocab_size * (keep.size + LOSS_COPIES * WIDE)
    largest = rows * keep.shape.num_heads * max(n * n, o * (n + seen))
    return logits + largest * keep.size * (1 + SCORE_COPIES)
