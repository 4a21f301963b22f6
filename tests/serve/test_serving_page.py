"""docs/serving.md: what it shows runs. docs/routes.md: is what `make docs` makes."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lmdeploy_c.serve.app import ROUTES
from lmdeploy_c.serve.server import Server

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "serving.md").read_text()
SHELL = re.findall(r"^```sh\n(.*?)^```", PAGE, re.M | re.S)
PYTHON = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
NOT_SERVED = {"/v1/embeddings", "/pooling", "/v1/rerank", "/v1/score"}


def here(text: str, server: Server) -> str:
    return text.replace("http://127.0.0.1:23333", server.url)


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
@pytest.mark.parametrize("i", [i for i, text in enumerate(SHELL) if "curl" in text])
def test_the_commands(server: Server, i: int) -> None:
    script = here(SHELL[i], server).replace("curl -s", "curl --fail --max-time 120 -s")
    done = subprocess.run(["bash", "-ec", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert '"error"' not in done.stdout.replace("openai_error", "") or "openapi" in script
    assert "Paris" in done.stdout or "capital" not in script


@pytest.mark.parametrize("i", range(len(PYTHON)))
def test_the_python(server: Server, i: int) -> None:
    program = [sys.executable, "-c", here(PYTHON[i], server)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_every_route_has_a_command() -> None:
    shown = set(re.findall(r"127\.0\.0\.1:23333(/\S+)", "".join(SHELL)))
    assert shown == {r.path for r in ROUTES} - NOT_SERVED | {"/openapi.json"}


def test_the_page_of_routes_is_fresh() -> None:
    spec = importlib.util.spec_from_file_location("make_routes", DOCS / "make_routes.py")
    assert spec and spec.loader
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    assert maker.PAGE.read_text() == maker.page(), "make docs"
