"""Runs LMDeploy's own tests on lmdeploy_c, from a fetched copy of its repository:

    python tests/compat/run.py FOLDER [FILE ...] [--model PATH]

FOLDER has LMDeploy's `tests` and `autotest`; FILE chooses some of the SUITES below. Nothing of
theirs is changed or kept: everything happens in a temporary folder, where a package that is only
named `lmdeploy` gives what lmdeploy_c has (lmdeploy_name.py), and plugin.py what the tests take
from their surroundings. Where a test names a model of a hub, the embedded model answers, or the
GGUF file or directory that is given.

Prints for each suite how many passed and why the others did not. Exits with 1 where fewer passed
than are known to.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lmdeploy_c import Tokenizer
from lmdeploy_c.files.checkpoint import resolve_model

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Suite:
    """A file of tests, which of them are run (pytest's -k), and how many pass."""

    path: str
    wanted: int
    chosen: str = ""


SUITES = (
    Suite("tests/test_lmdeploy/test_messages.py", 5),
    Suite("tests/test_lmdeploy/test_model.py", 106),
    Suite("tests/test_lmdeploy/test_tokenizer.py", 98),
    # 40 with a model that remembers a colour for a turn, which the embedded one does not.
    Suite("tests/test_lmdeploy/test_pipeline.py", 38),
    Suite("tests/test_lmdeploy/test_utils.py", 1),
    # One of the two models, which are the same here. pydantic's exceptions, and the number of
    # GPUs, are LMDeploy's own.
    Suite(
        "autotest/interface/pipeline/test_pipeline_func.py",
        47,
        "Qwen3.5 and not (validate_turbomind or validate_pytorch or config_tp)",
    ),
)

#: The autotests' paths: appended to their env_paths.yml.
PATHS = """
compat:
  env_tag: compat
  device: cpu
  paths:
    model_path_layout: hf_hub
    model_path: {0}/hub
    model_work_path: {0}/work
    resource_path: {0}/resource
    log_path: {0}/log
    server_log_path: {0}/log
"""


def make_site(folder: Path) -> None:
    """The folder that the tests import from: the package `lmdeploy`, and the plugin."""
    (folder / "lmdeploy").mkdir(parents=True)
    shutil.copy(HERE / "lmdeploy_name.py", folder / "lmdeploy" / "__init__.py")
    shutil.copy(HERE / "plugin.py", folder / "compat_plugin.py")
    # Processes that the tests spawn need what is absent too.
    (folder / "sitecustomize.py").write_text("import compat_plugin\n")


def make_tokenizer(model: Path, folder: Path) -> None:
    """The model's tokenizer as a Hugging Face directory, for transformers."""
    tokenizer = Tokenizer(model)
    folder.mkdir()
    (folder / "tokenizer.json").write_text(tokenizer._tokenizer.rules())
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokenizer.bos_token,
        "eos_token": tokenizer.eos_token,
        "chat_template": tokenizer.chat_templates["default"],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def copy_tests(source: Path, folder: Path) -> None:
    for name in ("tests/test_lmdeploy", "autotest"):
        shutil.copytree(source / name, folder / name)
    # Of the machines that the autotests know, none is here: paths of our own, and one device.
    with open(folder / "autotest" / "env_paths.yml", "a", encoding="utf-8") as file:
        file.write(PATHS.format(folder))
    functions = folder / "autotest" / "interface" / "pipeline" / "test_pipeline_func.py"
    functions.write_text(functions.read_text("utf-8").replace("tp=2", "tp=1"), "utf-8")
    (folder / "pytest.ini").write_text("[pytest]\n")


def run(suite: Suite, folder: Path, model: Path) -> dict[str, str]:
    """Runs a suite: name of a test -> "" if it passed, else the reason. Its output is in
    FILE.log."""
    report, log = folder / "report.xml", folder / f"{Path(suite.path).stem}.log"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "compat_plugin", "-c", "pytest.ini"]
    command += [f"--junitxml={report}", "-k", suite.chosen, suite.path]
    paths = [folder / "site", folder / "autotest", os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, map(str, paths))),
        "COMPAT_MODEL": str(model),
        "COMPAT_TOKENIZER": str(folder / "tokenizer"),
        "TEST_ENV": "compat",
    }
    with open(log, "w", encoding="utf-8") as output:
        subprocess.run(command, cwd=folder, env=environment, stdout=output, stderr=output)
    if not report.exists():
        return {"collection": log.read_text("utf-8")[-300:]}
    return {case.get("name", ""): reason_of(case) for case in ET.parse(report).iter("testcase")}


def reason_of(case: ET.Element) -> str:
    for kind in ("failure", "error", "skipped"):
        found = case.find(kind)
        if found is not None:
            return (found.get("message") or found.text or kind).strip().replace("\n", " ")[:160]
    return ""


def show(suite: Suite, results: dict[str, str]) -> bool:
    """Prints a suite's results; whether as many passed as are known to."""
    failed = {name: reason for name, reason in results.items() if reason}
    n_passed = len(results) - len(failed)
    print(f"{suite.path}: {n_passed} of {len(results)} (known: {suite.wanted})", flush=True)
    for reason in dict.fromkeys(failed.values()):
        names = [name for name in failed if failed[name] == reason]
        others = f" and {len(names) - 1} others" if len(names) > 1 else ""
        print(f"    {names[0]}{others}: {reason}", flush=True)
    return n_passed >= suite.wanted


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="a copy of LMDeploy's repository")
    parser.add_argument("files", nargs="*", help="names of suites; all where none is given")
    parser.add_argument("--model", help="what answers for a hub's models; default: the embedded")
    asked = parser.parse_args(arguments)
    model = resolve_model(asked.model)
    suites = [s for s in SUITES if not asked.files or Path(s.path).name in asked.files]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_site(folder / "site")
        make_tokenizer(model, folder / "tokenizer")
        copy_tests(asked.folder, folder)
        good = [show(suite, run(suite, folder, model)) for suite in suites]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
