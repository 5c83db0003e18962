"""Model cards: the README.md of every folder that we write for others, with the front matter that a hub reads."""

import json
from pathlib import Path
from typing import Any

CARD = "README.md"


def card(title: str, about: str, use: str, *, base: str | None = None, **front: Any) -> str:
    """A card in Markdown.

    Args:
        about: paragraphs that say what the folder holds.
        use: Python lines that open it.
        base: the language model underneath; named in the front matter unless it is a folder, which no hub knows.
        front: further front matter, such as `library_name`.
    """
    known = {"base_model": base} if base is not None and not Path(base).is_dir() else {}
    header = "\n".join(f"{key}: {json.dumps(value)}" for key, value in (known | front).items())
    return f"---\n{header}\n---\n\n# {title}\n\n{about}\n\n```python\n{use}\n```\n\nWeights are safetensors.\n"
