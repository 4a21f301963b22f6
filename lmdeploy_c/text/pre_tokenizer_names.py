"""What llama.cpp calls the way in which a tokenizer.json cuts a text into words.

Expressions say the same in many ways, so that texts decide: a row of `pre_tokenizers.TABLE` has the
name if it makes the same tokens of all of PROBES. Of several such rows it is the one that cuts most
of PROBES and FINER_PROBES alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .pre_tokenizers import TABLE, PreTokenizer
from .tokenizers_library import LibraryTokenizer

#: Texts in which llama.cpp is exact with every tokenizer that it knows.
PROBES = (
    "Hello there, world! It is a fine day.",
    "I'm sure we'll say they've gone, isn't it? He'd know; you're late, it's nine.",
    "I'M SURE WE'LL SAY THEY'VE GONE, ISN'T IT? HE'D KNOW; YOU'RE LATE, IT'S NINE.",
    "d'saw m'tin l'Mano 'tis rock 'n' roll c'dance x're-use",
    "camelCase HTTPServer XMLHttpRequest iPhone aBC ABc snake_case kebab-case dot.case",
    "$money @at #tag a=b a==b a->b a::b x+=1; // note /* more */ word\n/next//\n\n//",
    "!!! ??? ... ---- ==== ~~~ ``` ||| <<>> ^^ {[()]} !word #word -word /word",
    "1 12 123 1234 12345 123456 1234567 12345678 123456789 1234567890",
    "a1 b12 c123 d1234 1a 12b 3.14 1,000,000 1e10 0x1F 2024-01-31 10:45:30 v2.0.1",
    "   9  99   999    9999\t12345\n1234\n\n 1234567",
    "a b  c   d    e     f      g       h        i                 j",
    "line\nline\n\nline\n\n\nline \n line\n  line\t\n\tline\r\nline\r\n\r\nline\r\rend\n",
    "end.\n\n\nnew !\r\n\r\n? word\t\t\ttabs \t mixed\t \t \n\n\tend   ",
    "1. one\n2. two\n10. ten\n- item\n  * sub\nfor i in range(10):\n    x[i] = i**2\n",
    "中文字符，没有空格。我在2024年写了123行代码！",
    "русский текст: ёлка, мир123мир 한국어 문장 caña straße",
)
#: Where some of llama.cpp's expressions are coarser than the tokenizer that they stand for:
#: capitals beyond ASCII, marks, numerals of other scripts, what only looks like a letter.
FINER_PROBES = (
    "ÉColeÉtude éCOLE STRASSEß ЁЛКА ΚΕΊΜΕΝΟ it’s 'LL'lL 'Ve'vE x'ſ",
    "हिन्दी में क्षत्रिय। e\u0301 a\u0308 ภาษาไทย العربية مع مُحَمَّدٌ",
    "٣٤٥٦ ४५६७ ½ ² Ⅷ ① 12٣456 ٣4567 1000½",
    "日本語のテキストとカタカナ、ﾊﾝｶｸ「引用」 ㄅㄆㄇ 가나다123",
    "\u00a0no-break\u00a0 \u3000wide\u3000 “quoted” ‘single’ —dash– …dots… 🙂👍🏽 ™© €5",
)
_EMPTY = {"type": "BPE", "vocab": {}, "merges": []}


def _cutter(pre_tokenizer: Any) -> LibraryTokenizer:
    """A tokenizer that is used for its `pieces` alone."""
    return LibraryTokenizer({"model": _EMPTY, "pre_tokenizer": pre_tokenizer}, None)


def name_of(parts: Mapping[str, Any]) -> str | None:
    """The value of `tokenizer.ggml.pre` for a byte-level tokenizer.json, checked. None: llama.cpp
    has no name for it. ValueError for parts that the tokenizers library refuses."""
    model = parts["model"]
    whole_words_first = bool(model.get("ignore_merges"))
    merger = LibraryTokenizer({"model": model}, None)  # cuts nothing
    own = _cutter(parts.get("pre_tokenizer"))
    wanted_pieces = [own.pieces(text) for text in (*PROBES, *FINER_PROBES)]
    wanted = [_tokens(merger, pieces) for pieces in wanted_pieces[: len(PROBES)]]

    def n_alike(row: PreTokenizer) -> int:
        """Texts that are cut alike; -1 where other tokens come of it."""
        cutter = _cutter(row.steps())
        pieces = [cutter.pieces(text) for text in (*PROBES, *FINER_PROBES)]
        same_tokens = all(
            cut == wanted_cut or _tokens(merger, cut) == ids
            for cut, wanted_cut, ids in zip(pieces, wanted_pieces, wanted, strict=False)
        )
        if not same_tokens:
            return -1
        return sum(cut == other for cut, other in zip(pieces, wanted_pieces, strict=True))

    rows = [row for row in TABLE if row.byte_level and row.ignore_merges == whole_words_first]
    best = max(rows, key=n_alike)
    return best.names[0] if n_alike(best) >= 0 else None


def _tokens(merger: LibraryTokenizer, pieces: list[str]) -> list[int]:
    return [token for piece in pieces for token in merger.encode(piece)]
