"""To and from a hub: uploading what a `save_pretrained` writes, and the folder of what a hub has."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from huggingface_hub import ModelHubMixin, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from tagi.errors import CheckpointError

FILES = ("*.safetensors", "*.json", "*.model")
"""What a language model or a checkpoint is read from."""
_HTTPError = cast(type[Exception], HfHubHTTPError.__bases__[0])
"""What the hub's HTTP library raises, whichever one that is: not all of it is an `OSError`."""
_REASONS: dict[type[Exception], str] = {
    HFValidationError: "no model of a hub can have that name",
    OfflineModeIsEnabled: "the hub was not asked (HF_HUB_OFFLINE is set); what was downloaded before does not have it",
    # before the kind of error that it is one of
    GatedRepoError: "the hub gives that model only to those who asked its authors (log in by `hf auth login`)",
    RepositoryNotFoundError: "the hub has no model of that name, or a private one (log in by `hf auth login`)",
}


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


def snapshot(name: str, files: Sequence[str] = FILES) -> Path:
    """The folder of a hub's model on this machine, downloaded where it is not here yet.

    Raises:
        CheckpointError: it cannot be had; says whether the hub could not be asked, or what it answered.
    """
    try:
        return Path(snapshot_download(name, allow_patterns=list(files)))
    except (_HTTPError, HFValidationError, OSError) as error:
        raise CheckpointError(f"{name}: no such folder, and {_why(error)}") from error


def _why(error: BaseException) -> str:
    """What became of the question to the hub, from an error and those that led to it."""
    chain = [error]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    for kind, why in _REASONS.items():
        if any(isinstance(one, kind) for one in chain):
            return why
    answered = next((one for one in chain if isinstance(one, HfHubHTTPError)), None)
    if answered is not None:
        return f"the hub refused to give it (HTTP status {answered.response.status_code})"
    last = chain[-1]
    return f"the hub could not be reached ({' '.join(str(last).split()) or type(last).__name__})"
