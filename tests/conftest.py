"""Fixtures that several test files share."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real data: `sni`, `p3` and `c4` in their official layouts."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("TAGI_TEST_DATA", default))
    if not (folder / "sni" / "tasks").is_dir():
        pytest.skip(f"no real data in {folder}; set TAGI_TEST_DATA to a folder that holds sni, p3 and c4")
    return folder
