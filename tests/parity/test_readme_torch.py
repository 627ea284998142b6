"""The torch loop of the README runs as it stands."""

import numpy as np
import pytest
from readme import lines_of_code, python_blocks
from tiny_bert import write_bert

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


def test_the_torch_loop_learns_in_ten_lines(tmp_path):
    (block,) = [block for block in python_blocks("Plug in") if "torch" in block]
    ids = torch.tensor(np.random.default_rng(0).integers(5, 20, (4, 6)))
    pattern = torch.tensor([1.0, -1.0]).repeat(12)
    target = torch.stack([pattern, pattern, -pattern, -pattern])
    batch = {"input_ids": ids}, ["topic", "topic", "intent", "intent"], target
    names = {"torch": torch, "transformers": transformers, "folder": write_bert(tmp_path / "base")}
    losses = []
    for steps in (1, 120):
        torch.manual_seed(0)  # adapters
        exec(block, names := {**names, "batches": [batch] * steps})
        losses.append(torch.nn.functional.mse_loss(names["y"], target).item())
    assert lines_of_code(block) <= 10
    assert losses[1] < 0.75 * losses[0]
