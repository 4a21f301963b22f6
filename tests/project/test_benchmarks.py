"""The benchmarks' own parts: the model maker, the plot, and the report."""

import sys
from pathlib import Path
from xml.etree import ElementTree

import common
import gguf
import numpy as np
import peer_process
import plot
import pytest
import quantizer_report as report
import shapes
from conftest import load_model, make_engine, read_all


@pytest.mark.parametrize("name", ["tiny-q4_0", "tiny-q4_1"])
def test_made_models_load_and_give_finite_logits(name: str, tmp_path: Path) -> None:
    path = shapes.model_file(name, tmp_path)
    assert shapes.model_file(name, tmp_path) == path
    engine = make_engine(load_model(path), session_len=128)
    answer = read_all(engine.submit(range(1, 70), max_new_tokens=2, output_logits="all"))
    engine.close()
    assert answer.logits is not None and np.isfinite(answer.logits).all()
    assert 0.1 < answer.logits.std() < 10


def test_made_models_have_the_spread_they_promise(tmp_path: Path) -> None:
    """By the format's own reader; no two rows are alike."""
    for name in ("tiny-q4_0", "tiny-q4_1"):
        for tensor in gguf.GGUFReader(shapes.model_file(name, tmp_path)).tensors:
            if tensor.n_elements > 128:
                weights = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
                spread = weights.shape[1] ** -0.5
                assert abs(weights.mean()) < 0.1 * spread
                assert 0.8 < weights.std() / spread < 1.25
                assert len(np.unique(weights, axis=0)) == len(weights)


def test_work_of_a_token(tmp_path: Path) -> None:
    """Against arithmetic by hand for the tiny shape: tied, 2 layers of 64, ffn 128, kv 32."""
    work = common.work_of(shapes.model_file("tiny-q4_0", tmp_path))
    macs = 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 128)
    assert work.layer_macs == macs
    assert work.head_macs == 512 * 64
    assert work.weight_bytes == macs * 18 // 32 + 512 * 64 * 34 // 32 + 5 * 64 * 4
    assert work.kv_bytes == 2 * 2 * 32 * 2
    assert work.prefill_macs(10) == 10 * macs + 512 * 64


def test_plot_and_csv(tmp_path: Path) -> None:
    """The newest run alone is drawn; an engine without a rate has no bar; words are escaped."""
    base = {"date": "2026-01-01", "machine": "a <b>", "isa": "ref", "threads": "1", "commit": "x",
            "model": "M", "case": "decode", "min": 1.0, "max": 3.0, "unit": "tok/s"}  # fmt: skip
    path = tmp_path / "peers.csv"
    common.append_csv(path, [{**base, "commit": "old", "engine": "gone", "median": 2.0}])
    common.append_csv(
        path,
        [
            {**base, "engine": plot.W4A16, "median": 2.0, "new": "column"},
            {**base, "engine": "absent", "median": "", "min": "", "max": ""},
        ],
    )
    target = tmp_path / "peers.svg"
    plot.draw(path, target)
    root = ElementTree.parse(target).getroot()
    assert len(root.findall("{*}rect")) == 1
    words = {element.text for element in root.findall("{*}text")}
    assert plot.W4A16 in words and not words & {"gone", "absent"}


WORKER = """
import sys
for line in sys.stdin:
    if "die" in line:
        print('{"half', end="", flush=True)
        sys.exit("no room left")
    print('{"error": "not this one"}' if "refuse" in line else '{"tok_s": 5}', flush=True)
"""


def test_a_worker_that_refuses_or_dies_is_a_reason(tmp_path: Path) -> None:
    """Each is a row of the report, at every later question too; none ends the run."""
    worker = tmp_path / "worker.py"
    worker.write_text(WORKER)
    process = peer_process.PeerProcess(Path(sys.executable), str(worker), tmp_path / "log")
    try:
        assert process.ask({"op": "run"}) == {"tok_s": 5}
        with pytest.raises(peer_process.PeerError, match="not this one"):
            process.ask({"op": "refuse"})
        for _ in range(2):
            with pytest.raises(peer_process.PeerError, match=r"exit status 1.*no room left"):
                process.ask({"op": "die"})
    finally:
        process.close()


def quantizer_rows(path: Path, *rows: tuple[str, int, str, float, float]) -> report.Rows:
    """Rows of calibration, group, method, KL and rise; half widths are a tenth of these."""
    common.append_csv(
        path,
        [
            {"model": "m", "calibration": calibration, "bits": 4, "group": group, "method": method,
             "kl": kl, "kl_half_width": kl / 10, "rise": rise, "rise_half_width": rise / 10,
             "same_top": 0.8, "tokens": 9, "cross_entropy": 3.0, "processor_seconds": 1.0}
            for calibration, group, method, kl, rise in rows
        ],
    )  # fmt: skip
    return report.newest(path)


def test_goals_of_the_quantizer(tmp_path: Path) -> None:
    """By hand. Each method is set against those of its own calibration and groups; what needs no
    calibration against all; {scale, min} against groups of any size."""
    rows = quantizer_rows(
        tmp_path / "rows.csv",
        ("none", 64, report.MIN_MAX, 0.4, 0.10),
        ("builtin", 64, report.AWQ, 0.2, 0.06),
        ("builtin", 128, report.AWQ, 0.3, 0.07),
        ("library", 64, report.AWQ, 9.0, 9.0),
        ("builtin", 64, report.BEST, 0.3, 0.3),
        ("builtin", 64, report.BEST, 0.1, 0.021),  # the newest row counts
        ("builtin", 32, report.MINIMA, 0.1, 0.01),
    )
    found = {
        (v.goal.method, v.goal.other, v.goal.measure, v.group): (round(v.ratio, 3), v.word)
        for v in report.verdicts(rows)
    }
    assert found == {
        (report.BEST, report.MIN_MAX, "kl", 64): (0.25, "held"),
        (report.BEST, report.AWQ, "kl", 64): (0.5, "held, within chance"),
        (report.BEST, report.MIN_MAX, "rise", 64): (0.21, "missed, within chance"),
        (report.BEST, report.AWQ, "rise", 64): (0.35, "missed, within chance"),
        (report.MINIMA, report.AWQ, "kl", 64): (0.5, "missed"),
        (report.MINIMA, report.AWQ, "kl", 128): (0.333, "missed, within chance"),
    }
    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    for _ in range(2):
        report.write_tables(rows, page)
    text = page.read_text()
    assert text.startswith(f"before\n{report.BEGIN}\n| of") and text.endswith("\nafter\n")
    assert "old" not in text and text.count("| 0.25 | held") == 1
