"""Text from a language model, adapted or not: many prompts of mixed tasks at once, token by token.

The prompts go through the model once, packed; what they leave there, keys and values, and what routers
decided on them, follows every text that grows from them: through drawing several, through beams that part,
and as others of the batch come to their ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

import numpy as np

from polymoe.batch import Batch, Routings
from polymoe.data import shortest_first
from polymoe.functional import batch_invariant
from polymoe.models.cache import KeyValueCache
from polymoe.models.search import Beams, Ends, Found, GenerationConfig, Samples

BATCH_TOKENS = 4096
"""Tokens that the texts of a batch may come to: SmolLM2 keeps 0.12 MiB of each, and more are no faster."""


@dataclass(frozen=True)
class Generation:
    """A text that a model wrote.

    ``token_ids`` hold all its tokens, the one that ended it too; ``finish`` says what did: "eos", "stop" (a
    stop string) or "length". ``score``: log probability / length ** length_penalty. ``cut``: tokens that the
    prompt lost, because prompt and text are more than the model takes.
    """

    text: str
    token_ids: tuple[int, ...]
    finish: str
    score: float
    cut: int = 0


def generate(
    model: Any,
    prompts: str | Sequence[Any],
    task: Any = None,
    config: GenerationConfig | None = None,
    *,
    batch_tokens: int = BATCH_TOKENS,
    on_text: Callable[[int, str], None] | None = None,
    **options: Any,
) -> list[list[Generation]]:
    """Continue ``prompts``: for each a list of its texts, the best first (beams) or as they were drawn.

    Args:
        model: a base with a head over its vocabulary, or an :class:`~polymoe.adapters.AdaptedModel` on one.
        prompts: texts (one is a list of one), or the token ids of each (for an encoder with the one that ends
            a text). A prompt loses its first tokens where it and ``max_new_tokens`` are more than the model
            takes (an encoder: where it alone is); a token that begins every text stays.
        task: name or id of the task, of all prompts or of each; needed where the adapter goes by task.
        config: how the texts go on, ``options`` being fields of it.
        batch_tokens: tokens that the prompts of a batch and their texts may come to together.
        on_text: called with a prompt's place and every further piece of its (first) text; not with beams.

    A text depends on its prompt, its task and the seed, not on the rest of the batch, to the last bit. (The
    same prompt given twice is drawn for twice.)

    Raises:
        ValueError: an empty prompt, no task where one is needed, more new tokens than the model takes, no
            tokenizer for texts.
        TypeError: a base that has no head, prompts that are neither texts nor integers.
        KeyError, IndexError: an unknown task.
    """
    config = replace(config or GenerationConfig(), **options)
    given = [prompts] if isinstance(prompts, str) else list(prompts)
    if on_text is not None and config.num_beams > 1:
        raise ValueError("on_text: expected None with num_beams (beams are no text before the end)")
    base, attach, ids = parts_of(model, task, len(given))
    tokens, cut = _tokens(base, given, config.max_new_tokens)
    keys = _keys(tokens, ids)
    lengths = np.array([len(t) for t in tokens], np.int64) + config.max_new_tokens
    costs = lengths * max(config.num_beams, config.num_return_sequences)
    results: list[list[Generation]] = [[] for _ in given]
    with model.without_noise(), batch_invariant():
        for batch in shortest_first(costs, max_tokens=batch_tokens):
            if ids is not None:  # side by side, texts of a task read its factors once
                batch = batch[np.argsort(ids[batch], kind="stable")]
            writers = [_Writer(base, config, int(keys[i]), int(i), on_text) for i in batch]
            _run(base, attach, [tokens[i] for i in batch], None if ids is None else ids[batch], writers)
            for i, writer in zip(batch, writers, strict=True):
                results[i] = [writer.finished(found, int(cut[i])) for found in writer.search.found]
    return results


class _Writer:
    """The search of one prompt, and how its tokens become text."""

    def __init__(
        self,
        base: Any,
        config: GenerationConfig,
        key: int,
        place: int,
        on_text: Callable[[int, str], None] | None,
    ) -> None:
        self.base, self.config, self.place, self.on_text = base, config, place, on_text
        self.shown = 0
        ends: Ends = self._ends
        if config.num_beams > 1:
            self.search: Any = Beams(config, ends, len(base.eos_token_ids))
        else:
            self.search = Samples(config, ends, key, None if on_text is None else self._tell)

    def finished(self, found: Found, cut: int) -> Generation:
        """With its text."""
        return Generation(
            self._text(found.tokens, found.finish), tuple(found.tokens), found.finish, found.score, cut
        )

    def _ends(self, tokens: Sequence[int]) -> str | None:
        if tokens[-1] in self.base.eos_token_ids:
            return "eos"
        if self.config.stop and self._stops_at(self._decode(tokens)) is not None:
            return "stop"
        return "length" if len(tokens) >= self.config.max_new_tokens else None

    def _decode(self, tokens: Sequence[int]) -> str:
        return "" if self.base.tokenizer is None else str(self.base.tokenizer.decode(tokens))

    def _stops_at(self, text: str) -> int | None:
        places = [at for stop in self.config.stop if (at := text.find(stop)) >= 0]
        return min(places) if places else None

    def _text(self, tokens: Sequence[int], finish: str | None) -> str:
        text = self._decode(tokens[:-1] if finish == "eos" else tokens)
        return text[: self._stops_at(text)] if finish == "stop" else text

    def _tell(self, tokens: Sequence[int], finish: str | None) -> None:
        """What has come to the text, held back while it may be half a character or half a stop string."""
        text = self._text(tokens, finish)
        if finish is None:
            text = text.rstrip("\ufffd")
            held = [n for s in self.config.stop for n in range(1, len(s)) if text.endswith(s[:n])]
            text = text[: len(text) - max(held, default=0)]
        if self.on_text is not None and len(text) > self.shown:
            self.on_text(self.place, text[self.shown :])
            self.shown = len(text)


def _run(
    base: Any,
    attach: Callable[[Batch], Batch],
    prompts: Sequence[np.ndarray],
    task_ids: np.ndarray | None,
    writers: Sequence[_Writer],
) -> None:
    """One batch of prompts, until all their searches are done."""
    batch = start_batch(base, attach, prompts, task_ids, [w.config.max_new_tokens for w in writers])
    logits = _logits(base, base(batch), batch)
    live = [writer.search for writer in writers]
    while live:
        parents: list[int] = []
        tokens: list[int] = []
        at = 0
        for search in live:
            rows = slice(at, at + search.n_rows)
            kept, new = search.advance(logits[rows])
            parents += [at + row for row in kept]
            tokens += new
            at = rows.stop
        live = [search for search in live if search.n_rows]
        if live:
            batch = next_batch(batch, np.array(parents), tokens)
            logits = _logits(base, base(batch), batch)


def parts_of(model: Any, task: Any, n: int) -> tuple[Any, Callable[[Batch], Batch], np.ndarray | None]:
    """The base, what brings the adapter to a batch, and the task ids of n prompts [n] (None: no tasks).
    TypeError for a base without a head, errors for tasks as :func:`generate`."""
    adapted = hasattr(model, "attach")
    base = model.base if adapted else model
    if not hasattr(base, "logits"):
        raise TypeError(f"model: expected one that writes text, got {type(base).__name__}")
    if adapted:
        return base, model.attach, model.task_ids(task, n)
    if task is not None:
        raise ValueError(f"task: expected None (a base without adapters has no tasks), got {task!r}")
    return base, lambda batch: batch, None


def start_batch(
    base: Any,
    attach: Callable[[Batch], Batch],
    prompts: Sequence[np.ndarray],
    task_ids: np.ndarray | None,
    n_new: Any,
) -> Batch:
    """The batch of some prompts, token ids each, with a cache where each text may grow by ``n_new`` [B]
    tokens."""
    cu_seqlens = np.concatenate([[0], np.cumsum([len(p) for p in prompts])]).astype(np.int64)
    batch = base.begin(Batch(cu_seqlens, np.concatenate(prompts), task_ids))
    cache = KeyValueCache(np.diff(batch.cu_seqlens) + np.asarray(n_new))
    return attach(replace(batch, cache=cache, routings=Routings(stand=True)))


def next_batch(batch: Batch, parents: np.ndarray, tokens: Any, cu_seqlens: Any = None) -> Batch:
    """More tokens for some of the texts of a batch that carries a cache: ``parents`` [R] names them, any of
    them several times, ``tokens`` are what they go on with, one each unless ``cu_seqlens`` [R+1] says.

    Its cache goes on with them: the ``batch`` itself is not used again.
    """
    return replace(
        batch,
        cu_seqlens=np.arange(len(parents) + 1) if cu_seqlens is None else cu_seqlens,
        token_ids=np.asarray(tokens, np.int64),
        task_ids=None if batch.task_ids is None else batch.task_ids[parents],
        example_ids=None,
        routings=None if batch.routings is None else batch.routings.take(parents),
        cache=batch.cache.take(parents),
        source=None,
    )


def _logits(base: Any, hidden: np.ndarray, batch: Batch) -> np.ndarray:
    """Of every text's next token [B, V]."""
    last = batch.cu_seqlens[1:] - 1
    head = base.get_submodule(base.output_head)
    if batch.adapters is not None and batch.adapters.get(head) is not None:
        return np.asarray(base.logits(hidden, batch)[last])
    return np.asarray(base.logits(hidden[last]))


