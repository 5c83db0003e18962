"""Reading Hugging Face folders, for every family."""

# They stand in `t5_hf`, from before there were families, and move here when T5 comes behind the protocol.
from tagi.model.t5_hf import WEIGHTS, check_finite, check_shape, locate, read_hf_config
from tagi.model.t5_hf import _read_weights as read_weights

__all__ = ["WEIGHTS", "check_finite", "check_shape", "locate", "read_hf_config", "read_weights"]
