"""Environments of the engines that peers.py compares with: build/peers/<name>, made when wanted.

What cannot be installed is a reason in the report, never a stop. An environment stays until
`make clean`; delete its folder to get a newer release.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from common import BUILD, without_paths

TORCH = "torch==2.13.0"
TIMEOUT_S = 3600


@dataclass
class Peer:
    """worker: its file in workers/. installs: pip's arguments, one call after another."""

    name: str
    package: str
    worker: str
    installs: list[list[str]]
    environ: dict[str, str] = field(default_factory=dict)
    fallback: list[str] | None = None  # where the first install fails
    how: str = "wheel"


HF = ["transformers", "gguf", "accelerate"]
PEERS = {
    peer.name: peer
    for peer in (
        Peer(
            "llama.cpp",
            "llama-cpp-python",
            "run_llama_cpp.py",
            [["--no-binary", "llama-cpp-python", "llama-cpp-python"]],
            {"CMAKE_ARGS": "-DGGML_NATIVE=ON"},
            fallback=["--only-binary", ":all:", "llama-cpp-python"],
            how="built for this machine",
        ),
        Peer("openvino-genai", "openvino-genai", "run_openvino.py", [["openvino-genai", "numpy"]]),
        Peer("transformers", "transformers", "run_transformers.py", [[TORCH], HF]),
        Peer(
            "ctranslate2",
            "ctranslate2",
            "run_ctranslate2.py",
            [[TORCH], [*HF, "ctranslate2", "numpy"]],
        ),
        Peer(
            "onnxruntime-genai",
            "onnxruntime-genai",
            "run_onnxruntime.py",
            [[TORCH], [*HF, "onnxruntime-genai", "onnx", "onnx-ir", "numpy"]],
        ),
    )
}


@dataclass
class Environment:
    """python: its interpreter, or None with a reason. how: what was installed."""

    python: Path | None
    how: str = ""
    reason: str = ""


def run_logged(command: list[str], environ: dict[str, str], log: Path) -> str | None:
    """Runs a program, its words appended to the log; returns None, or why it failed."""
    try:
        done = subprocess.run(
            command,
            env={**os.environ, **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT_S,
        )
    except OSError as error:
        return without_paths(f"{command[0]}: {error.strerror}")
    except subprocess.TimeoutExpired:
        return f"{Path(command[0]).name} took more than {TIMEOUT_S} s"
    with log.open("a") as file:
        file.write(f"$ {' '.join(command)}\n{done.stdout}\n")
    if done.returncode == 0:
        return None
    lines = done.stdout.strip().splitlines()
    errors = [line.strip() for line in lines if line.startswith("ERROR")]
    last = (errors or lines or [f"{Path(command[0]).name} failed without a word"])[-1]
    return without_paths(last)[:200]


def pip(folder: Path, words: list[str], environ: dict[str, str], log: Path) -> str | None:
    """A call of the pip of the environment in folder; returns None, or why it failed."""
    command = [str(folder / "bin" / "python"), "-m", "pip", *words]
    return run_logged(command, {"PIP_DISABLE_PIP_VERSION_CHECK": "1", **environ}, log)


def new_environment(folder: Path) -> None:
    """An empty environment; one that was left unfinished is removed."""
    print(f"installing {folder.name} into {folder.relative_to(BUILD.parent)} ...", flush=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    base = getattr(sys, "_base_executable", sys.executable)
    subprocess.run([base, "-m", "venv", "--clear", str(folder)], check=True)


def environment(peer: Peer) -> Environment:
    """The peer's environment, made if it is not there."""
    folder = BUILD / "peers" / peer.package
    python, ready = folder / "bin" / "python", folder / ".ready"
    if ready.exists():
        return Environment(python, ready.read_text().strip())
    new_environment(folder)
    log = folder.with_suffix(".log")
    how = peer.how
    for arguments in peer.installs:
        reason = pip(folder, ["install", "-q", *arguments], peer.environ, log)
        if reason and peer.fallback:
            reason = pip(folder, ["install", "-q", *peer.fallback], {}, log)
            how = "a wheel, not native"
        if reason:
            return Environment(None, reason=f"not installed: {reason}")
    ready.write_text(how + "\n")
    return Environment(python, how)
