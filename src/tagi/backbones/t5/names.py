"""What Hugging Face calls the attentions of a T5."""

ATTENTIONS: dict[str, tuple[str, str, str]] = {
    "encoder.self": ("encoder", "attention", "0.SelfAttention"),
    "decoder.self": ("decoder", "attention", "0.SelfAttention"),
    "decoder.cross": ("decoder", "cross", "1.EncDecAttention"),
}
"""The stack of each kind of attention, our name in a block of it, and Hugging Face's."""
