r"""How a text is cut into words before merges: a row for each split that llama.cpp knows.

The values of `tokenizer.ggml.pre` and their expressions are those of llama.cpp (src/llama-vocab.cpp
of the version in llama-cpp-python 0.3.36), which are not always those of the model's own
tokenizer.json. They are written for Oniguruma, where `\p{...}`, `\s` and `[a&&b]` are Unicode's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..messages import unsupported

_CONTRACTIONS = r"'(?:[sStTmMdD]|[rR][eE]|[vV][eE]|[lL][lL])"
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_OTHERS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_OTHERS_OR_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_LINE_ENDS = r"\s*[\r\n]+"
_SPACES = r"\s+(?!\S)|\s+"


def _any(*alternatives: str) -> str:
    """The first of the alternatives that matches."""
    return "|".join(alternatives)


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_LLAMA3 = _any(_CONTRACTIONS, _LETTERS, r"\p{N}{1,3}", _OTHERS, _LINE_ENDS, _SPACES)
_QWEN2 = _any(_CONTRACTIONS, _LETTERS, r"\p{N}", _OTHERS, _LINE_ENDS, _SPACES)
_LINES = r"[^\n]+|\n+"

#: Numbers in threes from the right, where the text before a number stays with its first digits.
#: Three expressions, so that a long number takes linear time: a text and its number, the digits
#: before the last threes, and these.
_THREES = (
    r"\G\P{N}*\p{N}+",
    r"\A\P{N}*\p{N}{1,3}(?=(?:\p{N}{3})*\z)",
    r"\G\p{N}{3}",
)
#: ASCII digits in threes from the right, where other numerals stay with what is before them.
_ASCII_THREES = (
    r"\p{N}+",
    r"\G\p{N}*?(?:(?<![0-9])[0-9]{1,2}|[^0-9])(?=(?:[0-9]{3})+(?![0-9]))",
    r"[0-9]{3}(?=[0-9])",
)


def _cased(lower: str, upper: str, end: str) -> str:
    """Words that begin with any number of letters of `upper` and go on with letters of `lower`."""
    first = r"[^\r\n\p{L}\p{N}]?"
    return f"{first}{upper}*{lower}+{end}|{first}{upper}+{lower}*{end}"


#: llama.cpp tells ASCII's capitals from small letters and takes all other letters for both.
_CASED = _cased(r"[\p{L}&&[^A-Z]]", r"[\p{L}&&[^a-z]]", "")
_CASED_CONTRACTED = _cased(r"[\p{L}&&[^A-Z]]", r"[\p{L}&&[^a-z]]", f"(?:{_CONTRACTIONS})?")
_CASED_MARKED = _cased(r"[\p{L}\p{M}&&[^A-Z]]", r"[\p{L}\p{M}&&[^a-z]]", f"(?:{_CONTRACTIONS})?")
#: llama.cpp has no cases at all here.
_MARKED_CONTRACTED = rf"[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+(?:{_CONTRACTIONS})?"

_CHINESE_JAPANESE = r"[\x{4E00}-\x{9FA5}\x{3040}-\x{30FF}]+"
_DEEPSEEK3_WORDS = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
    r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
)
_DEEPSEEK3 = _any(_DEEPSEEK3_WORDS, r" ?[\p{P}\p{S}]+[\r\n]*", _LINE_ENDS, _SPACES)
#: Letters with a case, without some alphabets: Georgian, small Armenian, mathematical and others.
_DEEPSEEK_LETTERS = (
    r"[\p{Lu}\p{Ll}\p{Lt}&&[^\x{560}-\x{588}\x{10C7}-\x{10FF}\x{1C80}-\x{1C8A}\x{2D00}-\x{2D2D}"
    r"\x{A790}-\x{A7FA}\x{AB30}-\x{AB68}\x{10570}-\x{105BC}\x{10D50}-\x{10D85}"
    r"\x{16E40}-\x{1DF2A}]]+"
)
_DEEPSEEK_PUNCTUATION = (
    r"[!-/:-~\x{FF01}-\x{FF0F}\x{FF1A}-\x{FF5E}\x{2018}-\x{201F}\x{3001}\x{3002}]+"
)
_EAST_ASIAN = r"[\x{800}-\x{9FA5}\x{AC00}-\x{D7FF}&&[^\s]]+"
_AFMOE_SCRIPTS = (
    r"[\x{4E00}-\x{9FFF}\x{3400}-\x{4DBF}\x{8C48}-\x{FAFF}\x{3040}-\x{30FF}\x{FF65}-\x{FF9F}"
    r"\x{2F00}-\x{2FDF}\x{E40}-\x{E7F}\x{E80}-\x{EFF}\x{1780}-\x{17FF}\x{1000}-\x{109F}"
    r"\x{AA60}-\x{AA7F}\x{A9E0}-\x{A9FF}\x{AC00}-\x{D7AF}\x{1100}-\x{11FF}]+"
)
_YOUTU_SCRIPTS = (
    r"[\x{AC00}-\x{D7A3}\x{3131}-\x{318E}]+"
    r"|[！…“”‘’—：；，\x{3001}-\x{303F}\x{FE30}-\x{FE4F}]+"
    r"|[\x{3105}-\x{312F}]+|" + _CHINESE_JAPANESE
)
_HAN = (
    r"\x{4E00}-\x{9FFF}\x{3400}-\x{4DBF}\x{20000}-\x{2A6DF}\x{2A700}-\x{2EBEF}"
    r"\x{F900}-\x{FAFF}\x{2F800}-\x{2FA1F}"
)
_KIMI_WORDS = rf"[{_HAN}]+|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}&&[^{_HAN}]]+(?:{_CONTRACTIONS})?"
_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"
#: Runs of spaces in pieces of powers of two.
_POWERS_OF_TWO = "|".join(
    [*(rf"\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4)), r"\s{1,2}(?!\S)", r"\s"]
)


@dataclass(frozen=True)
class PreTokenizer:
    """A way to cut a text into words, and what goes with it.

    names: the values of `tokenizer.ggml.pre` that mean it. splits: expressions that are applied
    one after another; each makes every match of its own a piece, and what is between them too.
    ignore_merges: a word that is a token is taken whole, before any merge. add_bos: every text
    begins with bos, where the file does not say. byte_level: each character of a token stands for
    a byte; otherwise tokens are spelled as in SentencePiece, with "▁" for a space.
    """

    names: tuple[str, ...]
    splits: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False
    byte_level: bool = True

    def steps(self) -> dict[str, Any]:
        """The same as a pre_tokenizer of tokenizer.json."""
        steps: list[dict[str, Any]] = [
            {"type": "Split", "pattern": {"Regex": split}, "behavior": "Isolated", "invert": False}
            for split in self.splits
        ]
        if self.byte_level:
            flags = {"add_prefix_space": False, "trim_offsets": True, "use_regex": False}
            steps.append({"type": "ByteLevel", **flags})
        return {"type": "Sequence", "pretokenizers": steps}


def _row(names: str, *splits: str, **flags: bool) -> PreTokenizer:
    return PreTokenizer(tuple(names.split()), splits, **flags)


TABLE = (
    _row("default", r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"),
    _row(
        "gpt-2 phi-2 jina-es jina-de jina-v2-es jina-v2-de jina-v1-en jina-v2-code roberta-bpe "
        "modern-bert gigachat a.x-4.0 mellum exaone4 mpt olmo jais trillion granite-docling",
        _GPT2,
    ),
    _row("smollm starcoder refact command-r codeshell exaone minerva-7b mellum2", r"\p{N}", _GPT2),
    _row("falcon", r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]"),
    _row(
        "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano",
        _LLAMA3,
        ignore_merges=True,
        add_bos=True,
    ),
    _row("dbrx smaug-bpe chatglm-bpe", _LLAMA3),
    _row("glm4 glm5", _LLAMA3, ignore_merges=True),
    _row(
        "minicpm5",
        r"\p{N}{1,3}",
        _any(_CONTRACTIONS, _LETTERS, r"\p{N}+", _OTHERS, _LINE_ENDS, _SPACES),
        ignore_merges=True,
    ),
    _row(
        "jais-2",
        _any(_CONTRACTIONS, _LETTERS, r"\p{N}{1,3}", _OTHERS, _LINE_ENDS, _POWERS_OF_TWO),
    ),
    _row(
        "qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2 "
        "bailingmoe bailingmoe2 llada-moe",
        _QWEN2,
    ),
    _row("laguna", _LINES, _QWEN2),
    _row("ufakzeka", _any(_LETTERS, r"\p{N}", _OTHERS, _LINE_ENDS, _SPACES)),
    _row(
        "seed-coder",
        _any(_CONTRACTIONS, _LETTERS, r"\p{N}", r" ?[^\s\p{L}\p{N}]+", _LINE_ENDS, _SPACES),
    ),
    _row(
        "qwen35",
        _any(
            _CONTRACTIONS,
            r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+",
            r"\p{N}",
            r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*",
            _LINE_ENDS,
            _SPACES,
        ),
    ),
    _row(
        "exaone-moe",
        _any(
            _CONTRACTIONS,
            r"[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+",
            r"\p{N}",
            r" ?[^\s\p{L}\p{N}]+[\r\n/]?",
            _LINE_ENDS,
            _SPACES,
        ),
    ),
    _row(
        "tekken",
        _any(_CASED, r"\p{N}", _OTHERS_OR_SLASH, _LINE_ENDS, _SPACES),
        ignore_merges=True,
        add_bos=True,
    ),
    _row(
        "gpt-4o llama4 kanana2 talkie minimax-m2",
        _any(_CASED_CONTRACTED, r"\p{N}{1,3}", _OTHERS_OR_SLASH, _LINE_ENDS, _SPACES),
    ),
    _row(
        "granite-embed-multi-97m",
        _any(_CASED_MARKED, r"\p{N}{1,3}", _OTHERS_OR_SLASH, _LINE_ENDS, _SPACES),
        ignore_merges=True,
    ),
    _row(
        "tiny_aya cohere2moe",
        *_THREES,
        _any(_MARKED_CONTRACTED, r"\p{N}{1,3}", _OTHERS_OR_SLASH, _LINE_ENDS, _SPACES),
    ),
    _row(
        "youtu",
        _YOUTU_SCRIPTS,
        _any(_MARKED_CONTRACTED, r"\p{N}", _OTHERS_OR_SLASH, _LINE_ENDS, _SPACES),
        ignore_merges=True,
    ),
    _row("kimi-k2", _any(_KIMI_WORDS, r"\p{N}{1,3}", _OTHERS, _LINE_ENDS, _SPACES)),
    _row(
        "deepseek-llm",
        r"[\r\n]",
        r"\s?" + _DEEPSEEK_LETTERS,
        r"\s?" + _DEEPSEEK_PUNCTUATION,
        r"(?<!\s)\s+\z",
        _EAST_ASIAN,
        r"\p{N}+",
    ),
    _row("deepseek-coder", r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _EAST_ASIAN, r"\p{N}"),
    _row(
        "deepseek-v3 hunyuan-dense joyai-llm hy_v4",
        r"\p{N}{1,3}",
        _CHINESE_JAPANESE,
        _DEEPSEEK3,
    ),
    _row(
        "spark2_5",
        r"\p{N}{1,3}",
        _CHINESE_JAPANESE,
        _any(_DEEPSEEK3_WORDS, r" ?[\p{P}\p{S}]+", r"[\r\n]", _SPACES),
        r"\p{N}",
    ),
    _row("afmoe", *_THREES, _AFMOE_SCRIPTS, _DEEPSEEK3),
    _row("superbpe", *_ASCII_THREES),
    _row("bloom poro-chat gpt3-finnish", _BLOOM),
    _row("viking", _BLOOM, r"\p{N}"),
    _row(
        "chameleon",
        "<sentinel:[0-9]+>",
        "IMGIMG[A-I]{1,4}Z",
        r"[\t\n]|    |  ",
        r"\p{N}",
        r"[\p{P}!-/:-@\[-`{-~]",
        _GPT2,
        add_bos=True,
    ),
    _row("gemma4 granite-embed-multi-311m", _LINES, add_bos=True, byte_level=False),
    _row("sarvam-moe", _LINES, byte_level=False),
)
#: A value of tokenizer.ggml.pre -> its row.
PRE_TOKENIZERS = {name: row for row in TABLE for name in row.names}
#: The same as sets of names, for programs that read them.
IGNORE_MERGES = {name for name, row in PRE_TOKENIZERS.items() if row.ignore_merges}
ADD_BOS = {name for name, row in PRE_TOKENIZERS.items() if row.add_bos}

#: Values that llama.cpp knows and that are not served: why.
REFUSED = {
    "whitespace": "it drops spaces, so that its tokens do not give a text back; for embeddings",
}


def pre_tokenizer_named(name: object) -> PreTokenizer:
    """The row of a value of `tokenizer.ggml.pre`; None or "" is "default". UnsupportedError."""
    name = name or "default"
    if not isinstance(name, str) or name not in PRE_TOKENIZERS:
        why = f" ({REFUSED[name]})" if isinstance(name, str) and name in REFUSED else ""
        served = ", ".join(PRE_TOKENIZERS)
        raise unsupported(f"tokenizer.ggml.pre {name!r} is not served{why}; served: {served}")
    return PRE_TOKENIZERS[name]
