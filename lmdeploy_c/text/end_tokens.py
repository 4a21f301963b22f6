"""Which tokens end an answer: all that a model's files name, in one set.

None of them is enough by itself. A configuration often keeps the end token of the base model; the
tokenizer's eos may be that of texts and not of turns; a GGUF file may name neither.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from .chat_template import ChatTemplate

#: Texts of tokens that end an answer, whatever type a GGUF file gives them (llama.cpp,
#: `llama_vocab::impl::load`): ends of turns and texts, then what ends a file that is completed.
_ENDS = {
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>",
    "<end_of_turn>", "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]",
    "<|end_of_text|>", "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>",
    "<｜end▁of▁sentence｜>", "[e~[",
    "<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]",
    "<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>", "<|file_sep|>",
}  # fmt: skip
#: A text, and others beside which it ends no answer but only a part of one.
_ENDS_OF_PARTS = [
    ("<|end|>", {"<|return|>", "<|call|>"}),
    ("<|end|>", {"<|calls|>", "<|flush|>"}),
    ("</s>", {"<|tool_response>"}),
]
#: Contents of the conversation that shows how a template ends a turn: no template has them.
_QUESTION, _ANSWER = "the words of a question", "the words of an answer"


class EndTokenizer(Protocol):
    """The parts of a `Tokenizer` that say what ends an answer. special_ids: text -> id."""

    @property
    def bos_token(self) -> str | None: ...
    @property
    def eos_token(self) -> str | None: ...
    @property
    def eos_token_id(self) -> int | None: ...
    @property
    def special_ids(self) -> Mapping[str, int]: ...


def known_end_ids(tokens: Sequence[str]) -> set[int]:
    """The tokens of a GGUF file's vocabulary that end an answer by their text."""
    known = {text: i for i, text in enumerate(tokens) if text in _ENDS}
    return {i for text, i in known.items() if not _ends_a_part(text, known)}


def _ends_a_part(text: str, vocabulary: Mapping[str, int]) -> bool:
    return any(text == part and others <= vocabulary.keys() for part, others in _ENDS_OF_PARTS)


def template_end_id(template: ChatTemplate, tokenizer: EndTokenizer) -> int | None:
    """The special token with which a chat template ends the assistant's turn; None: none is sure.

    A short conversation is rendered. Where its last answer is followed by one special token and no
    more (white space and the tokenizer's eos do not count), it is that, if it follows an answer
    before a question too. Where nothing follows the last answer, it is the special token that
    follows both question and answer before another turn. So no mark of a role, which differs
    from turn to turn, and no end of a part of an answer is taken for the end of a turn.
    """
    try:
        whole, inner = _render(template)
    except Exception:  # a template may raise anything, and a request will say what
        return None
    special, eos = tokenizer.special_ids, tokenizer.eos_token or ""
    last = whole.rpartition(_ANSWER)[2].strip()
    last = last.removesuffix(eos).rstrip() if eos else last
    after_answer = inner.partition(_ANSWER)[2].lstrip()
    after_question = inner.partition(_QUESTION)[2].lstrip()
    end = last or _first_of(special, after_answer)
    follows_every_turn = after_answer.startswith(end) and (last or after_question.startswith(end))
    if end not in special or not follows_every_turn:
        return None
    begin = inner.removeprefix(tokenizer.bos_token or "").lstrip()
    if end == tokenizer.bos_token or begin.startswith(end) or _ends_a_part(end, special):
        return None
    return special[end]


def _render(template: ChatTemplate) -> tuple[str, str]:
    """A conversation that an answer ends, and the same with a question behind it."""
    question = {"role": "user", "content": _QUESTION}
    turns = [question, {"role": "assistant", "content": _ANSWER}]
    whole, inner = (
        template.messages2prompt(messages, add_generation_prompt=False)
        for messages in (turns, [*turns, question])
    )
    if _ANSWER not in whole or _QUESTION not in inner or _ANSWER not in inner:
        raise ValueError("the template leaves out what was said")
    return whole, inner


def _first_of(special: Iterable[str], text: str) -> str:
    """The special token that a text begins with, the longest of several; "" for none."""
    return max(
        (token for token in special if token and text.startswith(token)), key=len, default=""
    )


def end_token_ids(
    named: Iterable[int], tokenizer: EndTokenizer, template: ChatTemplate, vocab_size: int
) -> list[int]:
    """Every token that ends an answer: those that a model's configuration names, the tokenizer's
    eos, and the template's end of a turn. Ids that the model does not have are left out, in
    ascending order."""
    also = (tokenizer.eos_token_id, template_end_id(template, tokenizer))
    found = {*named, *(i for i in also if i is not None)}
    return sorted(i for i in found if 0 <= i < vocab_size)
