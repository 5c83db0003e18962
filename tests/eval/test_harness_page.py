"""The lines of the page of lm-evaluation-harness, typed as they stand."""

from pathlib import Path

import pytest
from harness_runs import write_bbh

from blocks import claim
from test_pages import NEEDS_SMOLLM2, typed

LINES = claim("docs/harness.md")


@pytest.mark.slow
@NEEDS_SMOLLM2
def test_the_harness_s_tasks(tmp_path: Path, shared_data: Path) -> None:
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install '.[eval]'")
    (tmp_path / "NATURAL_INSTRUCTIONS").symlink_to(shared_data / "sni")
    (tmp_path / "FOLDER").mkdir()
    write_bbh(tmp_path / "FOLDER")
    said = typed(LINES, tmp_path, {"--limit 10": "--limit 2"})
    assert said.count("rouge_l") == 5 and "flexible-extract" in said
    assert (tmp_path / "scores" / "samples_everyday_bag_reason.jsonl").exists()
