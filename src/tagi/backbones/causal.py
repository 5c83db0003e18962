"""GPT-2 and OPT, run by `transformers`, behind the same protocol as our T5: a prompt, then the answer token by token.

What an encoder-decoder knows as context is here the prompt's keys and values; what it knows as past are those of the
prompt and of the answer so far. The first token of an answer follows the start token, as a decoder's does, so that
training, decoding and choice scoring are the same code for both. Nothing is generated for these models: they have no
sites and no memory of an instruction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from transformers import GPT2Config, OPTConfig, PretrainedConfig
from transformers.utils import logging

from tagi.backbones.attention import padding_bias
from tagi.backbones.cache import DecoderContext, DecoderMemory, History, KeyValue, Past
from tagi.backbones.files import check_finite, read_hf_config
from tagi.backbones.rows import Rows
from tagi.backbones.sites import AfterSelfAttention, Modules, Site
from tagi.config import CausalShape, ModuleKind
from tagi.config.files import parse
from tagi.errors import CheckpointError, ConfigError, InputError

if TYPE_CHECKING:  # a second of imports, which a T5 does without
    from transformers import PreTrainedModel
    from transformers.cache_utils import DynamicLayer

FAMILIES = ("gpt2", "opt")


class CausalLM(nn.Module):
    """A decoder-only language model of `transformers`."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.shape = causal_shape_of(model.config)

    @staticmethod
    def of_shape(shape: CausalShape, seed: int = 0) -> CausalLM:
        """A model with `transformers`' random initialisation; global random state stays as it was."""
        from transformers import AutoModelForCausalLM

        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return CausalLM(AutoModelForCausalLM.from_config(causal_config_of(shape)))

    @property
    def d_model(self) -> int:
        return self.shape.d_model

    @property
    def embedding(self) -> nn.Embedding:
        """Token embeddings (V, E)."""
        return cast(nn.Embedding, self.model.get_input_embeddings())

    def sites(self, kind: ModuleKind = "lora") -> tuple[Site, ...]:
        return ()

    def site_shape(self, site: Site) -> tuple[int, int]:
        raise KeyError(site)

    def site_weights(self) -> dict[Site, Tensor]:
        return {}

    def encode(
        self,
        ids: Tensor,
        mask: Tensor,
        *,
        modules: Modules,
        rows: Rows,
        after_self_attention: AfterSelfAttention | None = None,
    ) -> Tensor:
        """The prompt's token embeddings (R, N, E): everything else of it is done in `context`."""
        return self.embedding(ids)

    def project_memory(self, hidden: Tensor, mask: Tensor, *, modules: Modules) -> DecoderMemory:
        raise NotImplementedError("a decoder-only language model has no cross-attention for an instruction")

    def context(
        self, hidden: Tensor, mask: Tensor, *, modules: Modules, rows: Rows, memory: DecoderMemory | None
    ) -> DecoderContext:
        """One pass over the prompts (R, N, E): the keys and values of every layer.

        Raises:
            InputError: more tokens than the model has positions.
        """
        positions = torch.arange(hidden.shape[1], device=hidden.device).expand(hidden.shape[:2])
        _, read = self._run(hidden, mask, positions, ())
        return DecoderContext(read, padding_bias(mask, hidden.dtype), None)

    def decode(
        self, ids: Tensor, context: DecoderContext, *, modules: Modules, rows: Rows, past: History | None = None
    ) -> tuple[Tensor, History]:
        """Answers (R, O) after the prompt, which the context holds, and what `past` holds of the answer.

        Raises:
            InputError: more tokens than the model has positions.
        """
        assert past is None or isinstance(past, Past)
        prompt = context.bias[:, 0, 0] == 0
        seen, new = 0 if past is None else past.length, ids.shape[1]
        hidden = None if past is None else past.hidden(seen + new)
        answer = prompt.new_ones(len(prompt), seen + new) if hidden is None else ~hidden[:, 0, 0]
        positions = prompt.sum(1, keepdim=True) + answer.cumsum(1)[:, seen:] - 1
        before = context.layers
        if past is not None:
            before = tuple(a.then(b.span(0, seen)) for a, b in zip(before, past.layers, strict=True))
        mask = torch.cat([prompt, answer], dim=1).long()
        hidden_RNE, read = self._run(self.embedding(ids), mask, positions, before)
        logits = cast(nn.Linear, self.model.get_output_embeddings())(hidden_RNE)
        return logits, _longer(past, read, prompt.shape[1], new)

    def _run(
        self, embedded: Tensor, mask: Tensor, positions: Tensor, past: tuple[KeyValue, ...]
    ) -> tuple[Tensor, tuple[KeyValue, ...]]:
        from transformers import DynamicCache

        if positions.numel() and int(positions.max()) >= self.shape.max_positions:
            raise InputError(
                f"prompt and answer have {int(positions.max()) + 1} tokens together, more than the "
                f"{self.shape.max_positions} positions of this language model; shorten prompt.max_*"
            )
        cache = DynamicCache([(layer.k, layer.v) for layer in past], config=self.model.config)
        body = cast(Callable[..., Any], self.model.base_model)
        out = body(
            inputs_embeds=embedded, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        )
        kept = cast("list[DynamicLayer]", out.past_key_values.layers)
        return out.last_hidden_state, tuple(KeyValue(_tensor(one.keys), _tensor(one.values)) for one in kept)


