"""What language models share: a head over the vocabulary, and how their texts begin."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from polymoe import tape
from polymoe.batch import Batch
from polymoe.models.base import Base
from polymoe.models.build import Builder
from polymoe.nn import Linear
from polymoe.tape import Node


class Writer(Base):
    """A frozen base that writes text: ``lm_head`` makes logits of its hidden states, and ``eos_token_ids``
    end a text. What is said here holds for causal models.

    ``encoder_decoder``: whether a prompt is a text of its own, which an encoder reads to its end.
    """

    output_head = "lm_head"
    encoder_decoder: ClassVar[bool] = False
    lm_head: Linear

    def __init__(
        self, config: Any, build: Builder, *, eos_token_ids: tuple[int, ...] = (), **options: Any
    ) -> None:
        super().__init__(config, build, **options)
        self.model_type, self.eos_token_ids = config.model_type, eos_token_ids

    def prompt_room(self, most: int, n_new: int) -> int:
        """Tokens that a prompt may have beside ``n_new`` that are written after it, where texts have at most
        ``most``."""
        return most - n_new

    def target_room(self, most: int) -> int:
        """Tokens that a target may have where texts have at most ``most``: half, the rest is the prompt's."""
        return max(most // 2, 1)

    def begin(self, batch: Batch) -> Batch:
        """The batch whose hidden states say how the texts of ``batch`` go on: itself."""
        return batch

    def follow(self, batch: Batch) -> tuple[Batch, np.ndarray]:
        """Of a batch of prompts and what follows them, with ``prompt_lengths``: the batch to compute, and the
        rows of its hidden states that say each of the tokens that follow."""
        rows, _ = batch.prompt
        assert rows is not None
        return batch, np.delete(np.arange(batch.n_tokens), rows) - 1

    def logits(self, hidden_states: np.ndarray | Node, batch: Batch | None = None) -> Any:
        """Scores of the next token [n, V] for rows of the hidden states [n, D].

        ``batch``: brings the adapter of the head, if there is one; the rows are its tokens. None: the frozen
        head alone.
        """
        if batch is None:
            return tape.linear(hidden_states, self.lm_head.weight)
        return self.lm_head(hidden_states, batch)
