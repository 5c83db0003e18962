"""Model cards: the README.md of every folder that we write for others, with the front matter that a hub reads."""

import json
from pathlib import Path
from typing import Any

CARD = "README.md"


def card(title: str, about: str, use: str, *, base: str | None = None, gguf: bool = False, **front: Any) -> str:
    """A card in Markdown.

    Args:
        about: paragraphs that say what the folder holds.
        use: Python lines that open it; of a GGUF, what is typed in a shell.
        base: the language model underneath; named in the front matter unless it is a folder, which no hub knows.
        front: further front matter, such as `library_name`.
    """
    known = {"base_model": base} if base is not None and not Path(base).is_dir() else {}
    header = "\n".join(f"{key}: {json.dumps(value)}" for key, value in (known | front).items())
    language, weights = ("sh", "GGUF") if gguf else ("python", "safetensors")
    return f"---\n{header}\n---\n\n# {title}\n\n{about}\n\n```{language}\n{use}\n```\n\nWeights are {weights}.\n"
