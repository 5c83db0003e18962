"""The pages as a site: built without a warning, and nothing on them comes from another host."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from blocks import ROOT

pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")


@pytest.mark.slow
def test_the_site_is_built_strictly(tmp_path: Path) -> None:
    """A broken link or anchor, a page that is not listed or a name that does not resolve would be an error."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = {page.name: page.read_text(encoding="utf-8") for page in (tmp_path / "site").rglob("*.html")}
    for page in pages.values():
        assert not re.findall(r'<(?:script|img|iframe|link)[^>]*(?:src|href)="?(?:https?:)?//[^>]*', page)
    assert 'id="tagi.infer.engine.Tagi.adapt"' in pages["api.html"]
    assert "<code>src/tagi/backbones/base.py</code>" in pages["architecture.html"]
