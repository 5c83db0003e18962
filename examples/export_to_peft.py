"""Write a task's LoRA as `peft` and vLLM read it, open it in `peft`, and compare with our own answer.

    python examples/export_to_peft.py [CHECKPOINT [LANGUAGE_MODEL_FOLDER]]

vLLM loads the same folder (`vllm serve … --lora-modules city=city-peft`) where the LoRA is not *activated*: that of a
checkpoint of `lora_only`, or with `fusion.prefix: adapted`. See docs/engines.md.
"""

import sys
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tagi import GenerationConfig, Tagi
from tagi.backbones.language_model import find_language_model
from tagi.infer.export import from_adapter, write_peft

INSTRUCTION, TEXT = "Name the city in the text.", "We met in Oslo last May."
tagi = Tagi.from_pretrained(*sys.argv[1:2])
base = sys.argv[2] if len(sys.argv) > 2 else str(find_language_model("smollm2-135m-instruct"))

tagi.adapt(INSTRUCTION).save_pretrained("city")
export = from_adapter(tagi, Path("city"), base, Path(base))
write_peft(export, Path("city-peft"))

# The encoded instruction is, for another engine, a text before every input: its card (city-peft/README.md) gives it.
before = [{"role": "user", "content": f"{INSTRUCTION}\n\nInput: {TEXT}"}]
text = str(tagi.tokenizer.apply_chat_template(before, add_generation_prompt=True, tokenize=False))
ids = torch.tensor([tagi.tokenizer(text, add_special_tokens=False)["input_ids"]])
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), "city-peft").eval()
whole = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=8)
print("peft:", tagi.tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=True))
print("tagi:", tagi.solve(INSTRUCTION, [TEXT], generation=GenerationConfig(max_new_tokens=8))[0])
