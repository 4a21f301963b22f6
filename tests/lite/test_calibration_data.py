"""Windows of token ids: how documents are joined and cut, what begins them, how many do."""

from __future__ import annotations

import logging
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import GOLDEN
from tokenizer_dirs import write

from lmdeploy_c.engine.loading import make_tokenizer
from lmdeploy_c.lite.calibration_data import enough, joined_windows, own_windows, windows
from lmdeploy_c.lite.source import Source
from lmdeploy_c.tokenizer import Tokenizer

#: A tokenizer that begins a text with a bos, and a chat template.
GGUF = GOLDEN / "gguf" / "llama-float.gguf"
TEXTS = ["the quick brown fox jumps over the lazy dog. " * 9, "Und so weiter!", "北京 " * 20]
CHAT = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]


@pytest.fixture(scope="module")
def source() -> Source:
    return Source(GGUF)


@pytest.fixture(scope="module")
def tokenizer(source: Source) -> Tokenizer:
    return make_tokenizer(source.checkpoint)


def plain(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def test_documents_are_joined_with_end_tokens(source: Source, tokenizer: Tokenizer) -> None:
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    row = [i for text in TEXTS for i in [*plain(tokenizer, text), eos]]
    found = windows(source, TEXTS, seqlen=17, samples=1000)
    assert [len(w) for w in found] == [17] * (len(row) // 16)
    assert all(w[0] == bos for w in found)
    assert list(chain(*(w[1:] for w in found))) == row[: 16 * len(found)]
    assert sum(w.count(eos) for w in found) >= 2
    some = windows(source, TEXTS, seqlen=17, samples=5)
    assert some == [found[int(i * len(found) / 5)] for i in range(5)]
    assert windows(source, ["ab"], seqlen=64) == [[bos, *plain(tokenizer, "ab"), eos]]
    assert max(map(len, windows(source, TEXTS * 9, seqlen=10_000))) == 256, "the model's context"


def test_a_window_begins_as_a_text_does(tmp_path: Path) -> None:
    """With a bos where the tokenizer puts one, never with two, and with none elsewhere."""
    without = Tokenizer(write(tmp_path / "without"))
    assert without.encode("a") == plain(without, "a")
    assert joined_windows(without, ["abcdefgh"], 4, 9) == [
        plain(without, "abcd"), plain(without, "efgh"),
    ]  # fmt: skip
    spm = make_tokenizer(Source(GOLDEN / "gguf" / "llama-spm.gguf").checkpoint)
    [bos] = spm.before_text
    found = joined_windows(spm, ["<s>a text", "another text"], 5, 99)
    assert len(found) > 2 and all(w[0] == bos for w in found)
    assert not any(w[:2] == [bos, bos] for w in found)


def test_conversations_are_what_the_template_makes(source: Source, tokenizer: Tokenizer) -> None:
    said = "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\nBecause.<|im_end|>\n"
    wanted = plain(tokenizer, said)
    for form in ({"messages": CHAT}, {"question": "Why?", "answer": "Because."}):
        [found] = windows(source, [form])
        assert found == wanted, "no end token more, no bos before that of the template"


def test_a_model_without_a_template_reads_the_messages() -> None:
    spm = make_tokenizer(Source(GOLDEN / "gguf" / "llama-spm.gguf").checkpoint)
    parts = [{"role": "user", "content": [{"type": "text", "text": "Why?"}]}, CHAT[1]]
    wanted = [*spm.encode("Why?\n\nBecause."), spm.eos_token_id]
    assert joined_windows(spm, [CHAT], 512, 1) == [wanted] == joined_windows(spm, [parts], 512, 1)


def test_what_a_template_refuses_is_read_as_text(tmp_path: Path, caplog: Any) -> None:
    refusing = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}"
        "{% endif %}[{{ m.content }}]{% endfor %}"
    )
    tokenizer = Tokenizer(write(tmp_path, **{"chat_template.jinja": refusing}))
    system = [{"role": "system", "content": "Hm."}, *CHAT]
    with caplog.at_level(logging.WARNING, "lmdeploy_c"):
        [found] = joined_windows(tokenizer, [CHAT, system, system], 512, 1)
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    again = [*plain(tokenizer, "Hm.\n\nWhy?\n\nBecause."), *end]
    assert found == [*plain(tokenizer, "[Why?][Because.]"), *again, *again]
    [record] = caplog.records
    assert "refuses 2 of the conversations" in record.message and "no system" in record.message


def test_own_samples_are_the_same_every_time(source: Source) -> None:
    found = own_windows(source, 32, 26, 1)
    assert found == own_windows(source, 32, 26, 2)
    assert len(found) == 26 and len({tuple(w) for w in found}) > 20
    assert all(16 < len(w) <= 32 for w in found)
    assert sum(map(len, windows(source, "self", samples=2, seqlen=24))) > 16


def test_windows_of_the_built_in_text(source: Source) -> None:
    found = windows(source, "builtin", seqlen=200, samples=128)
    assert found == windows(source, "builtin", seqlen=200, samples=128) and len(found) == 128
    assert all(len(w) == 200 for w in found)
    with pytest.raises(ValueError, match="calib_seqlen must be at least 1, not 0"):
        windows(source, "builtin", seqlen=0, samples=1)
    with pytest.raises(ValueError, match="calib_samples must be at least 1, not 0"):
        windows(source, "self", samples=0)


def test_how_many_windows(source: Source) -> None:
    """As many as have 4 tokens for each column of the widest linear, and 24 at least."""
    widest = max(source.tensors[name].shape[1] for name in source.linears())
    for seqlen, wanted in ((512, 24), (64, 24), (8, widest * 4 // 8), (5, -(-widest * 4 // 5))):
        assert len(windows(source, "builtin", seqlen=seqlen)) == wanted
    assert widest * 4 // 8 > 24
    assert len(windows(source, "builtin", seqlen=8, samples=3)) == 3


def test_enough_tokens(caplog: Any) -> None:
    """Of as many tokens as are asked for, NumPy finds the eigenvalues that are promised."""
    assert enough(4 * 1536, 1536) and not caplog.records
    with caplog.at_level(logging.WARNING, "lmdeploy_c"):
        assert not enough(4 * 1536 - 1, 1536)
    assert "1536 columns: 6144 would do" in caplog.records[0].message
    columns = 300
    tokens = next(n for n in range(columns, 10**6, columns) if enough(n, columns))
    x = np.random.default_rng(0).normal(size=(tokens, columns))
    values = np.linalg.eigvalsh(x.T @ x / tokens)
    assert values[0] > 0.2 and values[-1] < 2.4
