"""The report of `quantize`: its numbers against the files and sums in NumPy; kept, shown, saved."""

from __future__ import annotations

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import GOLDEN

from lmdeploy_c import _C
from lmdeploy_c.cli import main
from lmdeploy_c.lite import Report, divergence, held_out, quantize
from lmdeploy_c.lite.report_text import percent
from lmdeploy_c.lite.report_values import MAX_CHANNELS, OUTLIER, channels

GGUF = GOLDEN / "gguf" / "llama-float.gguf"
TEXT = "the quick brown fox jumps over the lazy dog, and so on; " * 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Path:
    path: Path = tmp_path_factory.mktemp("report")
    (path / "text").write_text(TEXT)
    return path


@pytest.fixture(scope="module")
def report(folder: Path) -> Report:
    return quantize(GGUF, folder / "out", w_group_size=32, calib_dataset=folder / "text",
                    calib_seqlen=64)  # fmt: skip


# ---- what linears read ----


@pytest.mark.parametrize("gram", [True, False])
def test_first_tokens_carry_a_part_of_the_squares(gram: bool) -> None:
    rng, quantizer, sums = np.random.default_rng(5), _C.Quantizer(2), _C.InputSums(40, gram=gram)
    assert sums.first_token_mass == 0
    texts = [rng.normal(size=(n, 40)).astype(np.float32) for n in (7, 1, 30)]
    texts[0][0] *= 50
    for text in texts:
        quantizer.add_inputs(sums, text)
    first = sum(float((text[0].astype(float) ** 2).sum()) for text in texts)
    total = sum(float((text.astype(float) ** 2).sum()) for text in texts)
    assert sums.first_token_mass == pytest.approx(first / total, rel=1e-6)


def test_columns_that_stand_out() -> None:
    """One is large now and then, one always; the median column is what they are compared with."""
    rows = np.random.default_rng(6).normal(size=(500, 64)).astype(np.float32)
    rows[3, 11] = 1000
    rows[:, 50] *= 20
    sums = _C.InputSums(64, gram=False)
    _C.Quantizer(1).add_inputs(sums, rows)
    n, found = channels(sums)
    assert n == 2 and [channel.column for channel in found] == [11, 50]
    size = np.abs(rows).max(0)
    assert found[0].largest == pytest.approx(size[11] / np.median(size), rel=1e-5)
    rms = np.sqrt((rows.astype(float) ** 2).mean(0))
    assert found[1].rms == pytest.approx(rms[50] / np.median(rms), rel=1e-5)
    assert all(max(channel.largest, channel.rms) >= OUTLIER for channel in found)
    rows[:, :20] *= 100
    many = _C.InputSums(64, gram=False)
    _C.Quantizer(1).add_inputs(many, rows)
    n, found = channels(many)
    assert n == 21 and len(found) == MAX_CHANNELS
    assert channels(_C.InputSums(8, gram=False)) == (0, ())


# ---- numbers ----


def test_sizes_are_those_of_the_files(folder: Path, report: Report) -> None:
    file = folder / "out" / "model.safetensors"
    assert report.after_bytes == file.stat().st_size
    assert report.before_bytes == sum(t.nbytes for t in _gguf_tensors(GGUF))
    for linear in report:
        rows, cols = linear.shape
        assert (linear.bits, linear.group_size) == (4, 32)
        assert linear.after_bytes == rows * cols // 2 + rows * cols // 32 * 2.5
        assert linear.bits_per_weight == 4.625
    assert report.bits_per_weight == 4.625


def _gguf_tensors(path: Path) -> Any:
    from gguf import GGUFReader

    return [t.data for t in GGUFReader(path).tensors]


def test_facts_of_linears(report: Report) -> None:
    assert len(report) == 14 == len(report.linears) and report[0] == report.linears[0]
    for linear in report:
        assert 0 < linear.error < linear.min_max_error < 0.02
        assert 0 < linear.first_token_mass < 0.1  # windows have 64 tokens, all much alike
    read = [linear.first_token_mass for linear in report.layers[0].linears]
    assert read[0] == read[1] == read[2] and len(set(read)) == 4  # q, k, v read the same
    assert report.error == pytest.approx(np.mean([linear.error for linear in report]))
    worst = report.worst(3)
    assert len(worst) == 3 and worst[0].error == max(linear.error for linear in report)
    assert all(layer.peak_bytes > 1 << 20 and layer.seconds > 0 for layer in report.layers)
    assert report.peak_bytes == report.layers[-1].peak_bytes
    assert report.seconds.keys() == {"texts", "layers", "writing", "evaluating"}


def test_needs(report: Report) -> None:
    """An error goes away for its bytes: for q, k and v together."""
    needs = report.needs()
    assert {need.unit for need in needs} == {
        f"{i}.{read}" for i in (0, 1) for read in ("qkv", "o", "gate_up", "down")
    }
    assert [n.gain for n in needs] == sorted((n.gain for n in needs), reverse=True)
    qkv = next(need for need in needs if need.unit == "1.qkv")
    linears = [x for x in report.layers[1].linears if re.search(r"[qkv]_proj", x.name)]
    assert len(linears) == 3 and qkv.error == pytest.approx(sum(x.error for x in linears))
    assert qkv.extra_bytes == sum(x.n_weights for x in linears) // 2
    assert qkv.gain == pytest.approx(qkv.error * 2**20 / qkv.extra_bytes)


