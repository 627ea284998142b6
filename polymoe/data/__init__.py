"""Tasks of texts: reading, splitting, sampling, tokenizing, packing.

Nothing here knows of models or methods. From texts to batches:

    tasks = read_tasks("data")  # a folder, a file or Python objects -> {name: TaskData}
    train = encode_split(tasks, "train", Tokenizer.from_folder(base, 256), registry)
    for indices in train.epoch(0, seed=0, max_tokens=2048):  # to resume, skip the first k
        batch = train.batch(indices, seed=0, step=step)
"""

from polymoe.data.encoded import EncodedSplit, TextCounts, encode_split
from polymoe.data.examples import Example, TaskData
from polymoe.data.labels import has_labels, label_ids, labels, numbers
from polymoe.data.packing import cut_batches, pack, shortest_first
from polymoe.data.readers import read_tasks
from polymoe.data.sampling import Sampling, epoch_order, task_counts
from polymoe.data.shots import draw_shots, draw_test
from polymoe.data.splits import split_task
from polymoe.data.tokenization import Tokenizer, Tokens

__all__ = [
    "EncodedSplit",
    "Example",
    "Sampling",
    "TaskData",
    "TextCounts",
    "Tokenizer",
    "Tokens",
    "cut_batches",
    "draw_shots",
    "draw_test",
    "encode_split",
    "epoch_order",
    "has_labels",
    "label_ids",
    "labels",
    "numbers",
    "pack",
    "read_tasks",
    "shortest_first",
    "split_task",
    "task_counts",
]
