"""Exported adapters in llama.cpp, on the bundled language model's own file and on a copy of it in fp32."""

from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from cases import Case, answered, asked, changed, compare, report, run

from tagi.backbones.gguf import smollm2

pytestmark = pytest.mark.engines


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
        values = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
        writer.add_tensor(tensor.name, values.bfloat16().float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.mark.parametrize("base", ["exact", "quantised"])
def test_engines_llamacpp_gives_our_answers(base: str, alone: Case, request: pytest.FixtureRequest) -> None:
    assert changed(alone) >= 30
    how = {"model": str(request.getfixturevalue(base)), "adapter": str(alone.folder / "gguf" / "adapter.gguf")}
    found = run("llamacpp", alone.folder, **asked(alone), **how)
    assert found["ids"] == alone.prompts
    compared = compare(alone.ours, answered(found, alone.ends))
    report(f"llama.cpp, {base}", compared)
    assert compared.differ == 0 and compared.worst < 1e-4


@pytest.mark.parametrize("base", ["exact", "quantised"])
def test_engines_llamacpp_activates_the_lora(base: str, activated: Case, request: pytest.FixtureRequest) -> None:
    assert changed(activated) >= 30
    how = {"model": str(request.getfixturevalue(base)), "adapter": str(activated.folder / "gguf" / "adapter.gguf")}
    found = run("llamacpp", activated.folder, **asked(activated), **how)
    assert found["ids"] == activated.prompts
    compared = compare(activated.ours, answered(found, activated.ends))
    report(f"llama.cpp, activated, {base}", compared)
    assert compared.differ == 0 and compared.worst < 1e-4
