"""Many tasks in one batch: in this process, then by HTTP from a server that `tagi serve --store tasks` started.

python examples/serve_many_tasks.py [CHECKPOINT]
TAGI_SERVER=http://localhost:8000 python examples/serve_many_tasks.py [CHECKPOINT]
"""

import os
import sys

import httpx

from tagi import Tagi

TASKS = {
    "city": "Name the city in the text.",
    "mood": "Is the text positive or negative? One word.",
    "shout": "Write the text in capital letters.",
}
TEXT = "I loved Oslo last May."

tagi = Tagi.from_pretrained(*sys.argv[1:2])
adapters = tagi.adapt_all(list(TASKS.values()))  # one stack, one pass
answers = tagi.generate([TEXT] * len(TASKS), adapters, tasks=range(len(TASKS)))  # every row has its own task
print(dict(zip(TASKS, answers, strict=True)))

if "TAGI_SERVER" in os.environ:
    with httpx.Client(base_url=os.environ["TAGI_SERVER"], timeout=60) as client:
        for name, instruction in TASKS.items():
            client.post("/v1/tasks", json={"name": name, "instruction": instruction}).raise_for_status()
        mixed = [{"input": TEXT, "task": name} for name in TASKS]
        served = client.post("/v1/generate", json={"inputs": mixed}).raise_for_status().json()["answers"]
        print({name: answer["text"] for name, answer in zip(TASKS, served, strict=True)})
