"""What a run was asked for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """``isas``: best first; the first is that of every row that names no other."""

    threads: int
    isas: tuple[str, ...]
    rounds: int
    quick: bool = False
    torch: bool = False

    @property
    def bf16_rivals(self) -> bool:
        """Whether rivals compute in bfloat16. Where the CPU does not multiply pairs of it torch takes several
        times as long as in float32, and is left out with ``quick``."""
        return self.torch and (not self.quick or self.isas[0].endswith("bf16"))
