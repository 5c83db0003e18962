"""tagi: Task Adapters Generation from Instructions (Liao et al., NeurIPS 2024).

`Tagi.from_pretrained(folder)` opens a model, `adapt(instruction)` writes a task adapter, `generate(inputs,
adapter)` solves inputs without reading the instruction again.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["GenerationConfig", "Tagi", "TaskAdapter", "__version__"]

if TYPE_CHECKING:
    from tagi.infer.engine import Tagi
    from tagi.infer.search import GenerationConfig
    from tagi.model.adapter import TaskAdapter


_HOMES = {"GenerationConfig": "tagi.infer.search", "Tagi": "tagi.infer.engine", "TaskAdapter": "tagi.model.adapter"}


def __getattr__(name: str) -> Any:
    """Import the heavy parts on first use, so that the command line starts at once."""
    if name not in _HOMES:
        raise AttributeError(f"module 'tagi' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
