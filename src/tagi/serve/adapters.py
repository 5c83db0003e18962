"""A task's adapter as a file for other engines."""

import shutil
import tempfile
from pathlib import Path
from typing import Literal

from tagi.infer.engine import Tagi
from tagi.infer.export import from_adapter, write_gguf, write_peft
from tagi.model.adapter import TaskAdapter

Form = Literal["peft", "gguf"]
SUFFIX: dict[Form, str] = {"peft": "zip", "gguf": "gguf"}


def packed(tagi: Tagi, adapter: TaskAdapter, base: str, form: Form) -> bytes:
    """PEFT's folder as a zip file, or llama.cpp's GGUF; `base` is what the files call the language model."""
    with tempfile.TemporaryDirectory() as place:
        saved, written = Path(place) / "adapter", Path(place) / form
        adapter.save_pretrained(saved)
        export = from_adapter(tagi, saved, base, saved)
        if form == "gguf":
            write_gguf(export, written)
            return (written / "adapter.gguf").read_bytes()
        write_peft(export, written)
        return Path(shutil.make_archive(str(written), "zip", written)).read_bytes()
