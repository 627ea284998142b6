"""The T5 family: T5, T5 v1.1 and its LM-adapted form, FLAN-T5, mT5 and every other folder whose config.json
says ``"model_type"`` t5 or mt5.

    encoder, of the source [M, D]:
    x = x + Wo attention(Wq n, Wk n, Wv n; bias), n = rms_norm(x)        both ways, scores not scaled
    x = x + W (act(W0 n) * W1 n), n = rms_norm(x)                        or W act(Wi n), without a gate
    decoder, of the start token and what is written [N, D]: the same, looking back alone, and between the two
    x = x + Wo attention(Wq n, Wk e, Wv e), e = the encoder's output     cross attention, without a bias
    logits = Whead (rms_norm(x) [* D^-0.5 where the head is the table of the tokens])

The bias of a score is a number for each head and bucket of distances (:meth:`T5Config.buckets`), the first
block's for all. Frozen, the modules named as in transformers' T5ForConditionalGeneration, so that adapters
find their targets and checkpoints map by name. In the encoder, and at the keys and values of cross attention,
adapters meet the tokens of the source; elsewhere the decoder's own, of which a router that reads an example
reads the first alone, the start: its state holds what cross attention has read, and no more is there when
writing begins. Equations: Raffel et al. 2020 (arXiv 1910.10683), Shazeer 2020 (arXiv 2002.05202).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import numpy as np

from polymoe import tape
from polymoe.batch import Batch, Source
from polymoe.models.base import run_block, tokens_and_positions
from polymoe.models.build import Builder
from polymoe.models.cache import SourceCache
from polymoe.models.t5_config import ACTIVATIONS, T5Config
from polymoe.models.weights import check_weights, rename
from polymoe.models.writer import Writer
from polymoe.nn import Embedding, FeedForward, Linear, Module

# Both stacks hold the table again; old checkpoints have a bias for cross attention that nobody uses.
IGNORE = r"(encoder|decoder)\.embed_tokens\.weight$|.*EncDecAttention\.relative_attention_bias\.weight$"


class Meeting(NamedTuple):
    """What the blocks of a stack meet beside their input: the ``bias`` by distance [H, 2 W + 1], and in a
    decoder the encoder's output ``states`` [M, D] with its batch ``source``, None where the cache has
    them."""

    bias: np.ndarray
    decodes: bool
    states: Any
    source: Batch | None


class T5Attention(Module):
    """The four projections of an attention, self or cross."""

    def __init__(self, config: T5Config, build: Builder, name: str) -> None:
        self.q, self.k, self.v, self.o = (build.linear(f"{name}.{part}", bias=False) for part in "qkvo")
        self.n_heads = config.num_heads


class T5SelfAttention(T5Attention):
    """[N, D] to [N, D]; that of the first block has the numbers of the buckets."""

    def __init__(self, config: T5Config, build: Builder, name: str, first: bool) -> None:
        super().__init__(config, build, name)
        if first:
            self.relative_attention_bias = build.embedding(name + ".relative_attention_bias")

    def __call__(self, x: Any, batch: Batch, meets: Meeting) -> Any:
        """x [N, D] to [N, D]."""
        q, k, v = tape.together(x, lambda x: (self.q(x, batch), self.k(x, batch), self.v(x, batch)))
        offsets, lengths = batch.cu_seqlens, None
        if batch.cache is not None:
            k, v, lengths = batch.cache.extend(self, k, v, offsets)
            offsets = batch.cache.cu_seqlens
        y = tape.attention(
            q, k, v, batch.cu_seqlens, self.n_heads, scale=1.0, causal=meets.decodes,
            cu_seqlens_k=offsets, key_lengths=lengths, position_bias=meets.bias,
        )  # fmt: skip
        return self.o(y, batch)


class T5CrossAttention(T5Attention):
    """The decoder's tokens look at the encoder's, [N, D] to [N, D]."""

    def __call__(self, x: Any, batch: Batch, meets: Meeting) -> Any:
        """x [N, D] to [N, D]."""

        def read() -> list[Any]:
            source = meets.source
            assert source is not None
            return tape.together(meets.states, lambda x: (self.k(x, source), self.v(x, source)))

        if batch.cache is not None:
            sources = batch.cache.sources
            (k, v), queries, keys = sources.once(self, read), sources.queries(batch.cu_seqlens), sources
        else:
            (k, v), queries, keys = read(), batch.cu_seqlens, meets.source
        q = self.q(x, batch)
        y = tape.attention(q, k, v, queries, self.n_heads, scale=1.0, cu_seqlens_k=keys.cu_seqlens)
        return self.o(y, batch)


class T5DenseActDense(FeedForward):
    """wo(act(wi(x)))."""

    projections: ClassVar[tuple[str, ...]] = ("wi", "wo")

    def __init__(self, config: T5Config, build: Builder, name: str) -> None:
        self.activation = ACTIVATIONS[config.activation]
        for part in self.projections:
            setattr(self, part, build.linear(f"{name}.{part}", bias=False))

    def compute(self, x: Any, project: Callable[[str, Any], Any]) -> Any:
        """The formula, with ``project(name, h)`` for each of ``projections``."""
        return project("wo", tape.Activated(project("wi", x), self.activation))


class T5DenseGatedActDense(T5DenseActDense):
    """wo(act(wi_0(x)) * wi_1(x))."""

    projections = ("wi_0", "wi_1", "wo")

    def compute(self, x: Any, project: Callable[[str, Any], Any]) -> Any:
        """The formula, with ``project(name, h)`` for each of ``projections``."""
        gate, up = tape.together(x, lambda x: (project("wi_0", x), project("wi_1", x)))
        return project("wo", tape.Activated(gate, self.activation, up))


class T5Layer(Module):
    """A third (in the encoder half) of a block: x + part(norm(x)). The part is an attribute with the name
    that it has in transformers."""

    def __init__(self, config: T5Config, build: Builder, name: str, part: str, module: Module) -> None:
        self.part = part
        setattr(self, part, module)
        self.layer_norm = build.rms_norm(name + ".layer_norm", config.layer_norm_epsilon)

    def __call__(self, x: Any, *meets: Any) -> Any:
        """[N, D] to [N, D]."""
        return tape.add(x, getattr(self, self.part)(self.layer_norm(x), *meets))


class T5Block(Module):
    """Self-attention, cross attention in a decoder, feed-forward."""

    def __init__(self, config: T5Config, build: Builder, name: str, decodes: bool, first: bool) -> None:
        dense = T5DenseGatedActDense if config.gated else T5DenseActDense
        makes: dict[str, Callable[[str], Module]] = {
            "SelfAttention": lambda at: T5SelfAttention(config, build, at, first)
        }
        if decodes:
            makes["EncDecAttention"] = lambda at: T5CrossAttention(config, build, at)
        makes["DenseReluDense"] = lambda at: dense(config, build, at)
        self.layer = []
        for i, (part, make) in enumerate(makes.items()):
            at = f"{name}.layer.{i}"
            self.layer.append(T5Layer(config, build, at, part, make(f"{at}.{part}")))

    def __call__(self, x: Any, batch: Batch, meets: Meeting) -> Any:
        """[N, D] to [N, D]."""
        *attentions, dense = self.layer
        for attention in attentions:
            x = attention(x, batch, meets)
        return dense(x, batch)


class T5Stack(Module):
    """The encoder or the decoder: a batch's tokens to hidden states [N, D]."""

    def __init__(self, config: T5Config, build: Builder, name: str, embed_tokens: Embedding) -> None:
        self.decodes = name == "decoder"
        n = config.num_decoder_layers if self.decodes else config.num_layers
        self.embed_tokens = embed_tokens
        self.block = [T5Block(config, build, f"{name}.block.{i}", self.decodes, i == 0) for i in range(n)]
        self.final_layer_norm = build.rms_norm(name + ".final_layer_norm", config.layer_norm_epsilon)
        table = build.array(f"{name}.block.0.layer.0.SelfAttention.relative_attention_bias.weight")
        self.bias = np.ascontiguousarray(table[config.buckets(both_ways=not self.decodes)].T)
        self.most = config.context_length

    def __call__(self, batch: Batch, states: Any = None, source: Batch | None = None) -> Any:
        """Hidden states [N, D], normalised; a decoder's with those of the encoder and its batch."""
        token_ids, _ = tokens_and_positions(batch, self.most)
        x = self.embed_tokens(token_ids)
        meets = Meeting(self.bias, self.decodes, states, source)
        for block in self.block:
            x = run_block(block, x, batch, meets)
        if batch.cache is not None:
            batch.cache.advance(batch.cu_seqlens)
        return self.final_layer_norm(x)


