"""The blocks of code in the README, so that tests run what it shows."""

import re
from pathlib import Path

import pytest


def python_blocks(section: str) -> list[str]:
    """The Python under a heading."""
    path = Path(__file__).parents[1] / "README.md"
    if not path.is_file():
        pytest.skip("no README.md here")
    text = path.read_text(encoding="utf-8").split(f"\n## {section}\n")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", text, re.S)


def lines_of_code(block: str) -> int:
    """Lines that are not empty."""
    return sum(bool(line.strip()) for line in block.splitlines())
