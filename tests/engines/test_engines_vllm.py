"""Exported adapters in vLLM, on the folder that the bundled language model was converted to."""

from typing import Any

import pytest
from cases import Case, asked, changed, compare, report, run

pytestmark = pytest.mark.engines


BOUND = 1e-4
"""Nats per token; worst 4.3e-6."""


def test_engines_vllm_gives_our_40_answers(alone: Case, activated: Case) -> None:
    """In fp32, with other kernels; an activated LoRA is refused, and not applied to the whole text."""
    assert changed(alone) >= 25
    how: dict[str, Any] = {"model": str(alone.model), "dtype": "float32", "adapter": str(alone.folder / "peft")}
    found = run("vllm", alone.folder, **asked(alone), **how, refused=str(activated.folder / "peft"))
    assert found["ids"] == alone.prompts
    compared = compare(alone, found)
    report("vLLM, fp32", compared)
    assert compared.differ == 0 and compared.bare == 0 and compared.worst < BOUND
    assert "does not support Activated LoRA" in found["refusal"]
