"""benchmarks/serving.py: its lengths, arrivals, percentiles, loops and report; and a small run."""

import csv
import os
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import plot
import pytest
import serving
import serving_load
import serving_plot
import serving_report
import shapes
from llama_server import Server

sys.path.insert(0, str(serving_load.LENGTHS.parent / "workers"))

import drive
import serving_llama


def test_committed_lengths_are_those_of_the_documented_function() -> None:
    pairs = serving_load.read_lengths()
    assert pairs == serving_load.make_lengths()
    prompt, output = np.array(pairs).T
    assert min(prompt.min(), output.min()) >= 4 and (prompt + output).max() <= 1024
    assert prompt.mean() == pytest.approx(229.7, rel=0.05)  # ShareGPT's
    assert output.mean() == pytest.approx(203.1, rel=0.05)


@pytest.mark.parametrize("n", [1, 7, 48, 256, 300])
def test_a_sample_is_like_the_whole(n: int) -> None:
    pairs = serving_load.read_lengths()
    chosen = serving_load.sample(pairs, n, seed=3)
    assert len(chosen) == n and {*chosen} <= {*pairs}
    assert chosen == serving_load.sample(pairs, n, seed=3)
    if n >= 48:
        assert np.sum(chosen, 1).mean() == pytest.approx(np.sum(pairs, 1).mean(), rel=0.05)


def test_arrivals_are_poisson() -> None:
    """Gaps with the mean and the deviation of an exponential distribution."""
    gaps = np.diff([0.0, *serving_load.poisson_arrivals(4000, 2.5)])
    assert gaps.min() > 0
    assert gaps.mean() == pytest.approx(0.4, rel=0.05)
    assert gaps.std() == pytest.approx(0.4, rel=0.07)


def test_percentiles() -> None:
    values = [float(x) for x in np.random.default_rng(0).permutation(101)]
    for q in (0, 1, 50, 90, 99, 100):
        assert serving_load.percentile(values, q) == np.percentile(values, q, method="inverted_cdf")
    assert np.isnan(serving_load.percentile([], 50))


class Pipe:
    """A stream that gives its tokens at once, one for each read."""

    running = 0
    most = 0

    def __init__(self, n: int) -> None:
        self.left = n
        self.fd, self.other = os.pipe()
        os.write(self.other, b"x")
        Pipe.running += 1
        Pipe.most = max(Pipe.most, Pipe.running)

    def fileno(self) -> int:
        return self.fd

    def read(self) -> tuple[int, bool]:
        self.left -= 1
        if self.left == 0:
            self.cancel()
        return 1, self.left == 0

    def cancel(self) -> None:
        os.close(self.fd)
        os.close(self.other)
        Pipe.running -= 1


def jobs(n: int) -> list[drive.Job]:
    return [drive.Job(1 + i % 5, 10, 1 + i % 5) for i in range(n)]


def test_a_closed_loop_keeps_its_users_busy_and_no_more() -> None:
    Pipe.most = 0
    load = drive.Load(Pipe)
    drive.closed_loop(load, jobs(23), 4)
    load.close()
    assert Pipe.most == 4 and Pipe.running == 0
    assert [r.job for r in load.records] == jobs(23)
    assert all(r.n_tokens == r.job.n_output for r in load.records)
    found = drive.summary(load.records)
    assert found["n_output"] == sum(job.n_output for job in jobs(23))
    assert len(found["gaps"]) == found["n_output"] - 23 and len(found["ttft"]) == 23


def test_an_open_loop_starts_nobody_early_and_counts_from_the_arrival() -> None:
    load = drive.Load(Pipe)
    arrivals = [0.0, 0.02, 0.02, 0.1]
    drive.open_loop(load, jobs(4), arrivals)
    load.close()
    starts = [r.start - load.records[0].start for r in load.records]
    assert starts == pytest.approx(arrivals, abs=1e-6)
    assert all(r.times[0] >= r.start for r in load.records)


def test_an_answer_that_ends_early_is_an_error() -> None:
    load = drive.Load(Pipe)
    with pytest.raises(RuntimeError, match="2 of 3 tokens"):
        drive.closed_loop(load, [drive.Job(2, 10, 3)], 1)
    load.close()


def test_a_delivery_of_several_tokens_counts_as_so_many_gaps() -> None:
    record = drive.Record(jobs(1)[0], 0.0, times=[1.0, 2.0, 5.0], counts=[1, 1, 3])
    assert record.gaps() == [1.0, 1.0, 1.0, 1.0]
    assert record.pauses() == [(1.0, 2.0), (2.0, 5.0)]


def test_a_turn_beside_busy_neighbours_is_repeated_and_the_quietest_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shares = iter([0.5, 0.2, 0.3, 0.05, 0.9])

    class Some:
        def __init__(self, pids: list[int]) -> None:
            pass

        def share(self) -> float:
            return next(shares)

    class Process:
        n = 0

        def ask(self, request: dict[str, int]) -> dict[str, int]:
            Process.n += 1
            return {"turn": Process.n, **request}

    monkeypatch.setattr(serving, "Neighbours", Some)
    engine = serving.Engine("e", Process(), "", "", [])  # type: ignore[arg-type]
    assert engine.ask({"a": 1}) == ({"turn": 2, "a": 1, "cpu_s": 0}, 0.2)
    assert engine.ask({"a": 2}) == ({"turn": 4, "a": 2, "cpu_s": 0}, 0.05)


