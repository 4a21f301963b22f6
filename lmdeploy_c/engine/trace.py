"""A trace of the engine in Chrome's trace format, for chrome://tracing and ui.perfetto.dev."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .._C import Engine

#: Kinds of events of a request, by the core's names, in the order in which a request passes them.
SUBMITTED, STARTED, FIRST_TOKEN, ENDED = "submitted", "started", "first_token", "ended"
#: The part of a request's life that begins with an event of a kind.
_PHASES = {SUBMITTED: "queue", STARTED: "prefill", FIRST_TOKEN: "decode"}
_PID, _TID = 1, 1

Event = dict[str, Any]
#: Nanoseconds of the clock to microseconds of the trace.
Clock = Callable[[int], float]


def _rows(columns: Mapping[str, Any]) -> Iterator[dict[str, int]]:
    names = list(columns)
    for values in zip(*(columns[name].tolist() for name in names), strict=True):
        yield dict(zip(names, values, strict=True))


def _step_events(step: Mapping[str, int], us: Clock) -> Iterator[Event]:
    """A step as a slice in the engine's row, and counters of blocks and requests after it."""
    kinds = {(True, True): "mixed step", (True, False): "prefill step"}
    name = kinds.get((step["n_prefilled"] > 0, step["n_decoded"] > 0), "decode step")
    start, end = us(step["start_ns"]), us(step["end_ns"])
    here = {"pid": _PID, "tid": _TID}
    args = {k: step[k] for k in ("n_seqs", "n_prefilled", "n_decoded", "budget", "n_preempted")}
    yield {"name": name, "ph": "X", "ts": start, "dur": round(end - start, 3), **here, "args": args}
    blocks = {state: step[f"n_{state}_blocks"] for state in ("active", "cached", "free")}
    requests = {"running": step["n_running"], "waiting": step["n_waiting"]}
    yield {"name": "blocks", "ph": "C", "ts": start, **here, "args": blocks}
    yield {"name": "requests", "ph": "C", "ts": start, **here, "args": requests}


def _request_events(
    request_id: int, passed: Mapping[str, Mapping[str, int]], end: float, us: Clock
) -> Iterator[Event]:
    """A request as one track: its whole life, and inside that queue, prefill and decode."""
    from .. import _C

    where = {"cat": "request", "id": str(request_id), "pid": _PID, "tid": _TID}
    name = f"request {request_id}"
    ended = passed.get(ENDED)
    last = us(ended["at_ns"]) if ended else end
    kinds = [kind for kind in _PHASES if kind in passed]
    starts = [us(passed[kind]["at_ns"]) for kind in kinds]
    first = min([last, *starts])
    args: dict[str, Any] = {}
    if SUBMITTED in passed:
        args["prompt_tokens"] = passed[SUBMITTED]["n_tokens"]
    if STARTED in passed:
        args["cached_tokens"] = passed[STARTED]["n_tokens"]
    yield {"name": name, "ph": "b", "ts": first, **where, "args": args}
    for i, kind in enumerate(kinds):
        stop = starts[i + 1] if i + 1 < len(starts) else last
        yield {"name": _PHASES[kind], "ph": "b", "ts": starts[i], **where}
        yield {"name": _PHASES[kind], "ph": "e", "ts": stop, **where}
    outcome: dict[str, Any] = {"finish_reason": "none yet"}
    if ended:
        outcome = {
            "finish_reason": _C.FINISH_REASONS[ended["finish_reason"]],
            "generated_tokens": ended["n_tokens"],
        }
    yield {"name": name, "ph": "e", "ts": last, **where, "args": outcome}


def chrome_trace(trace: Mapping[str, Any]) -> dict[str, Any]:
    """The result of `Engine.trace_stop` as the object that a trace file holds.

    Times are microseconds since the trace's start. A request that was submitted before begins at 0;
    one that still runs ends with the trace. One row has the engine's steps, counters show blocks
    and requests, and each request has an asynchronous track of its own.
    """
    from .. import _C

    start_ns: int = trace["start_ns"]

    def us(at_ns: int) -> float:
        return max(0, at_ns - start_ns) / 1e3

    events: list[Event] = []
    for step in _rows(trace["steps"]):
        events += _step_events(step, us)
    requests: dict[int, dict[str, dict[str, int]]] = {}
    for event in _rows(trace["events"]):
        kind = _C.TRACE_KINDS[event["kind"]]
        requests.setdefault(event["request_id"], {})[kind] = event
    for request_id, passed in requests.items():
        events += _request_events(request_id, passed, us(trace["end_ns"]), us)
    events.sort(key=lambda event: event["ts"])  # stable: nested events stay nested
    names = [("process_name", "lmdeploy_c"), ("thread_name", "engine steps")]
    meta = [
        {"name": kind, "ph": "M", "pid": _PID, "tid": _TID, "args": {"name": name}}
        for kind, name in names
    ]
    lost = {key: trace[key] for key in ("n_lost_steps", "n_lost_events")}
    return {"traceEvents": meta + events, "displayTimeUnit": "ms", "otherData": lost}


@contextlib.contextmanager
def recording(engine: Engine, path: str | Path, max_steps: int) -> Iterator[None]:
    """Traces the engine while the context lasts, and writes the file at its end. A forked child
    that leaves the context writes nothing: engine and file are its parent's."""
    pid = os.getpid()
    with open(path, "w", encoding="utf-8") as file:  # first, so that a wrong path fails at once
        engine.trace_start(max_steps)
        try:
            yield
        finally:
            if os.getpid() == pid:
                json.dump(chrome_trace(engine.trace_stop()), file, separators=(",", ":"))
