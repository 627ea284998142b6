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

    def rivals_in(self, dtype: str) -> bool:
        """Whether rivals compute in this dtype. In bfloat16 where the CPU multiplies pairs of it: elsewhere
        torch takes 20 to 30 times as long as in float32, which is then its best setting."""
        return self.torch and (dtype == "float32" or self.isas[0].endswith("bf16"))