def test_prompts_have_nothing_in_common_but_what_they_share() -> None:
    class Ids(drive.Target):
        vocab_size = 1000

        def encode(self, ids: list[int], n_output: int) -> list[int]:
            return ids

    a, b = (Ids().job(50, 1, seed, n_shared=8) for seed in (1, 2))
    assert a.payload[:8] == b.payload[:8] and a.payload[8:] != b.payload[8:]
    assert a.n_prompt == 58 and {*a.payload} <= {*range(3, 1000)}


class Wire:
    """A socket that gives the bytes of a response, cut anywhere."""

    def __init__(self, data: bytes, size: int) -> None:
        self.parts = [data[i : i + size] for i in range(0, len(data), size)]

    def recv(self, n: int) -> bytes:
        return self.parts.pop(0) if self.parts else b""

    def close(self) -> None:
        self.parts.clear()


def read_wire(data: bytes, size: int) -> int:
    answer = serving_llama.Answer.__new__(serving_llama.Answer)
    answer.socket = Wire(data, size)  # type: ignore[assignment]
    answer.rest, answer.n_tokens = b"", 0
    total, ended = 0, False
    while not ended:
        n, ended = answer.read()
        total += n
    return total


EVENTS = b"HTTP/1.1 200 OK\r\n\r\n" + b"".join(
    b'data: {"content":"\\"stop\\":true","stop":false,"tokens_predicted":%d}\n\n' % n
    for n in (1, 2, 4)
)


@pytest.mark.parametrize("size", [1, 7, 64, 10_000])
def test_events_of_llama_server(size: int) -> None:
    end = b'data: {"stop":true,"tokens_predicted":5}\n\n'
    assert read_wire(EVENTS + end, size) == 5
    with pytest.raises(RuntimeError, match="hung up"):
        read_wire(EVENTS, size)
    with pytest.raises(RuntimeError, match="Bad"):
        read_wire(b"HTTP/1.1 400 Bad Request\r\n\r\n", 100)


def test_report(capsys: pytest.CaptureFixture[str]) -> None:
    def turn(seconds: float) -> dict[str, object]:
        return {"seconds": seconds, "n_requests": 2, "n_prompt": 100, "n_output": 300,
                "ttft": [0.1, 0.3], "gaps": [0.01] * 99 + [0.5],
                "client_s": 0.1, "cpu_s": 0.6}  # fmt: skip

    ours = serving.Result("4 users", serving.W4A16, turns=[turn(1.0), turn(3.0), turn(2.0)])
    theirs = serving.Result("4 users", serving.LLAMA, turns=[turn(6.0)])
    absent = serving.Result("4 users", serving.FAST, reason="no room")
    serving_report.table("T", "users", [theirs, absent, ours], serving.ENGINES)
    rows = capsys.readouterr().out.splitlines()[5:8]
    assert rows[0].startswith("| 4 users | lmdeploy_c W4A16 | 150 [100-300] |  |  | 200 | 1.00 |")
    assert "| 100 / 300 / 300 | 10.0 / 10.0 / 10.0 |" in rows[0]
    assert rows[1].endswith("| no room |") and "| 3.00 x |  |" in rows[2]
    assert {row.count("|") for row in rows} == {14}
    assert ours.row({})["itl_p99_ms"] == pytest.approx(10) and "requests_s" not in absent.row({})


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[serving.Result]]:
    folder = tmp_path_factory.mktemp("serving")
    table, picture = folder / "serving.csv", folder / "serving.svg"
    results = serving.main([
        "--quick", "--users", "1,3", "--requests", "6", "--seconds", "0.2",
        "--engines", serving.W4A16,
        "--long", "200", "--decodes", "2", "--csv", str(table), "--plot", str(picture),
        "--model", str(shapes.model_file("tiny-q4_0", folder)),
    ])  # fmt: skip
    return table, picture, results


def test_a_small_run_answers_every_request(
    small_run: tuple[Path, Path, list[serving.Result]],
) -> None:
    _, _, results = small_run
    assert [r.reason for r in results] == [""] * len(results)
    closed = [r for r in results if "user" in r.case]
    pairs = serving_load.sample(serving_load.read_lengths(), 6)
    assert [r.case for r in closed] == ["1 user", "3 users"]
    for result in closed:
        (turn,) = result.turns
        assert turn["n_requests"] == len(turn["ttft"]) == 6
        assert (turn["n_prompt"], turn["n_output"]) == tuple(np.sum(pairs, 0))
        # A model this small is faster than its reader: a first delivery has several tokens.
        assert 0 < len(turn["gaps"]) <= turn["n_output"] - 6
    smooth = results[-1].turns[0]
    assert smooth["quiet"] and len(smooth["disturbed"]) >= 2 and len(smooth["ttft"]) == 1


def test_a_small_run_is_kept_and_drawn(
    small_run: tuple[Path, Path, list[serving.Result]], tmp_path: Path
) -> None:
    table, picture, results = small_run
    with table.open(newline="") as file:
        assert [row["case"] for row in csv.DictReader(file)] == [r.case for r in results]
    assert len(plot.newest_run(table)) == len(results)
    root = ElementTree.parse(picture).getroot()
    assert len(root.findall("{*}rect")) == len(serving_plot.PANELS) * 2


def test_an_engine_that_cannot_start_is_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "llama_server", lambda: Server(None, reason="no cmake"))
    results = serving.main([
        "--quick", "--smooth", "--engines", serving.LLAMA, "--csv", str(tmp_path / "a.csv"),
        "--plot", str(tmp_path / "a.svg"), "--model", str(shapes.model_file("tiny-q4_0", tmp_path)),
    ])  # fmt: skip
    assert [r.reason for r in results] == ["no cmake"]
