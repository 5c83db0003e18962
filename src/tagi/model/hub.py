"""Uploading to a hub: whatever a `save_pretrained` writes, through `huggingface_hub`'s own mixin."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import ModelHubMixin


class _Upload(ModelHubMixin):
    """`ModelHubMixin` for things that write their own config and card, whole or not at all."""

    def __init__(self, save: Callable[[Path], None]) -> None:
        self._save = save

    def _save_pretrained(self, save_directory: Path) -> None:
        self._save(save_directory)


def push(save: Callable[[Path], None], repo_id: str, **options: Any) -> str:
    """Create the repository if need be and upload what `save` writes in one commit; gives the commit's address.

    Args:
        options: as `huggingface_hub.ModelHubMixin.push_to_hub` takes them: `private`, `token`, `branch`, `create_pr`,
            `commit_message`, …
    """
    return _Upload(save).push_to_hub(repo_id, **options)
