"""Fixtures that several test files share."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from hypothesis import settings

from cli_runs import CONFIG, Result, Run, trained
from fake_hub import FakeHub, fake_hub
from tagi.cli.main import main

settings.register_profile("untimed", deadline=None)  # machines are shared: no test asserts a time
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real data: `sni`, `p3` and `c4` in their official layouts."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("TAGI_TEST_DATA", default))
    if not (folder / "sni" / "tasks").is_dir():
        pytest.skip(f"no real data in {folder}; set TAGI_TEST_DATA to a folder that holds sni, p3 and c4")
    return folder


@pytest.fixture
def tagi(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process."""

    def run(*arguments: object) -> Result:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TAGI of a few thousand parameters after four steps of training."""
    return trained(tmp_path_factory.mktemp("tagi"))


@pytest.fixture(scope="session")
def metatrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that reads the instruction with every input."""
    training = CONFIG["training"] | {"trainable": ["backbone"], "steps": 1}
    return trained(tmp_path_factory.mktemp("meta"), stage="metatrain", method="metatrain", training=training)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    """Takes the place of the hub."""
    with fake_hub() as opened:
        monkeypatch.setattr(constants, "ENDPOINT", opened.endpoint)
        template = f"{opened.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield opened
