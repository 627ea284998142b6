"""The verb ``generate``: text from a run, or from a base alone."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import tyro

from polymoe.cli.flags import parse_flags
from polymoe.cli.show import print_json
from polymoe.data.chat import ChatTemplate
from polymoe.models import Generation, generate, load_base
from polymoe.training import load_run
from polymoe.training.objectives import Lm


@dataclass(frozen=True)
class Generate:
    """Write text: a run's outputs for inputs of a task, or what a base alone makes of a text."""

    run: tyro.conf.Positional[str | None] = None
    """Folder of a run with the objective lm; none with --base alone."""
    task: str | None = None
    """Which task the prompts belong to; needed with a run."""
    prompt: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """The prompts (with a run: inputs, which its template makes prompts of); stdin is one where there are
    none."""
    base: str | None = None
    """The base alone: a folder, a GGUF file, "smollm2"; with a run: where its base is now, if it has
    moved."""
    chat: bool = False
    """Put each prompt into the base's chat template (without a run)."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Of the frozen weights, without a run (which has its own)."""
    max_new_tokens: int | None = None
    """Tokens of a text at most; the run's own, or 64."""
    temperature: float = 0.0
    """0 takes the likeliest token each time; above, tokens are drawn."""
    top_k: int = 0
    """Draw from so many tokens, the likeliest; 0: from all."""
    top_p: float = 1.0
    """Draw from the fewest tokens that hold this share of the probability."""
    num_beams: int = 1
    """Texts that a beam search keeps."""
    length_penalty: float = 1.0
    """Of beams: their scores are log probability / length ** length_penalty."""
    num_return_sequences: int = 1
    """Texts for each prompt."""
    stop: tuple[str, ...] = ()
    """Strings that end a text."""
    seed: int = 0
    """Of the draws."""
    json: bool = False
    """Print {"text": ...}, or a list of them for several prompts; "texts" has all of a prompt where it has
    several."""


def write(argv: Sequence[str]) -> None:
    """Write text."""
    o = parse_flags(Generate, argv, "generate")
    options: dict[str, Any] = {
        name: getattr(o, name)
        for name in (
            "temperature", "top_k", "top_p", "num_beams", "length_penalty", "num_return_sequences", "stop",
            "seed",
        )
    }  # fmt: skip
    if o.max_new_tokens is not None:
        options["max_new_tokens"] = o.max_new_tokens
    writer = _of_base(o) if o.run is None else _of_run(o)
    prompts = [text for some in o.prompt for text in some] or [sys.stdin.read()]
    streams = not o.json and len(prompts) == 1 and o.num_return_sequences == 1 and o.num_beams == 1
    if streams:
        options["on_text"] = lambda place, piece: print(piece, end="", flush=True)
    results = writer(prompts, options)
    for i, texts in enumerate(results):
        if texts[0].cut:
            cut = f"prompt {i + 1} lost {texts[0].cut} tokens, so that text and prompt fit the model"
            print(f"polymoe generate: {cut}", file=sys.stderr)
    if o.json:
        found = [_plain(texts) for texts in results]
        print_json(found if len(found) > 1 else found[0])
    elif streams:
        print()
    else:
        for texts in results:
            for text in texts:
                print(text.text)


def _of_run(o: Generate) -> Callable[[list[str], dict[str, Any]], list[list[Generation]]]:
    run = load_run(str(o.run), o.base)
    objective, model = run.objective, run.model
    if not isinstance(objective, Lm):
        raise ValueError(f"run: expected one with the objective lm, got {objective.name}")
    if o.chat:
        raise ValueError("chat: expected none with a run (it has a template of its own)")
    if o.task is None:
        raise ValueError(f"task: expected one of {list(objective.task_names)}, got None")
    task = o.task
    objective.check_tasks([task])
    return lambda prompts, options: objective.write(model, prompts, task, **options)


def _of_base(o: Generate) -> Callable[[list[str], dict[str, Any]], list[list[Generation]]]:
    if o.base is None:
        raise ValueError("run: expected the folder of a run, or --base, got neither")
    base: Any = load_base(o.base, {"fp32": "float32", "bf16": "bfloat16"}[o.dtype])
    chat = None
    if o.chat:
        if base.tokenizer is None or not hasattr(base, "eos_token_ids"):
            raise ValueError(f"base: expected a language model with a tokenizer, got {o.base!r}")
        chat = ChatTemplate.of(base.tokenizer, base.eos_token_ids)

    def writer(prompts: list[str], options: dict[str, Any]) -> list[list[Generation]]:
        if chat is None:
            return generate(base, prompts, o.task, **options)
        texts = [chat([{"role": "user", "content": prompt}]) for prompt in prompts]
        encode = base.tokenizer.tokenizer.encode
        return generate(base, [encode(t, add_special_tokens=False).ids for t in texts], o.task, **options)

    return writer


def _plain(texts: Sequence[Generation]) -> dict[str, Any]:
    first = texts[0]
    result = {"text": first.text, "finish": first.finish, "tokens": len(first.token_ids), "cut": first.cut}
    return result | ({"texts": [text.text for text in texts]} if len(texts) > 1 else {})
