"""What holds of every test in this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

OLD_NAME = "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"  # PEFT asks transformers by it


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark them."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.parity)
            item.add_marker(pytest.mark.filterwarnings(OLD_NAME))
