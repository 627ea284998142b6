"""Every example that needs torch runs as it stands, in seconds, without a network."""

import subprocess
import sys

import pytest
from example import EXAMPLES, FOLDER, needs_torch, run_example

pytest.importorskip("torch")
pytest.importorskip("transformers")
CHECKED = ("torch_loop.py", "hf_trainer.py")
OTHERS = [path for path in EXAMPLES if needs_torch(path) and path.name not in CHECKED]


@pytest.mark.parametrize("example", OTHERS, ids=lambda path: path.name)
def test_example_runs(example, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    run_example(example, tmp_path)


def lines_of(name, folder):
    done = subprocess.run(
        [sys.executable, str(FOLDER / name)], capture_output=True, text=True, cwd=folder, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_plain_loop_learns_and_saves(tmp_path):
    losses = [
        float(line.split()[-1]) for line in lines_of("torch_loop.py", tmp_path) if line.startswith("step")
    ]
    assert losses[-1] < 0.1 * losses[0]
    assert (tmp_path / "adapter" / "polymoe.json").is_file()


def test_the_trainer_learns_and_what_it_saved_scores_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    trained, loaded = (float(line.split()[-1]) for line in lines_of("hf_trainer.py", tmp_path)[-2:])
    assert trained > 0.65
    assert loaded == trained
