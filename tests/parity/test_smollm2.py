"""SmolLM2-135M-Instruct out of its GGUF file against transformers and PEFT on that file, on real texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from real import real_tasks, smollm2_file
from transformers_side import poly_of_peft, train_both

from polymoe.batch import Batch
from polymoe.interop.peft import load_adapter
from polymoe.models import generate, load_base

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")


def from_torch() -> Any:
    path = smollm2_file()
    return transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()


@pytest.fixture(scope="module")
def smollm2() -> Any:
    """The base, and transformers' model of the same file."""
    theirs = from_torch()
    return load_base("smollm2"), theirs


def instances() -> list[list[tuple[str, str]]]:
    """Input and output of every instance, by task."""
    found = []
    for file in sorted(real_tasks("superni").glob("*.json")):
        rows = json.loads(file.read_text(encoding="utf-8"))["Instances"]
        found.append([(row["input"], row["output"][0]) for row in rows])
    return found


def prompts(base: Any, n: int, most: int) -> list[np.ndarray]:
    """The first inputs of each task in turn, as tokens, ``most`` of each at most."""
    tasks = instances()
    texts = [task[i][0] for i in range(-(-n // len(tasks))) for task in tasks][:n]
    assert len(texts) == n
    return [np.array(ids[:most]) for ids in base.tokenizer.prompts(texts)]


def test_logits_are_those_of_transformers(smollm2: Any) -> None:
    base, theirs = smollm2
    texts = prompts(base, 32, 96)
    cu_seqlens = np.cumsum([0, *(len(t) for t in texts)])
    hidden = base(Batch(cu_seqlens, np.concatenate(texts)))
    for text, a, b in zip(texts, cu_seqlens, cu_seqlens[1:], strict=False):
        with torch.inference_mode():
            expected = theirs(torch.tensor(text)[None]).logits[0].numpy()
        error = base.logits(hidden[a:b]) - expected
        assert np.sqrt(np.mean(error**2) / np.mean(expected**2)) < 1e-4
        assert np.abs(error).max() < 1e-3


def test_greedy_texts_are_those_of_transformers(smollm2: Any) -> None:
    """64 tokens, or until the two best logits there are so close that rounding decides."""
    base, theirs = smollm2
    given, equal = prompts(base, 6, 40), []
    texts = generate(base, given, max_new_tokens=64)
    for prompt, (text,) in zip(given, texts, strict=True):
        with torch.inference_mode():
            out = theirs.generate(
                torch.tensor(prompt)[None], attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                max_new_tokens=64, do_sample=False, return_dict_in_generate=True, output_logits=True,
                eos_token_id=list(base.eos_token_ids), pad_token_id=0,
            )  # fmt: skip
        want = out.sequences[0, len(prompt) :].tolist()
        best = [logits[0].topk(2).values for logits in out.logits]
        close = [i for i, (a, b) in enumerate(best) if float(a - b) < 1e-3]
        until = close[0] if close else max(len(want), len(text.token_ids))
        assert list(text.token_ids[:until]) == want[:until]
        equal.append(until)
    assert max(equal) == 64


def test_tokenizer_is_the_one_of_its_definition(smollm2: Any) -> None:
    """Digits split singly, then byte-level BPE; built here by hand from the lists in the file. (The reader of
    transformers leaves the digits together.)"""
    from gguf import GGUFReader

    fields = GGUFReader(smollm2_file()).fields
    tokens, merges, types = (
        fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "merges", "token_type")
    )
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE({t: i for i, t in enumerate(tokens)}, [tuple(m.split(" ")) for m in merges])
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Digits(individual_digits=True),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.add_special_tokens([t for t, kind in zip(tokens, types, strict=True) if kind == 3])
    ours = smollm2[0].tokenizer
    texts = [text for task in instances() for pair in task[:120] for text in pair]
    lines = list(dict.fromkeys(line for text in texts for line in text.split("\n")))
    assert len(lines) >= 1000
    assert sum(any(c.isdigit() for c in line) for line in lines) > 100
    lines += ["<|im_start|>user\nIn 1984,  2+2 = 5<|im_end|>\n", "", " \n\t x", "東京 ½ é"]
    expected = tokenizer.encode_batch_fast(lines)
    for line, got, want in zip(lines, ours.prompts(lines), expected, strict=True):
        assert got == want.ids, line
    assert ours.decode(expected[0].ids) == lines[0]
    assert ours.chat_template.startswith("{% for message in messages %}")


def test_twenty_steps_of_poly_are_those_of_peft(smollm2: Any, tmp_path: Path) -> None:
    """Poly on every linear layer, the same start, no noise, AdamW, real texts of three tasks."""
    base, theirs = smollm2
    examples = [
        (t, base.tokenizer.prompts([x + "\n"])[0][-16:], base.tokenizer.prompts([y])[0][:8])
        for t, task in enumerate(instances()[1::3])
        for x, y in task[:4]
    ]
    batches = [examples[step % 2 :: 2][:3] + examples[-2:] for step in range(20)]  # two in turn
    adapted = poly_of_peft(theirs, 0.02)
    try:
        adapted.save_pretrained(tmp_path, save_embedding_layers=False)
        found, want = train_both(load_adapter(base, tmp_path), adapted, batches, 1e-3)
    finally:
        adapted.unload()
    assert want[-1] < 0.9 * want[0]
    np.testing.assert_allclose(found, want, rtol=1e-5)
