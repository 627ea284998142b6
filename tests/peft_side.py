"""The same texts through PEFT on transformers and through an adapted model of ours, for the parity tests."""

import warnings

import numpy as np

from polymoe.batch import Batch

TEXTS = ["the cat sees a small dog", "red house", "a big blue dog walks ."]


def torch_bert(folder):
    import torch
    import transformers

    return transformers.BertModel.from_pretrained(
        folder, attn_implementation="eager", add_pooling_layer=False, dtype=torch.float32
    ).eval()


def hidden(model, base, texts):
    """Hidden states of the texts by a torch model, one text after the other [N, D]."""
    import torch

    tokens = base.tokenizer.encode(texts)
    found = []
    for i in range(len(texts)):
        ids, _ = tokens.take(np.array([i]))
        found.append(model(input_ids=torch.tensor(ids)[None]).last_hidden_state[0].detach().numpy())
    return np.concatenate(found)


def ours(model, texts, task):
    """The same of an adapted model of ours."""
    tokens = model.base.tokenizer.encode(texts)
    token_ids, cu_seqlens = tokens.take(np.arange(len(texts)))
    ids = np.full(len(texts), model.tasks.id(task))
    return np.asarray(model(Batch(cu_seqlens, token_ids, task_ids=ids)).data)


def from_peft(folder, path, **options):
    import peft

    with warnings.catch_warnings():
        warnings.filterwarnings("error", category=UserWarning)  # keys that do not fit
        return peft.PeftModel.from_pretrained(torch_bert(folder), path, **options).eval()
