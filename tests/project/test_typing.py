"""What a type checker says of users' programs: the documentation's are clean under mypy --strict,
and mistakes are found before they run. `make lint` brings mypy."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import lmdeploy_c

pytest.importorskip("mypy")

ROOT = Path(__file__).parents[2]

RIGHT = """
from collections.abc import AsyncGenerator, Generator
from typing import assert_type

import numpy as np

from lmdeploy_c import GenerationConfig, Pipeline, Plan, Response, Session

def use(pipe: Pipeline, session: Session, config: GenerationConfig) -> None:
    turn = [{"role": "user", "content": "hi"}]
    assert_type(pipe("hi"), Response)
    assert_type(pipe(turn, config), Response)
    assert_type(pipe(["hi", "ho"]), list[Response])
    assert_type(pipe([turn, "ho"], [config, config]), list[Response])
    assert_type(pipe.infer("hi", use_tqdm=True), Response)
    assert_type(pipe.infer(["hi"]), list[Response])
    assert_type(pipe.stream_infer(["hi"]), Generator[Response, None, None])
    assert_type(pipe.generate("hi"), AsyncGenerator[Response, None])
    assert_type(pipe.chat("hi"), Session)
    assert_type(pipe.chat("hi", stream_response=True), Generator[Response, None, None])
    assert_type(session("hi"), Generator[Response, None, None])
    assert_type(session("hi", stream_response=False), Response)
    assert_type(pipe("hi").raise_for_error().text, str)
    assert_type(pipe.plan, Plan)
    pipe.get_ppl("hi"), pipe.get_ppl(["hi"]), pipe.get_ppl([1, 2])
    pipe.get_ppl(np.array([1, 2])), pipe.get_ppl([np.array([1, 2])])
"""

WRONG = """
from lmdeploy_c import ChatTemplateConfig, GenerationConfig, Pipeline, pipeline

def use(pipe: Pipeline, config: GenerationConfig) -> None:
    GenerationConfig(max_new_token=5)  # error
    config.max_new_token = 5  # error
    GenerationConfig(logit_bias="x")  # error
    ChatTemplateConfig(stop_words="</s>")  # error
    pipeline(chat_template_config="hf")  # error
    pipe("hi", "ho")  # error
    pipe(5)  # error
    pipe(config, "hi")  # error
    pipe.stream_infer("hi", config)  # error
    pipe.chat("hi", config)  # error
    pipe.generate(5)  # error
    pipe.get_ppl(5)  # error
"""


def _path() -> dict[str, str]:
    """Where mypy finds the package, if it is not installed."""
    where = Path(lmdeploy_c.__file__).parents[1]
    return {} if where.name == "site-packages" else {"MYPYPATH": str(where)}


def check(folder: Path, **programs: str) -> list[str]:
    """mypy's errors in these programs."""
    for name, text in programs.items():
        (folder / f"{name}.py").write_text(text)
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary"]
    done = subprocess.run(
        [*command, *(f"{name}.py" for name in programs)],
        cwd=folder,
        env={"MYPY_CACHE_DIR": str(ROOT / ".mypy_cache" / "programs"), **_path()},
        capture_output=True,
        text=True,
    )
    assert not done.stderr, done.stderr
    inside = tuple(f"{name}.py:" for name in programs)
    return [line for line in done.stdout.splitlines() if line.startswith(inside)]


def test_what_a_type_checker_sees(tmp_path: Path) -> None:
    readme = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    examples = {f"x{p.stem}": p.read_text() for p in sorted((ROOT / "examples").glob("*.py"))}
    errors = check(tmp_path, readme="\n".join(readme), **examples, right=RIGHT, wrong=WRONG)
    found = {error.split(": ")[0] for error in errors if ": error: " in error}
    wanted = {f"wrong.py:{i}" for i, line in enumerate(WRONG.splitlines(), 1) if "# error" in line}
    assert found == wanted, "\n".join(errors)
