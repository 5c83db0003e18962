"""Our T5 against `transformers`: logits, gradients, padding, caching, greedy decoding, files."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from builders import VOCABULARY, normal, seeded, small_shape, token_batch, worst
from torch import Tensor, nn
from transformers import (
    MT5Config,
    MT5ForConditionalGeneration,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.models.t5.modeling_t5 import T5Attention

from tagi import methods
from tagi.config import FusionConfig, HypernetworkConfig
from tagi.infer.decode import greedy
from tagi.model.attention import relative_bucket
from tagi.model.backbone import Backbone, Past
from tagi.model.rows import Rows
from tagi.model.t5 import T5
from tagi.model.t5_hf import load_t5, save_t5, tensor_names
from tagi.model.tagi import TagiModel, neutral

BASE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16,
    "decoder_start_token_id": 0,
}
UNEVEN: dict[str, Any] = {"num_layers": 3, "num_decoder_layers": 1, "num_heads": 3, "d_kv": 5}
GATED: dict[str, Any] = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
VARIANTS = ("v1.0", "v1.0-uneven", "v1.1", "v1.1-uneven", "mt5", "mt5-tied")

# Worst seen over all variants, fp32 on CPU: logits 0 (they agree in every bit on this machine).
LOGITS = 1e-5
