"""llama.cpp's server, built once for this machine: build/peers/llama-server.

Its source is the one that llama-cpp-python's sdist ships; cmake and ninja come from the same index
into an environment of their own. Where it cannot be built there is a reason, never a stop. It stays
until `make clean`; delete its folder to get a newer release.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from common import BUILD
from peer_envs import new_environment, pip, run_logged

FOLDER = BUILD / "peers" / "llama-server"
PACKAGE = "llama-cpp-python"
#: Everything but the server is left out, and what would look for files in the network.
OPTIONS = [
    "-DCMAKE_BUILD_TYPE=Release",
    "-DGGML_NATIVE=ON",
    "-DBUILD_SHARED_LIBS=OFF",
    *(
        f"-DLLAMA_{name}=OFF"
        for name in ("OPENSSL", "BUILD_UI", "USE_PREBUILT_UI", "BUILD_TESTS", "BUILD_EXAMPLES",
                     "BUILD_APP")
    ),
]  # fmt: skip


@dataclass
class Server:
    """binary: the program, or None with a reason. version: of the package that it came with."""

    binary: Path | None
    version: str = ""
    reason: str = ""


def llama_server(folder: Path = FOLDER) -> Server:
    """The server, built if it is not there."""
    binary, ready = folder / "cmake" / "bin" / "llama-server", folder / ".ready"
    if ready.exists():
        return Server(binary, ready.read_text().strip())
    new_environment(folder)
    log, source = folder.with_suffix(".log"), folder / "source"
    source.mkdir()
    download = ["download", "-q", "--no-deps", "--no-binary", PACKAGE, "-d", str(source), PACKAGE]
    reason = pip(folder, ["install", "-q", "cmake", "ninja"], {}, log) or pip(
        folder, download, {}, log
    )
    if reason:
        return Server(None, reason=f"not downloaded: {reason}")
    archive = next(source.glob("*.tar.gz"))
    version = archive.name.removesuffix(".tar.gz").rpartition("-")[2]
    unpacked = f"{archive.name.removesuffix('.tar.gz')}/vendor/llama.cpp"
    print("building llama-server, which takes some minutes ...", flush=True)
    path = {"PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    build = str(folder / "cmake")
    n_jobs = str(len(os.sched_getaffinity(0)))
    commands = [
        ["tar", "-xzf", str(archive), "-C", str(source), unpacked],
        ["cmake", "-G", "Ninja", "-S", str(source / unpacked), "-B", build, *OPTIONS],
        ["cmake", "--build", build, "--parallel", n_jobs, "--target", "llama-server"],
    ]
    for command in commands:
        # Looked up here: a program is searched in this process's PATH, not in the one it is given.
        own = folder / "bin" / command[0]
        reason = run_logged([str(own) if own.exists() else command[0], *command[1:]], path, log)
        if reason:
            return Server(None, reason=f"not built: {reason}")
    ready.write_text(version + "\n")
    return Server(binary, version)
