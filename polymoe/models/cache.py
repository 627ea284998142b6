"""Keys and values of the tokens of a text that is being written, so that a new token meets them again."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

import numpy as np


class SourceCache:
    """Keys and values, layer by layer, of what an encoder has read: made once, met by every token of the
    texts that grow from it.

    ``cu_seqlens`` [S+1]: where the rows of each source start. ``owners`` [B], never falling: which source
    each text has; texts that part share one, so that nothing is copied.
    """

    def __init__(self, cu_seqlens: np.ndarray) -> None:
        self.cu_seqlens = cu_seqlens
        self.owners = np.arange(len(cu_seqlens) - 1)
        self._layers: dict[Any, tuple[np.ndarray, np.ndarray]] = {}

    @property
    def nbytes(self) -> int:
        """Of all its keys and values."""
        return sum(array.nbytes for arrays in self._layers.values() for array in arrays)

    def once(
        self, layer: Any, make: Callable[[], tuple[np.ndarray, np.ndarray]]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Keys and values of a layer, which ``make()`` makes the first time."""
        if layer not in self._layers:
            self._layers[layer] = make()
        return self._layers[layer]

    def queries(self, cu_seqlens: np.ndarray) -> np.ndarray:
        """Where the tokens of each source's texts start, [S+1], of where those of each text do, [B+1]."""
        sizes = np.bincount(self.owners, np.diff(cu_seqlens), len(self.cu_seqlens) - 1)
        return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)

    def take(self, texts: np.ndarray) -> SourceCache:
        """For some of the texts, in that order."""
        owners = self.owners[texts]
        if (np.diff(owners) >= 0).all():
            taken = SourceCache(self.cu_seqlens)
            taken.owners, taken._layers = owners, self._layers
            return taken
        lengths = np.diff(self.cu_seqlens)[owners]
        taken = SourceCache(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
        rows = _rows(self.cu_seqlens[owners], lengths)
        taken._layers = {layer: (k[rows], v[rows]) for layer, (k, v) in self._layers.items()}
        return taken


class KeyValueCache:
    """B texts end to end, layer by layer: [sum of rooms, width] of keys and of values, the first ``lengths``
    [B] of a text's rows filled.

    ``rooms`` [B]: how many tokens each text may come to. ``cu_seqlens`` [B+1] says where its rows start. A
    forward with a batch that carries the cache puts the keys and values of the batch's tokens behind those
    that are here, in every layer, and then :meth:`advance` counts them. ``sources``: of what an encoder has
    read, where there is one.
    """

    sources: SourceCache | None = None

    def __init__(self, rooms: Any) -> None:
        self.cu_seqlens = np.concatenate([[0], np.cumsum(rooms)]).astype(np.int64)
        self.lengths = np.zeros(len(rooms), np.int64)
        # rows that were copied from one another have the same
        self._stamps = np.full(self.cu_seqlens[-1], -1)
        self._n_stamps = 0
        self._new: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
        self._layers: dict[Any, tuple[np.ndarray, np.ndarray]] = {}

    @property
    def nbytes(self) -> int:
        """Of all its keys and values, filled or not, and of those of its sources."""
        own = sum(array.nbytes for arrays in self._layers.values() for array in arrays)
        return own + (0 if self.sources is None else self.sources.nbytes)

    def extend(
        self, layer: Any, k: np.ndarray, v: np.ndarray, cu_seqlens: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All keys and values of ``layer`` with those of new tokens, k and v [N, width], and how many each
        text has now [B]. ``cu_seqlens`` [B+1]: where the new tokens of each text start.

        ValueError for more tokens than a text has room for, or another number of texts.
        """
        if self._new is None or self._new[0] is not cu_seqlens:  # all layers ask for the same
            self._new = cu_seqlens, *self._places(cu_seqlens)
        _, places, lengths = self._new
        if layer not in self._layers:
            rows = int(self.cu_seqlens[-1])
            self._layers[layer] = np.empty((rows, k.shape[1]), k.dtype), np.empty((rows, v.shape[1]), v.dtype)
        keys, values = self._layers[layer]
        keys[places], values[places] = k, v
        return keys, values, lengths

    def _places(self, cu_seqlens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The rows of new tokens, and how many each text has with them."""
        new, rooms = np.diff(cu_seqlens), np.diff(self.cu_seqlens)
        if len(new) != len(rooms) or (self.lengths + new > rooms).any():
            got = (self.lengths + new).tolist() if len(new) == len(rooms) else f"{len(new)} texts"
            raise ValueError(f"cache: expected at most {rooms.tolist()} tokens of each text, got {got}")
        starts = self.cu_seqlens[:-1] + self.lengths - cu_seqlens[:-1]
        return np.arange(cu_seqlens[-1]) + np.repeat(starts, new), self.lengths + new

    def advance(self, cu_seqlens: np.ndarray) -> None:
        """The new tokens are in every layer."""
        if self._new is None or self._new[0] is not cu_seqlens:
            self._new = cu_seqlens, *self._places(cu_seqlens)
        _, places, self.lengths = self._new
        self._stamps[places] = self._n_stamps + np.arange(len(places))
        self._n_stamps += len(places)
        self._new = None

    def take(self, texts: np.ndarray) -> KeyValueCache:
        """Those of some of the texts, in that order; a text may come several times, to go on in several
        ways. Where as many go on they stay here, and only rows in which a text differs from the one that it
        takes the place of are copied: those of before are gone."""
        if np.array_equal(texts, np.arange(len(self.lengths))):
            return self
        rooms = np.diff(self.cu_seqlens)
        if not np.array_equal(rooms[texts], rooms):
            return self._copy(texts)
        self.lengths = self.lengths[texts]
        self.sources = None if self.sources is None else self.sources.take(texts)
        source = _rows(self.cu_seqlens[:-1][texts], self.lengths)
        place = _rows(self.cu_seqlens[:-1], self.lengths)
        differ = self._stamps[source] != self._stamps[place]
        source, place = source[differ], place[differ]
        for array in (self._stamps, *chain.from_iterable(self._layers.values())):
            array[place] = array[source]
        return self

    def _copy(self, texts: np.ndarray) -> KeyValueCache:
        """The same beside this one, which stays as it is."""
        taken = KeyValueCache(np.diff(self.cu_seqlens)[texts])
        taken.lengths = self.lengths[texts]
        taken.sources = None if self.sources is None else self.sources.take(texts)
        source = _rows(self.cu_seqlens[:-1][texts], taken.lengths)
        place = _rows(taken.cu_seqlens[:-1], taken.lengths)
        taken._stamps[place], taken._n_stamps = self._stamps[source], self._n_stamps
        for layer, arrays in self._layers.items():
            copies = []
            for array in arrays:
                copy = np.empty((int(taken.cu_seqlens[-1]), array.shape[1]), array.dtype)
                copy[place] = array[source]
                copies.append(copy)
            taken._layers[layer] = copies[0], copies[1]
        return taken


def _rows(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """``lengths[i]`` rows from ``starts[i]`` on, for each i in turn."""
    before = np.cumsum(lengths) - lengths
    rows: np.ndarray = np.arange(lengths.sum()) + np.repeat(starts - before, lengths)
    return rows
