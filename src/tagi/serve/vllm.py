"""A plugin for vLLM: `model: NAME` of a registered task gets its adapter, which is written when first asked for.

vLLM finds it by the entry point `vllm.general_plugins`; `TAGI_STORE` says where the tasks are registered and
`TAGI_CHECKPOINT` what writes the adapters. Of LoRA alone, for vLLM has no place for an encoded instruction.
"""

import asyncio
import hashlib
import os
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from tagi.backbones.language_model import hugging_face
from tagi.errors import ConfigError
from tagi.infer.engine import Tagi
from tagi.infer.export import from_adapter, write_peft
from tagi.model.checkpoint import base_source
from tagi.serve.registry import MOST_EXAMPLES, NotFoundError, TaskRegistry
from tagi.serve.store import AdapterStore

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest  # pyright: ignore[reportMissingImports]

STORE, CHECKPOINT = "TAGI_STORE", "TAGI_CHECKPOINT"
FOLDER = "vllm"
"""Of the store: adapters in PEFT's files, each in a folder named after what it depends on."""


class AdapterFolders:
    """PEFT folders of registered tasks, each written once, whole or not at all, whoever asks first.

    The model is opened when the first name is asked for: vLLM loads its plugins in processes that never ask.
    """

    def __init__(self, store: Path, checkpoint: str) -> None:
        self.folder, self.checkpoint = store, checkpoint
        self._lock = threading.Lock()
        self._tasks: TaskRegistry | None = None

    def find(self, name: str) -> Path | None:
        """The folder of a task's adapter; None where no task has that name."""
        with self._lock:
            if self._tasks is None:
                self._tasks = TaskRegistry(AdapterStore(self._opened(), self.folder))
            try:
                task = self._tasks.get(name)
            except NotFoundError:
                return None
            store = self._tasks.store
            folder = self.folder / FOLDER / store.checkpoint / task.key
            if not folder.exists():
                base = hugging_face(base_source(self.checkpoint))
                with tempfile.TemporaryDirectory() as place:
                    saved = Path(place) / "adapter"
                    store.get(task.key).save_pretrained(saved)
                    write_peft(from_adapter(store.tagi, saved, base, saved), folder)
            return folder

    def _opened(self) -> Tagi:
        tagi = Tagi.from_pretrained(self.checkpoint).showing(MOST_EXAMPLES)
        method = tagi.model.method
        if not method.adapts or method.fuses_encoder or method.fuses_decoder:
            raise ConfigError(
                f"{CHECKPOINT}: {method.name} is more than a LoRA, which is what vLLM loads; use lora_only"
            )
        return tagi


def register() -> None:
    """What vLLM calls in each of its processes: add the resolver, where a store is named."""
    store, checkpoint = os.environ.get(STORE), os.environ.get(CHECKPOINT)
    if not store:
        return
    if not checkpoint:
        raise ConfigError(f"{CHECKPOINT}: is not set; {STORE} needs a checkpoint of lora_only")
    from vllm.lora.request import LoRARequest  # pyright: ignore[reportMissingImports]
    from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry  # pyright: ignore[reportMissingImports]

    folders = AdapterFolders(Path(store), checkpoint)

    class TaskResolver(LoRAResolver):
        """Names of tasks to their adapters; other names are not ours."""

        async def resolve_lora(self, base_model_name: str, lora_name: str) -> "LoRARequest | None":
            folder = await asyncio.to_thread(folders.find, lora_name)
            if folder is None:
                return None
            number = int.from_bytes(hashlib.sha256(str(folder).encode()).digest()[:4]) >> 1 or 1
            return LoRARequest(lora_name=lora_name, lora_int_id=number, lora_path=str(folder))

    LoRAResolverRegistry.register_resolver("tagi", TaskResolver())
