"""Train on tasks of your own: a folder of task files (my-tasks/), a config (my-tasks.yaml), one command.

    python examples/train_on_your_tasks.py [KEY=VALUE …]      such as training.steps=2 output=/tmp/mine

The same on the command line: `tagi train finetune --config examples/my-tasks.yaml`. Two tasks are enough to see that it
runs, and far too few to learn from: see docs/your-task.md.
"""

import sys
from pathlib import Path

from tagi import Tagi
from tagi.cli.main import main
from tagi.config.files import load

HERE = Path(__file__).parent
overrides = [f"data.path={HERE / 'my-tasks'}", *sys.argv[1:]]
config = load(HERE / "my-tasks.yaml", overrides)

code = main(["train", "finetune", "--config", str(HERE / "my-tasks.yaml"), *overrides])
if code:
    sys.exit(code)

# Every step's losses are in log.jsonl beside it; `best` is there once validation tasks are held out (data.valid_tasks).
tagi = Tagi.from_pretrained(Path(config.output) / "final")
print(tagi.solve("Which colour is named?", ["Her coat is dark green."]))
