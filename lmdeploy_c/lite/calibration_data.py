"""Calibration data to windows of token ids: a data set's, or what the model itself says."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence

from ..engine.loading import make_tokenizer
from ..messages import GenerationConfig, TurbomindEngineConfig
from ..pipeline import pipeline
from ..text.chat_template import ChatTemplateConfig
from ..text.conversation import join_parts
from ..tokenizer import Tokenizer
from .documents import Dataset, Document, documents
from .source import Source

logger = logging.getLogger("lmdeploy_c")

#: What a model's own samples begin with: prose, lists and code, in a few languages.
STARTS = (
    "The", "In", "A", "def ", "What", "How", "1.", "- ", "I", "import ", "Once", "#", "To", "We",
    "class ", "It", "When", "<", "If", "Le", "Der", "El", "On", "x = ",
)  # fmt: skip
ROOM = 16  # tokens of a window that its beginning may take
TOKENS_PER_COLUMN = 4  # of the widest linear: see `enough`
FEWEST = 24  # windows, where a narrow model would do with fewer


def windows(
    source: Source,
    dataset: Dataset,
    *,
    samples: int | None = None,
    seqlen: int = 512,
    num_threads: int | None = None,
) -> list[list[int]]:
    """Windows of token ids of a data set, the same every time.

    dataset: "self", the model's own samples, or what `documents` takes. samples: windows, at most;
    None: as many as are `enough` for the model's widest linear, and 24 at least. seqlen: tokens of
    a window, lowered to the model's context.

    Raises what `documents` raises, and ValueError for less than a sample or a token.
    """
    if seqlen < 1:
        raise ValueError(f"calib_seqlen must be at least 1, not {seqlen}")
    if samples is not None and samples < 1:
        raise ValueError(f"calib_samples must be at least 1, not {samples}")
    seqlen = min(seqlen, source.checkpoint.config["max_position"])
    if samples is None:
        widest = max((source.tensors[n].shape[-1] for n in source.linears()), default=1)
        samples = max(math.ceil(TOKENS_PER_COLUMN * widest / seqlen), FEWEST)
    if isinstance(dataset, str) and dataset == "self":
        return own_windows(source, seqlen, samples, num_threads)
    return joined_windows(make_tokenizer(source.checkpoint), documents(dataset), seqlen, samples)


# ---- a data set ----


def joined_windows(
    tokenizer: Tokenizer, found: Sequence[Document], seqlen: int, samples: int
) -> list[list[int]]:
    """At most `samples` windows, spread over the documents.

    The documents are joined into one row of tokens, with the end token behind each text, and that
    row is cut, so that short ones fill windows together and none is left out. (AWQ's own code joins
    them with nothing in between, and leaves out those of over 512 tokens.) What the tokenizer puts
    before a text, such as a bos, begins every window. A last window that is not full is left out,
    unless it is the only one.
    """
    ids = [i for part in _token_ids(tokenizer, found) for i in part]
    before = list(tokenizer.before_text)
    room = max(seqlen - len(before), 1)
    cut = [ids[i : i + room] for i in range(0, len(ids), room)]
    cut = [part for part in cut if len(part) == room] or [ids]
    step = max(len(cut) / samples, 1.0)
    chosen = [cut[int(i * step)] for i in range(min(samples, len(cut)))]
    return [part if part[: len(before)] == before else [*before, *part] for part in chosen]


def _token_ids(tokenizer: Tokenizer, found: Sequence[Document]) -> Iterator[list[int]]:
    """Each document's tokens. A conversation is the text that the model's chat template makes of
    it. One that the template refuses, as many refuse a system's message, and every one where there
    is no template, is the text of its messages."""
    from ..text.jinja_sandbox import ChatTemplateError

    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    has_template = any(map(str.strip, tokenizer.chat_templates.values()))
    template = ChatTemplateConfig().template(tokenizer) if has_template else None
    refused: list[ChatTemplateError] = []
    for document in found:
        said = None
        if template is not None and not isinstance(document, str):
            try:
                said = template.messages2prompt(document, add_generation_prompt=False)
            except ChatTemplateError as error:
                refused.append(error)
        if said is not None:
            yield tokenizer.encode(said, add_special_tokens=False)
        else:
            yield [*tokenizer.encode(_plain(document), add_special_tokens=False), *end]
    if refused:
        logger.warning(
            "the chat template refuses %d of the conversations to calibrate by, which are read as "
            "plain texts: %s", len(refused), refused[0],
        )  # fmt: skip


def _plain(document: Document) -> str:
    if isinstance(document, str):
        return document
    return "\n\n".join(join_parts(message["content"]) for message in document)


def enough(n_tokens: int, widest_columns: int) -> bool:
    """Whether the second moments of a linear's columns (a Hessian, [widest_columns,
    widest_columns]) can be told of so many tokens; where they cannot, a warning says how many do.

    Of T independent tokens whose K columns have covariance 1, the eigenvalues of the measured
    covariance reach from (1 - sqrt(K / T))^2 to (1 + sqrt(K / T))^2 (Marchenko and Pastur, 1967):
    from 0 to 4 at T = K, from 0.25 to 2.25 at T = 4 K, which is asked for. The mean squares of
    columns alone need no more tokens for more columns.
    """
    wanted = TOKENS_PER_COLUMN * widest_columns
    if n_tokens < wanted:
        logger.warning(
            "%d calibration tokens are few for a linear of %d columns: %d would do. More "
            "calib_samples, a longer calib_seqlen or a larger calib_dataset has them.",
            n_tokens, widest_columns, wanted,
        )  # fmt: skip
    return n_tokens >= wanted


# ---- the model itself ----


def own_windows(
    source: Source, seqlen: int, samples: int, num_threads: int | None
) -> list[list[int]]:
    """What the model itself says: samples of its whole distribution, the same every time."""
    config = TurbomindEngineConfig(
        session_len=seqlen, max_batch_size=min(samples, 32), num_threads=num_threads
    )
    starts = [STARTS[i % len(STARTS)] for i in range(samples)]
    settings = [
        GenerationConfig(max_new_tokens=max(seqlen - ROOM, 1), do_sample=True, temperature=1.0,
                         top_p=1.0, top_k=0, random_seed=i, ignore_eos=True)
        for i in range(samples)
    ]  # fmt: skip
    with pipeline(source.path, config) as pipe:
        answers = pipe(starts, gen_config=settings, do_preprocess=False)
        for answer in answers:
            answer.raise_for_error()
        return [
            [*pipe.tokenizer.encode(start), *answer.token_ids]
            for start, answer in zip(starts, answers, strict=True)
        ]
