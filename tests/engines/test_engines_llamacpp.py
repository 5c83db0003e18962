"""Exported adapters in llama.cpp, on the bundled language model's own file and on a copy of it in fp32."""

from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from cases import Case, asked, changed, compare, report, run

from tagi.backbones.gguf import smollm2

pytestmark = pytest.mark.engines
BOUNDS = {"exact": (0, 0, 1e-3), "quantised": (20, 14, 0.1)}
"""Answers that differ, with the adapter and without, and nats per token; worst 0, 0 and 1.9e-4 in fp32, and 17, 10
and 0.069 in Q4_1."""


@pytest.fixture(scope="session")
def quantised() -> Path:
    """SmolLM2-135M-Instruct in Q4_1: llama.cpp rounds activations to 8 bits to multiply with it."""
    found = smollm2()
    assert found is not None
    return found


@pytest.fixture(scope="session")
def exact(quantised: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same values in fp32, rounded to bf16 as ours are, so that the arithmetic is that of our engine."""
    file = tmp_path_factory.mktemp("exact") / "smollm2.gguf"
    reader = gguf.GGUFReader(quantised)
    writer = gguf.GGUFWriter(file, "llama")
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        kinds: list[Any] = [*field.types, None]
        writer.add_key_value(field.name, field.contents(), kinds[0], kinds[-2] if len(field.types) > 1 else None)
    for tensor in reader.tensors:
        values = torch.tensor(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
        writer.add_tensor(tensor.name, values.bfloat16().float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.mark.parametrize("name", ["alone", "activated"])
@pytest.mark.parametrize("base", ["exact", "quantised"])
def test_engines_llamacpp_answers_as_we_do(base: str, name: str, request: pytest.FixtureRequest) -> None:
    """All 40 in fp32; what the wheel's own file costs is the engine's rounding, for the bare model pays it too."""
    case: Case = request.getfixturevalue(name)
    assert changed(case) >= 25
    file, adapter = request.getfixturevalue(base), case.folder / "gguf" / "adapter.gguf"
    found = run("llamacpp", case.folder, **asked(case), model=str(file), adapter=str(adapter))
    assert found["ids"] == case.prompts
    compared = compare(case, found)
    report(f"llama.cpp, {base}, {name}", compared)
    differ, bare, worst = BOUNDS[base]
    assert compared.differ <= differ and compared.bare <= bare and compared.worst < worst
