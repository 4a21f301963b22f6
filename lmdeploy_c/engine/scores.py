"""Scores of given texts: the cross-entropy of their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any, Protocol

from ..messages import Interrupted, Response, wrong_type
from .text_engine import TextEngine

if TYPE_CHECKING:
    from .._C import Request


class Array(Protocol):
    """NumPy's, or another library's."""

    def tolist(self) -> Any: ...


#: A text, or its tokens.
TextOrIds = str | Sequence[int] | Array

_FORMS = "a text, a list of token ids, an array of them, or a list of texts or of such lists"


def cross_entropies(engine: TextEngine, inputs: TextOrIds | Sequence[TextOrIds]) -> list[float]:
    """The mean cross-entropy of each input: `Pipeline.get_ppl` describes it."""
    core, found = engine.core, list[float]()
    batch = [_token_ids(engine, item) for item in _items(inputs)]
    requests: list[Request] = []
    try:
        for ids in batch:
            requests.append(core.submit(ids, max_new_tokens=0, return_ppl=True))
        for request in requests:
            found.append(read_ppl(request))
        return found
    except KeyboardInterrupt:
        done = zip(batch, found, strict=False)
        raise Interrupted(
            [Response("", 0, len(ids), index=i, ppl=ppl) for i, (ids, ppl) in enumerate(done)]
        ) from None
    finally:
        for request in requests:
            request.cancel()


def _plain(value: Any) -> Any:
    """An array, NumPy's or another's, as lists."""
    return value.tolist() if hasattr(value, "tolist") else value


def _items(inputs: Any) -> list[Any]:
    """What is to be scored, one by one: a single text or list of ids is one. TypeError."""
    inputs = _plain(inputs)
    if isinstance(inputs, str):
        return [inputs]
    if not isinstance(inputs, (list, tuple)) or not inputs:
        raise wrong_type("get_ppl", _FORMS, inputs)
    return [inputs] if isinstance(_plain(inputs[0]), Integral) else list(inputs)


def _token_ids(engine: TextEngine, item: Any) -> Sequence[int]:
    """Raises TypeError for what is neither a text nor token ids, ValueError for too few of them."""
    item = _plain(item)
    ids = engine.encode(item) if isinstance(item, str) else [_plain(i) for i in _listed(item)]
    if not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
        raise wrong_type("get_ppl", f"{_FORMS}; ids are integers", item)
    if len(ids) < 2:
        raise ValueError(f"get_ppl needs at least 2 tokens, not {len(ids)}")
    return ids


def _listed(item: Any) -> Sequence[Any]:
    if not isinstance(item, (list, tuple)):
        raise wrong_type("get_ppl", _FORMS, item)
    return item


def read_ppl(request: Request) -> float:
    """Waits for a request's cross-entropy. ValueError says why there is none."""
    while True:
        output = request.read()
        if output is None or output.finish_reason is None:
            continue
        if output.ppl is None:
            raise ValueError(output.error_message or "the request was aborted")
        return output.ppl
