"""The examples that need torch run as they stand."""

import pytest
from example import EXAMPLES, needs_torch, run_example

for needed in ("torch", "transformers", "peft"):
    pytest.importorskip(needed)

pytestmark = pytest.mark.parity


@pytest.mark.parametrize(
    "example", [path for path in EXAMPLES if needs_torch(path)], ids=lambda path: path.name
)
def test_example_runs(example, tmp_path):
    run_example(example, tmp_path)