def _longer(past: Past | None, read: tuple[KeyValue, ...], prompt: int, new: int) -> Past:
    """The answer's keys and values, out of those of prompt and answer, with its `new` last tokens."""
    if past is None:
        return Past(tuple(own.span(prompt, own.k.shape[2]) for own in read), new)
    newest = (own.span(own.k.shape[2] - new, own.k.shape[2]) for own in read)
    return past.after(tuple(past.append(layer, own) for layer, own in enumerate(newest)))


def load_causal(folder: Path) -> CausalLM:
    """A GPT-2 or OPT from a Hugging Face folder, in fp32.

    Raises:
        CheckpointError: no safetensors weights, or tensors that do not belong to its config.
    """
    from transformers import AutoModelForCausalLM

    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(f"{folder}/model.safetensors: is missing (weights are read from safetensors only)")
    try:
        with _quiet():
            opened: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, use_safetensors=True, local_files_only=True, output_loading_info=True
            )
    except Exception as error:  # transformers passes on whatever its readers raise
        raise CheckpointError(f"{folder}: cannot be read ({' '.join(str(error).split())})") from error
    model, report = opened
    if wrong := sorted(report["missing_keys"]) + sorted(map(str, report["mismatched_keys"])):
        raise CheckpointError(f"{folder}: tensor {wrong[0]} is missing or has another shape than config.json says")
    for name, tensor in model.state_dict().items():
        check_finite(folder, name, tensor)
    return CausalLM(model)


def save_causal(model: CausalLM, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write config.json and model.safetensors so that `transformers` opens the folder."""
    tensors = {name: tensor.detach().to("cpu", dtype) for name, tensor in model.model.state_dict().items()}
    with _quiet():
        model.model.save_pretrained(folder, state_dict=tensors)


def read_causal_shape(folder: Path) -> CausalShape:
    """The shape that a checkpoint's `config.json` tells, without its weights.

    Raises:
        CheckpointError: no GPT-2 or OPT.
    """
    try:
        return causal_shape_of(read_hf_config(folder))
    except ConfigError as error:
        raise CheckpointError(f"{folder}/{error}") from error


def causal_shape_of(config: PretrainedConfig) -> CausalShape:
    """Our shape from a Hugging Face config.

    Raises:
        ConfigError: of another family, or a value that none of these models has.
    """
    opt = config.model_type == "opt"
    values: dict[str, Any] = {
        "architecture": config.model_type,
        "vocab_size": config.vocab_size,
        "d_model": config.hidden_size,
        "d_ff": config.ffn_dim if opt else config.n_inner or 4 * config.n_embd,
        "num_layers": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "max_positions": config.max_position_embeddings,
        "d_embedding": config.word_embed_proj_dim if opt else config.n_embd,
        "dropout_rate": config.dropout if opt else config.resid_pdrop,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.eos_token_id if config.pad_token_id is None else config.pad_token_id,
        "decoder_start_token_id": config.eos_token_id if config.bos_token_id is None else config.bos_token_id,
    }
    return parse(CausalShape, values, source="config.json")


def causal_config_of(shape: CausalShape) -> PretrainedConfig:
    """The Hugging Face config of a shape."""
    if shape.architecture == "opt":
        return OPTConfig(
            vocab_size=shape.vocab_size,
            hidden_size=shape.d_model,
            ffn_dim=shape.d_ff,
            num_hidden_layers=shape.num_layers,
            num_attention_heads=shape.num_heads,
            max_position_embeddings=shape.max_positions,
            word_embed_proj_dim=shape.d_embedding,
            dropout=shape.dropout_rate,
            bos_token_id=shape.decoder_start_token_id,
            eos_token_id=shape.eos_token_id,
            pad_token_id=shape.pad_token_id,
        )
    return GPT2Config(
        vocab_size=shape.vocab_size,
        n_embd=shape.d_model,
        n_inner=shape.d_ff,
        n_layer=shape.num_layers,
        n_head=shape.num_heads,
        n_positions=shape.max_positions,
        resid_pdrop=shape.dropout_rate,
        embd_pdrop=shape.dropout_rate,
        attn_pdrop=shape.dropout_rate,
        bos_token_id=shape.decoder_start_token_id,
        eos_token_id=shape.eos_token_id,
        pad_token_id=shape.pad_token_id,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without a bar of `transformers`' own while it reads or writes weights."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _tensor(value: Tensor | None) -> Tensor:
    assert value is not None
    return value
