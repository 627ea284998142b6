"""Ctrl-C during training: the first one lets the step finish and a checkpoint be saved, the second one
stops at once.
"""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any


class TrainingInterrupted(KeyboardInterrupt):
    """Training was stopped by the user; ``checkpoint`` is the folder from which the ``run`` goes on."""

    def __init__(self, checkpoint: Path, step: int) -> None:
        super().__init__(
            f"stopped after step {step}, saved {checkpoint}; train(resume=True) goes on from there"
        )
        self.checkpoint, self.run = checkpoint, checkpoint.parent.parent


class Interrupt:
    """``with Interrupt() as interrupt: ... if interrupt.asked: ...``; in other threads than the main one it
    never asks.
    """

    def __init__(self) -> None:
        self.asked = False
        self._previous: Any = None

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *exc: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        print(
            "\nsaving after this step; Ctrl-C again stops at once and saves nothing",
            file=sys.stderr,
            flush=True,
        )
