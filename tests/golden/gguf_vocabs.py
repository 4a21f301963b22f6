"""Tiny vocabularies for GGUF files: a byte-level BPE (gpt2) and a SentencePiece BPE (llama).

Both are trained on the prose of smollm2_inputs.py, so the pieces are few and the text is ours.
"""

import io
import json

import gguf
import sentencepiece
from smollm2_inputs import STRINGS, TEXTS
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

N_MERGES = 44
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
USER_TOKEN = "<tool>"
# A whole word that no merge can build: only a vocabulary with ignore_merges (llama-bpe) finds it.
UNREACHABLE = "Ġtreasure"
# Merges that a pre-tokenizer must sometimes forbid: digits, line ends, runs of spaces, clitics.
DRILL = [
    "123 1234 12345 123456 2024",
    "a\n\nb\n\nc\n\n\n",
    "    x\n        y",
    "don't I'm we'll",
    "x = 10;\n",
    "!! ?? ... ----",
]
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
EXTRA_STRINGS = [
    "The lighthouse and the treasure",
    "treasure treasure",
    "12345 1 22 333 4444",
    "<tool>call</tool>",
    "a <tool> b",
    "WE'LL don'T",
    "end.\n\n\nnew",
    "nul \x00 byte",
]


def corpus():
    return TEXTS + DRILL * 40


def bpe_vocab():
    """Returns tokens, merges, types. Ids: 3 special, 256 bytes, merges, 1 user, 1 unreachable."""
    tok = Tokenizer(models.BPE())
    # Coarse chunks, so that merges exist across the borders that real pre-tokenizers draw.
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" ?[^\s]+|\s+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=256 + N_MERGES, initial_alphabet=alphabet, show_progress=False
    )
    tok.train_from_iterator(corpus(), trainer)
    vocab = tok.get_vocab()
    pieces = sorted(vocab, key=vocab.get)
    merges = [f"{a} {b}" for a, b in json.loads(tok.to_str())["model"]["merges"]]
    assert len(pieces) == 256 + N_MERGES and UNREACHABLE not in vocab
    kinds = gguf.TokenType
    tokens = [*SPECIALS, *pieces, USER_TOKEN, UNREACHABLE]
    types = (
        [kinds.CONTROL] * len(SPECIALS)
        + [kinds.NORMAL] * len(pieces)
        + [kinds.USER_DEFINED, kinds.NORMAL]
    )
    return tokens, merges, types


def spm_vocab():
    """Returns tokens, scores, types, and SentencePiece's own processor as a second opinion."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()),
        model_writer=model,
        model_type="bpe",
        vocab_size=352,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=True,
        split_digits=True,
        character_coverage=1.0,
        num_threads=1,
        allow_whitespace_only_pieces=True,
        minloglevel=2,
        hard_vocab_limit=False,
    )
    sp = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    kinds, tokens, scores, types = gguf.TokenType, [], [], []
    for i in range(sp.vocab_size()):
        tokens.append(sp.id_to_piece(i))
        scores.append(sp.get_score(i))
        types.append(
            kinds.UNKNOWN
            if sp.is_unknown(i)
            else kinds.CONTROL
            if sp.is_control(i)
            else kinds.BYTE
            if sp.is_byte(i)
            else kinds.NORMAL
        )
    return tokens, scores, types, sp


def all_strings():
    return STRINGS + EXTRA_STRINGS
