"""Many users at once: throughput and latencies of lmdeploy_c beside llama.cpp's server.

    python benchmarks/serving.py [--closed] [--open] [--smooth] [--quick] [--rounds N]

Closed loop: N users, each of whom sends a request when the last one ended. Open loop: Poisson
arrivals at shares of a measured capacity. Smooth: tokens of running decodes while a long prompt
arrives. Without one of the three: all. Lengths come from benchmarks/serving_lengths.csv; no two
prompts have anything in common unless --shared says so. Engines take the same requests in turn, a
round beginning with another one each time. Tables in Markdown go to the terminal, rows to
benchmarks/serving.csv and the picture to docs/serving.svg.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import serving_plot
import serving_report
from common import BUILD, ROOT, Neighbours, append_csv, cpu_seconds, machine
from llama_server import llama_server
from peer_process import PeerError, PeerProcess
from peer_report import FAST, W4A16
from serving_load import LONGEST, poisson_arrivals, read_lengths, sample
from serving_report import Result

from lmdeploy_c.files.checkpoint import resolve_model

LLAMA = "llama.cpp"
ENGINES = [W4A16, FAST, LLAMA]
SHARES = (0.5, 0.8, 0.95)  # of a capacity, in the open loop
OPEN_S = 30.0  # that its arrivals take
QUIET, TRIES, RETRY_S = 0.1, 3, 30.0  # a turn beside busier neighbours is repeated, if it is short
SEEDS = 1_000_000  # of the prompts of a round


@dataclass
class Settings:
    """What the options say. threads: of every engine. n_requests: of a closed loop; None: twice
    the users and 16."""

    path: Path
    threads: int
    rounds: int
    n_requests: int | None
    n_shared: int
    n_long: int
    n_decodes: int
    open_s: float
    engines: list[str]
    tries: int

    def requests_of(self, users: int) -> int:
        return self.n_requests or 2 * users + 16


@dataclass
class Engine:
    name: str
    process: PeerProcess
    version: str
    note: str
    pids: list[int]
    tries: int = TRIES

    def cpu_seconds(self) -> float:
        return sum(cpu_seconds(pid) for pid in self.pids)

    def ask(self, request: dict[str, Any]) -> tuple[dict[str, Any], float]:
        """The answer, and the share of the machine that other processes took meanwhile. Beside busy
        ones a short turn is repeated, and the quietest counts: chosen by the others, never by the
        speed."""
        tries: list[tuple[float, dict[str, Any]]] = []
        for _ in range(self.tries):
            begin, neighbours = time.perf_counter(), Neighbours(self.pids)
            cpu = self.cpu_seconds()
            answer = self.process.ask(dict(request))
            answer["cpu_s"] = self.cpu_seconds() - cpu
            tries.append((neighbours.share(), answer))
            if tries[-1][0] < QUIET or time.perf_counter() - begin > RETRY_S:
                break
        others, answer = min(tries, key=lambda one: one[0])
        return answer, others


def start(name: str, settings: Settings, slots: int, context: int, flash: str) -> Engine:
    """PeerError says why not."""
    request = {"op": "load", "path": str(settings.path), "threads": settings.threads,
               "slots": slots, "context": context}  # fmt: skip
    worker, note, version = "serving_ours.py", "", ""
    if name == LLAMA:
        server = llama_server()
        if server.binary is None:
            raise PeerError(server.reason)
        worker, version = "serving_llama.py", f"llama-cpp-python {server.version}"
        request |= {"binary": str(server.binary), "flash": flash}
        note = f"flash attention {flash}"
    else:
        request["fast"] = name == FAST
    log = BUILD / "peers" / f"serving {name}.stderr"
    process = PeerProcess(Path(sys.executable), worker, log)
    try:
        loaded = process.ask(request)
    except BaseException:
        process.close()
        raise
    return Engine(name, process, version or loaded["version"], note, [process.pid, *loaded["pids"]])


@contextmanager
def started(
    case: str, names: list[str], settings: Settings, slots: int, context: int, flash: str
) -> Iterator[tuple[list[Engine], list[Result]]]:
    """The engines that run, and a result with the reason for each that does not."""
    engines, failed = [], []
    try:
        for name in names:
            try:
                engines.append(start(name, settings, slots, context, flash))
            except PeerError as error:
                failed.append(Result(case, name, reason=str(error)))
        yield engines, failed
    finally:
        for engine in engines:
            engine.process.close()


def measure(
    case: str,
    engines: list[Engine],
    rounds: int,
    request: Callable[[int], dict[str, Any]],
) -> list[Result]:
    """Every engine answers request(round) once a round."""
    results = {e.name: Result(case, e.name, e.version, note=e.note) for e in engines}
    for i in range(rounds):
        first = i % max(len(engines), 1)
        for engine in engines[first:] + engines[:first]:
            result = results[engine.name]
            if result.reason:
                continue
            try:
                turn, others = engine.ask(request(i))
            except PeerError as error:
                result.reason, result.turns = str(error), []
                continue
            result.turns.append(turn)
            result.others = max(result.others, others)
    return list(results.values())


def closed_loop(users: int, names: list[str], settings: Settings, flash: str) -> list[Result]:
    case = f"{users} {'users' if users > 1 else 'user'}"
    pairs = sample(read_lengths(), settings.requests_of(users))

    def request(i: int) -> dict[str, Any]:
        return {"op": "run", "pairs": pairs, "seed": i * SEEDS, "users": users,
                "n_shared": settings.n_shared}  # fmt: skip

    context = LONGEST + settings.n_shared
    with started(case, names, settings, users, context, flash) as (engines, failed):
        return measure(case, engines, settings.rounds, request) + failed


def open_loop(
    case: str, rate: float, slots: int, names: list[str], settings: Settings, flash: str
) -> list[Result]:
    n = max(8, round(rate * settings.open_s))
    pairs = sample(read_lengths(), n, seed=1)

    def request(i: int) -> dict[str, Any]:
        return {"op": "run", "pairs": pairs, "seed": i * SEEDS, "n_shared": settings.n_shared,
                "arrivals": poisson_arrivals(n, rate, seed=i)}  # fmt: skip

    context = LONGEST + settings.n_shared
    with started(case, names, settings, slots, context, flash) as (engines, failed):
        results = measure(case, engines, settings.rounds, request)
    for result in results:
        result.note = f"{rate:.3g} requests/s arrive"
    return results + failed


def open_loops(closed: list[Result], slots: int, settings: Settings, flash: str) -> list[Result]:
    """At shares of what llama.cpp can do, the same arrivals for both; then of what ours can."""
    results: list[Result] = []
    for reference in (LLAMA, W4A16):
        capacity = max((r.rate("n_requests") for r in closed if r.engine == reference), default=0.0)
        names = [name for name in (W4A16, LLAMA) if name in settings.engines]
        if reference == W4A16:
            names = [W4A16]
        for share in SHARES if capacity else ():
            case = f"{share:.0%} of {'its own' if reference == W4A16 else LLAMA}"
            results += open_loop(case, share * capacity, slots, names, settings, flash)
            serving_report.progress(results, case)
    return results


def smoothness(settings: Settings, flash: str) -> list[Result]:
    case = f"{settings.n_decodes} decodes, {settings.n_long} tokens arrive"

    def request(i: int) -> dict[str, Any]:
        return {"op": "smooth", "n_decodes": settings.n_decodes, "n_long": settings.n_long,
                "seed": i * SEEDS}  # fmt: skip

    slots, context = settings.n_decodes + 1, max(settings.n_long + 64, 1280)
    with started(case, settings.engines, settings, slots, context, flash) as (engines, failed):
        return measure(case, engines, settings.rounds, request) + failed


def better_flash(settings: Settings) -> str:
    """llama.cpp with flash attention or without: what gives more tokens to four users."""
    rates = {}
    for flash in ("on", "off"):
        result = closed_loop(4, [LLAMA], settings, flash)[0]
        if result.reason:
            return "on"  # the reason comes again where it is wanted
        rates[flash] = result.rate("n_output")
    return max(rates, key=rates.__getitem__)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    for mode in ("closed", "open", "smooth"):
        parser.add_argument(f"--{mode}", action="store_true", help="this one alone")
    parser.add_argument("--quick", action="store_true", help="1 and 4 users, one short round")
    parser.add_argument("--users", help="default: 1,4,16,64")
    parser.add_argument("--rounds", type=int, help="default: 2")
    parser.add_argument("--tries", type=int, default=TRIES, help="of a turn beside busy processes")
    parser.add_argument("--requests", type=int, help="of a closed loop; default: 2 x users + 16")
    parser.add_argument("--seconds", type=float, help="that arrivals of an open loop take")
    parser.add_argument("--shared", type=int, default=0, help="tokens that prompts begin with")
    parser.add_argument("--long", type=int, default=4096, help="tokens of the long prompt")
    parser.add_argument("--decodes", type=int, default=8, help="that it disturbs")
    parser.add_argument("--flash", choices=("on", "off"), help="llama.cpp's; default: the better")
    parser.add_argument("--engines", default=",".join(ENGINES), help="default: %(default)s")
    parser.add_argument("--model", help="a GGUF file or a model's folder; default: SmolLM2")
    parser.add_argument("--csv", type=Path, default=ROOT / "benchmarks" / "serving.csv")
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "serving.svg")
    options = parser.parse_args(arguments)
    options.engines = options.engines.split(",")
    if unknown := {*options.engines} - {*ENGINES}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(ENGINES)}")
    options.users = options.users or ("1,4" if options.quick else "1,4,16,64")
    try:
        options.users = [int(users) for users in options.users.split(",")]
    except ValueError:
        parser.error(f"--users: numbers with commas between, not {options.users!r}")
    if min(options.users) < 1:
        parser.error("--users: numbers above 0")
    return options


def main(arguments: Sequence[str] | None = None) -> list[Result]:
    options = parse(arguments)
    base = machine()
    path = resolve_model(options.model and Path(options.model))
    settings = Settings(
        path=path, threads=int(base["threads"]), rounds=options.rounds or 2 - options.quick,
        n_requests=options.requests or (8 if options.quick else None), n_shared=options.shared,
        n_long=options.long, n_decodes=options.decodes,
        open_s=options.seconds or (OPEN_S / 4 if options.quick else OPEN_S),
        engines=options.engines, tries=options.tries,
    )  # fmt: skip
    every = not (options.closed or options.open or options.smooth)
    base["model"] = path.stem
    serving_report.header(base, settings.rounds)
    flash = options.flash or "on"
    if LLAMA in settings.engines and not (options.flash or options.quick):
        flash = better_flash(settings)
    results: list[Result] = []
    if every or options.closed or options.open:
        for users in options.users:
            results += closed_loop(users, settings.engines, settings, flash)
            serving_report.progress(results, results[-1].case)
        serving_report.table("Closed loop", "users", results, ENGINES)
    if every or options.open:
        opened = open_loops(results, max(options.users), settings, flash)
        serving_report.table("Open loop", "arrivals", opened, ENGINES)
        results += opened
    if every or options.smooth:
        smooth = smoothness(settings, flash)
        serving_report.smooth_table(smooth)
        results += smooth
    append_csv(options.csv, [result.row(base) for result in results])
    serving_plot.draw(options.csv, options.plot)
    return results


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # and no engine is left behind
    main()
