"""Exported adapters in vLLM, on the folder that the bundled language model was converted to."""

import pytest
from cases import Case, answered, asked, changed, compare, report, run

pytestmark = pytest.mark.engines


def test_engines_vllm_gives_our_answers(alone: Case) -> None:
    assert changed(alone) >= 30
    how = {"model": str(alone.model), "adapter": str(alone.folder / "peft"), "dtype": "float32"}
    found = run("vllm", alone.folder, **asked(alone), **how)
    assert found["ids"] == alone.prompts
    compared = compare(alone.ours, answered(found, alone.ends))
    report("vLLM, fp32", compared)
    assert compared.differ == 0 and compared.worst < 1e-4