def test_evaluation_is_the_divergence_of_the_texts(folder: Path, report: Report) -> None:
    name = "code"
    wanted = divergence(GGUF, folder / "out", held_out.TEXTS[name], window=held_out.WINDOW)
    found = report.evaluation[name]
    if wanted.model.n_tokens == found.model.n_tokens:  # the text has no more than MAX_WINDOWS
        assert found == wanted
    assert set(report.evaluation) == {*held_out.TEXTS, held_out.CALIBRATION, "all"}
    parts = [found for name, found in report.evaluation.items() if name != "all"]
    tokens = [part.model.n_tokens for part in parts]
    whole = report.evaluation["all"]
    assert whole.model.n_tokens == sum(tokens)
    assert whole.kl.value == pytest.approx(np.average([p.kl.value for p in parts], weights=tokens))
    assert 0 < whole.kl.value < 1 and whole.kl.half_width > 0


def test_what_cannot_be_evaluated_is_said(
    folder: Path, tmp_path: Path, monkeypatch: Any, caplog: Any
) -> None:
    options: dict[str, Any] = {"method": "rtn", "w_group_size": 32, "calib_dataset": None}
    plain = quantize(GGUF, tmp_path / "plain", evaluate=False, **options)
    assert plain.evaluation == {} and plain.not_evaluated == ""
    assert "not evaluated" not in str(plain)

    def full(*args: Any) -> Any:
        raise MemoryError("the original needs 9.0 GiB")

    monkeypatch.setattr(held_out, "compare", full)
    found = quantize(GGUF, tmp_path / "full", **options)
    assert found.not_evaluated == "the original needs 9.0 GiB"
    assert "not evaluated: the original needs 9.0 GiB" in str(found)
    monkeypatch.setattr(_C, "host_memory", lambda: {"usable_bytes": 1000})
    small = quantize(GGUF, tmp_path / "small", **options)
    assert re.match(r"both models take .* KiB of memory, and 1000 bytes", small.not_evaluated)
    assert "is not evaluated" in caplog.text and (tmp_path / "full" / "config.json").exists()


# ---- kept and shown ----


def test_json_keeps_all(folder: Path, report: Report, tmp_path: Path) -> None:
    kept = Report.load(folder / "out" / "report.json")
    assert str(kept) == str(report) and kept.layers == report.layers
    assert Report.load(report.save(tmp_path / "again.json")) == kept
    json.loads((tmp_path / "again.json").read_text(), parse_constant=pytest.fail)
    for text in ("{}", "[]", "no", '{"layers": [1], "evaluation": {}}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(ValueError, match=r"bad\.json\" is no report of quantize"):
            Report.load(tmp_path / "bad.json")


def test_text(report: Report) -> None:
    said = str(report)
    assert said.startswith("14 linears in 4 bits, 4.62 bits/weight; squared error 0.")
    worst, kl = report.worst(1)[0], report.evaluation["all"].kl
    assert percent(worst.error) in said and f"{kl.value:.3f} ± {kl.half_width:.3f}" in said
    assert f"8 bits would help most in {report.needs()[0].unit} (" in said
    assert max(map(len, said.splitlines())) <= 120
    shown = [percent(part) for part in (0.0, 0.25, 0.00123, 0.000034567)]
    assert shown == ["0.00%", "25.00%", "0.12%", "0.0035%"]


class Page(HTMLParser):
    """Every opening of an element has its end, and nothing is fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.cells: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        for key, value in attrs:
            assert key not in ("src", "onload"), f"{tag} {key}"
            assert "href" not in key or (value or "").startswith("#"), f"{tag} {key}={value}"
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "h1", "text"):
            self.cells.append(data)


def read_page(text: str) -> Page:
    page = Page()
    page.feed(text)
    page.close()
    assert page.open == [] and "script" not in page.seen and "link" not in page.seen
    assert "url(" not in re.sub(r"url\(#\w+\)", "", text) and "@import" not in text
    return page


def test_a_page_stands_alone(report: Report, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    named = Report(**{**vars(report), "model": "<script>alert(1)</script>"})
    text = named.save(tmp_path / "page.html").read_text()
    page = read_page(text)
    assert page.seen.count("svg") == 4
    assert "script>" in page.cells  # the end of a path, as text
    kl = report.evaluation["all"].kl
    assert f"{kl.value:.3f} ± {kl.half_width:.3f}" in page.cells
    assert sum("self_attn" in cell or "mlp" in cell for cell in page.cells) >= 14
    assert named.save(tmp_path / "again.html").read_text() == text
    assert re.search("<svg", report._repr_html_())


def test_without_matplotlib(report: Report, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    """A page asks for it, before anything is quantised; a notebook shows the tables."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'lmdeploy_c\[report\]'"):
        report.save(tmp_path / "page.html")
    page = read_page(report._repr_html_())
    assert "svg" not in page.seen and page.seen.count("table") == 4
    command = ["lite", "quantize", str(GGUF), "--work-dir", str(tmp_path / "out")]
    assert main([*command, "--report", str(tmp_path / "page.html")]) == 1
    assert "lmdeploy_c[report]" in capsys.readouterr().err
    assert main([*command, "--report", str(tmp_path / "page.txt")]) == 1
    assert "FILE.json or FILE.html" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_it(folder: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    assert main([
        "lite", "quantize", str(GGUF), "--work-dir", str(out), "--w-group-size", "32",
        "--calib-dataset", str(folder / "text"), "--calib-seqlen", "64", "--no-evaluate",
        "--report", str(tmp_path / "r.json"),
    ]) == 0  # fmt: skip
    found = Report.load(tmp_path / "r.json")
    assert found == Report.load(out / "report.json") and found.evaluation == {}
    assert str(found) in capsys.readouterr().out
    assert main(["lite", "export", str(GGUF), "--work-dir", str(out)]) == 0
    assert not (out / "report.json").exists(), "it is of a model that is there no longer"
