"""Answers of vLLM with adapters that the plugin makes of registered tasks, for `cases.run`."""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}

from vllm import LLM, SamplingParams  # pyright: ignore[reportMissingImports]
from vllm.lora.resolver import LoRAResolverRegistry  # pyright: ignore[reportMissingImports]
from vllm.plugins import load_general_plugins  # pyright: ignore[reportMissingImports]


async def resolved(names: list[str]) -> list[Any]:
    """What the plugin makes of names, two requests of each at once."""
    resolver = LoRAResolverRegistry.get_resolver("tagi")
    each = await asyncio.gather(*(resolver.resolve_lora("any", name) for name in [*names, *names]))
    assert each[: len(names)] == each[len(names) :]
    return each[: len(names)]


def main(question: Path, answer: Path) -> None:
    """Read one file, write the other."""
    asked = json.loads(question.read_text(encoding="utf-8"))
    load_general_plugins()  # finds ours by its entry point
    loras = asyncio.run(resolved(asked["names"]))
    unknown = asyncio.run(resolved(["nobody"]))
    llm = LLM(
        model=asked["model"],
        enable_lora=True,
        max_lora_rank=8,
        max_loras=4,
        dtype="float32",
        max_model_len=1024,
        enforce_eager=True,
    )
    sampling = SamplingParams(
        temperature=0.0, detokenize=False, max_tokens=asked["max_new_tokens"], stop_token_ids=asked["ends"]
    )
    texts = [{"prompt_token_ids": prompt} for prompt in asked["prompts"]]
    each = [llm.generate(texts, sampling, lora_request=lora, use_tqdm=False) for lora in loras]
    found = {
        "answers": [[list(one.outputs[0].token_ids) for one in own] for own in each],
        "unknown": unknown == [None],
        "folders": [lora.lora_path for lora in loras],
        "numbers": [lora.lora_int_id for lora in loras],
    }
    answer.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":  # vLLM starts a process of its own, which opens this file again
    main(Path(sys.argv[1]), Path(sys.argv[2]))