class T5(Writer):
    """A frozen encoder-decoder: hidden states of the decoder, logits over the vocabulary, and its tokenizer.

    A batch has a ``source``, which the encoder reads, and the decoder's own tokens. One vector per text is
    the decoder's state at its "start", when it has read the text, or the "mean" of the encoder's, for which
    there is no decoder (both as Ni et al. 2021, arXiv 2108.08877).
    """

    poolings = ("start", "mean")
    encoder_decoder = True
    default_target_modules = ("q", "v")
    ia3_target_modules = ("k", "v", "wo")
    ia3_feedforward_modules = ("wo",)

    def __init__(
        self, config: T5Config, build: Builder, pooling: str = "start", name: str = "t5", **options: Any
    ) -> None:
        super().__init__(config, build, pooling=pooling, name=name, **options)
        tied = build.packed("shared.weight") if config.tie_word_embeddings else None
        self.shared = build.embedding("shared") if tied is None else Embedding(tied)
        self.encoder = T5Stack(config, build, "encoder", self.shared)
        self.decoder = T5Stack(config, build, "decoder", self.shared)
        self.lm_head = build.linear("lm_head", bias=False) if tied is None else Linear(tied)
        self.scale = np.full(config.d_model, config.d_model**-0.5, build.dtype)

    @classmethod
    def from_state(
        cls, config: T5Config, state: Mapping[str, Any], dtype: Any = np.float32, **options: Any
    ) -> T5:
        """From weights by name (of T5ForConditionalGeneration), float of any width, converted to ``dtype``.

        ``options`` are those of :class:`~polymoe.models.writer.Writer`. A head of its own
        is one that differs from the table of the tokens, whatever ``tie_word_embeddings`` says: some writers
        say that they are tied where they are not. Raises ValueError that lists missing and unexpected
        weights, for a wrong shape, and for NaN or infinity; TypeError for weights that are no floats.
        """
        renames = () if "shared.weight" in state else ((r"^encoder\.embed_tokens\.", "shared."),)
        state = rename(state, renames, IGNORE)
        if (head := state.get("lm_head.weight")) is not None and "shared.weight" in state:
            tied = np.array_equal(np.asarray(head), np.asarray(state["shared.weight"]))
            config = replace(config, tie_word_embeddings=tied)
            state = {name: w for name, w in state.items() if not (tied and name == "lm_head.weight")}
        check_weights(state, config.shapes())
        return cls(config, Builder(state, np.dtype(dtype)), **options)

    def prompt_room(self, most: int, n_new: int) -> int:
        """A prompt and what is written are texts of their own, of at most ``most`` tokens each."""
        return most if n_new < most else 0

    def target_room(self, most: int) -> int:
        """All but the start."""
        return max(most - 1, 1)

    def begin(self, batch: Batch) -> Batch:
        """The batch's tokens become the source; the decoder stands at its start."""
        if batch.token_ids is None:
            raise ValueError("token_ids: expected the [N] tokens of the batch, got None")
        return replace(
            batch,
            token_ids=np.full(batch.n_examples, self.config.decoder_start_token_id),
            cu_seqlens=np.arange(batch.n_examples + 1),
            prompt_lengths=None,
            source=Source(batch.token_ids, batch.cu_seqlens),
        )

    def follow(self, batch: Batch) -> tuple[Batch, np.ndarray]:
        """The prompts become the source; the decoder reads the start and all that follows but the last."""
        rows, starts = batch.prompt
        assert batch.token_ids is not None and rows is not None
        offsets = batch.cu_seqlens - starts
        after = np.delete(batch.token_ids, rows)
        read = np.roll(after, 1)
        read[offsets[:-1][np.diff(offsets) > 0]] = self.config.decoder_start_token_id
        batch = replace(
            batch,
            token_ids=read,
            cu_seqlens=offsets,
            prompt_lengths=np.minimum(np.diff(offsets), 1),
            source=Source(batch.token_ids[rows], starts),
        )
        return batch, np.arange(len(after))

    def __call__(self, batch: Batch) -> Any:
        """Hidden states of the decoder's tokens [N, D], as the head reads them.

        A batch without a source (nor one in its cache) is one that the encoder reads: there are then B rows,
        of the decoder's start. Raises as :class:`~polymoe.models.base.Base` says, for either text.
        """
        if batch.source is None and (batch.cache is None or batch.cache.sources is None):
            batch = self.begin(batch)
        source, states = batch.source_batch, None
        if source is not None:
            states = self.encoder(source)
            if batch.cache is not None:
                batch.cache.sources = SourceCache(source.cu_seqlens)
        x = self.decoder(batch, states, source)
        return tape.multiply(x, self.scale) if self.config.scale_decoder_outputs else x

    def embed(self, batch: Batch) -> Any:
        """One vector per text, [B, D]."""
        if self.pooling == "mean":
            return self.pool(self.encoder(batch), batch)
        x = self(batch)
        return tape.l2_normalize(x) if self.normalize else x
