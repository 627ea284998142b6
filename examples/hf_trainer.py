"""Polymoe's adapters in Hugging Face's Trainer: two tasks of one frozen BERT, and a head that they share.

Task ids are a column of the data like any other. Needs: pip install polymoe[torch] transformers accelerate
"""

import sys
import tempfile

import torch
import transformers

from polymoe.interop.torch import inject, load_adapter, parameter_groups, save_adapter

torch.manual_seed(0)
config = transformers.BertConfig(  # or BertForSequenceClassification.from_pretrained(...)
    vocab_size=64, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96,
    hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=0.2,
)  # fmt: skip
model = transformers.BertForSequenceClassification(config)
base = {name: tensor.clone() for name, tensor in model.state_dict().items()}

inject(model, "poly", tasks=["first", "last"], target_modules="all-linear", root="bert")
model.classifier.requires_grad_(True)  # inject has frozen all that was there

tokens = torch.randint(5, 64, (256, 6))
data = [
    {
        "input_ids": row.tolist(),
        "task_ids": i % 2,
        "labels": int(row[0] > 34) if i % 2 == 0 else int(row[-1] > 34),
    }
    for i, row in enumerate(tokens)
]
output = sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()
arguments = transformers.TrainingArguments(
    output, per_device_train_batch_size=32, num_train_epochs=20, lr_scheduler_type="linear", logging_steps=40,
    report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False,
)  # fmt: skip
optimizer = torch.optim.AdamW(parameter_groups(model, learning_rate=2e-3))  # routers learn faster
trainer = transformers.Trainer(model, arguments, train_dataset=data, optimizers=(optimizer, None))
trainer.train()


def accuracy(model):
    """Of both tasks."""
    model.eval()
    with torch.no_grad():
        logits = model(tokens, task_ids=["first", "last"] * 128).logits
    return (logits.argmax(-1) == torch.tensor([row["labels"] for row in data])).float().mean().item()


print(f"accuracy {accuracy(model):.3f}")
save_adapter(model, f"{output}/adapter")
again = transformers.BertForSequenceClassification(config)
again.load_state_dict(base)
again.classifier.load_state_dict(model.classifier.state_dict())  # a head is no part of an adapter
load_adapter(again, f"{output}/adapter", root="bert")
print(f"loaded   {accuracy(again):.3f}")
