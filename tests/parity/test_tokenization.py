"""Token ids are those of transformers, for real texts and for awkward ones."""

from __future__ import annotations

import pytest
from real import minilm_folder, real_tasks

from polymoe.data import Tokenizer, read_tasks

AWKWARD = [
    *("", " ", "\n\t", "\x00\x07 control", "\u200bzero\u200bwidth", "e\u0301 vs \u00e9", "A" * 300),
    *(
        "naïve café",
        "北京 2024",
        "🤖 emoji 👩\u200d👩\u200d👧",
        "\uff26\uff35\uff2c\uff2c width",
        "İstanbul",
        "ß",
        "عربى",
    ),
    *("[CLS] in [SEP] text [MASK]", "under_score-and-hyphen", "don't can't", "3.14e-10", "İstanbul"),
    *("\uff26\uff35\uff2c\uff2c width", "x" * 101),
]


@pytest.mark.parametrize("max_length", [8, 256])
def test_token_ids_are_those_of_transformers(max_length: int) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    texts = list(AWKWARD)
    for collection in ("superglue", "superni"):
        for task in read_tasks(real_tasks(collection)).values():
            texts += [example.input for example in task.test[:40]]
            texts += [example.output for example in task.test[:10]]
    theirs = transformers.AutoTokenizer.from_pretrained(minilm_folder(), local_files_only=True)
    tokens = Tokenizer.from_folder(minilm_folder(), max_length).encode(texts)
    expected = theirs(texts, truncation=True, max_length=max_length)["input_ids"]
    assert tokens.lengths.tolist() == [len(ids) for ids in expected]
    assert tokens.ids.tolist() == [i for ids in expected for i in ids]
    assert tokens.truncated.tolist() == [len(ids) > max_length for ids in theirs(texts)["input_ids"]]