def _tokens(base: Any, prompts: Sequence[Any], n_new: int) -> tuple[list[np.ndarray], np.ndarray]:
    """The tokens of each prompt, cut to leave room for ``n_new``, and how many each has lost."""
    most = base.prompt_room(base.max_length, n_new)
    begin = np.empty(0, np.int64) if base.tokenizer is None else base.tokenizer.before.astype(np.int64)
    if most <= len(begin):
        raise ValueError(
            f"max_new_tokens: expected fewer than {base.max_length - len(begin)} (the model takes "
            f"{base.max_length} tokens in all), got {n_new}"
        )
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    if texts and base.tokenizer is None:
        raise ValueError("tokenizer: expected one to write on from texts, got None")
    encoded = iter(base.tokenizer.prompts(texts, base.encoder_decoder) if texts else ())
    result, cut = [], np.zeros(len(prompts), np.int64)
    for i, prompt in enumerate(prompts):
        tokens = np.asarray(next(encoded) if isinstance(prompt, str) else prompt)
        if tokens.size and (tokens.ndim != 1 or tokens.dtype.kind not in "iu"):
            raise TypeError(f"prompts: expected texts or lists of token ids, got {prompt!r:.60}")
        if not tokens.size:
            raise ValueError(f"prompts: expected at least one token in each, got {prompt!r}")
        cut[i] = max(len(tokens) - most, 0)
        if cut[i]:
            kept = begin if np.array_equal(tokens[: len(begin)], begin) else begin[:0]
            tokens = np.concatenate([kept, tokens[len(tokens) - (most - len(kept)) :]])
        result.append(tokens.astype(np.int64))
    return result, cut


def _keys(tokens: Sequence[np.ndarray], ids: np.ndarray | None) -> np.ndarray:
    """What keys the draws for each prompt: its tokens and its task, and which of several that are the same it
    is."""
    met: dict[bytes, int] = {}
    keys = np.empty(len(tokens), np.int64)
    for i, prompt in enumerate(tokens):
        content = prompt.tobytes() + (b"" if ids is None else ids[i].tobytes())
        met[content] = met.get(content, -1) + 1
        digest = blake2b(content, digest_size=8, salt=met[content].to_bytes(8, "little"))
        keys[i] = int.from_bytes(digest.digest(), "little") >> 1
    return keys
