"""Adapters as files, made once for all engines."""

import cases
import pytest


@pytest.fixture(scope="session")
def alone(tmp_path_factory: pytest.TempPathFactory) -> cases.Case:
    """LoRA and nothing else."""
    return cases.write("lora_only", tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="session")
def activated(tmp_path_factory: pytest.TempPathFactory) -> cases.Case:
    """LoRA that is active from the input on, behind the instruction as the bare model reads it."""
    return cases.write("tagi", tmp_path_factory.mktemp("activated"))
