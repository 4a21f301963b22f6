"""Devices: "cuda" says why it cannot be used; "auto" takes a GPU that can be, or else the CPU.

GPUs are emulated, by the library that `make emu` builds or that LMDEPLOY_C_CUDA_LIBRARY names. A
library stays open in its process, so that each case has a process of its own.
"""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from conftest import GOLDEN

from lmdeploy_c import _C

TINY = GOLDEN / "gguf" / "llama-q4_1.gguf"
NAMED = os.environ.get("LMDEPLOY_C_CUDA_LIBRARY")
BUILT = Path(__file__).parents[2] / "build" / "emu" / "liblmdeploy_cuda.so"
INSTALLED = Path(_C.__file__).with_name("liblmdeploy_cuda.so")
SMALL = {"max_batch_size": 2, "max_prefill_token_num": 64}
NO_LIBRARY = "this installation has no CUDA library"

START = """
import json, logging, os, sys
import lmdeploy_c
from lmdeploy_c import _C, GenerationConfig, TurbomindEngineConfig

model, small = sys.argv[1], json.loads(sys.argv[2])
log = []


class Kept(logging.Handler):
    def emit(self, record):
        log.append([record.levelname, record.getMessage()])


logging.getLogger("lmdeploy_c").addHandler(Kept())


def config(device, **options):
    return TurbomindEngineConfig(device=device, **{**small, **options})


def pipeline(device, **options):
    return lmdeploy_c.pipeline(model, config(device, **options), log_level="DEBUG")


def ask(device, **options):
    log.clear()
    try:
        with pipeline(device, **options) as pipe:
            answer = pipe("Hi", GenerationConfig(max_new_tokens=4))
            told = {"device": pipe.backend_config.device, "token_ids": answer.token_ids}
    except Exception as error:
        told = {"error": type(error).__name__, "why": str(error)}
    return {**told, "log": list(log)}


def report(*values):
    print(json.dumps(values))
"""


def run(program: str, **environment: str) -> list[Any]:
    """What a program that begins with START reports. The environment has nothing else of CUDA."""
    ours = {k: v for k, v in os.environ.items() if not k.startswith(("LMDEPLOY_C_CUDA", "EMU_"))}
    ours.pop("CUDA_VISIBLE_DEVICES", None)
    done = subprocess.run(
        [sys.executable, "-c", START + textwrap.dedent(program), str(TINY), json.dumps(SMALL)],
        env={**ours, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    values: list[Any] = json.loads(done.stdout)
    return values


@functools.cache
def emulated_library() -> str | None:
    path = NAMED or (str(BUILT) if BUILT.exists() else None)
    if path is None:
        return None
    ours = {"LMDEPLOY_C_CUDA_LIBRARY": path, "LMDEPLOY_C_CUDA_KERNELS": "ref"}
    [name] = run(
        """
        try:
            report(_C.gpu_info(0)["name"])
        except ValueError:
            report(None)
        """,
        **ours,
    )
    return path if name == "Emulated GPU" else None


@pytest.fixture
def emulated() -> dict[str, str]:
    """The environment of a process that has an emulated GPU, with kernels for every model."""
    path = emulated_library()
    if path is None:
        pytest.skip("no emulated CUDA library: `make emu` builds one")
    return {"LMDEPLOY_C_CUDA_LIBRARY": path, "LMDEPLOY_C_CUDA_KERNELS": "ref"}


def of_gpus(log: list[list[str]]) -> list[list[str]]:
    return [line for line in log if "GPU" in line[1] or "CUDA" in line[1]]


def check_refused(answers: list[Any], error: str, why: str, level: str = "WARNING") -> None:
    """That "cuda" has raised, that "auto" has said why once and answered as "cpu" did."""
    named, auto, cpu = answers
    assert (named["error"], why in named["why"]) == (error, True), named
    assert "\n" not in named["why"]
    assert auto["device"] == cpu["device"] == "cpu"
    assert auto["token_ids"] == cpu["token_ids"] and len(cpu["token_ids"]) == 4
    [(said, text)] = of_gpus(auto["log"])
    assert said == level
    assert text.startswith("the GPU is not used: ") and why in text
    assert text.endswith("; the model runs on the CPU")
    assert not of_gpus(cpu["log"]), "who wants the CPU hears of no GPU"


THREE = "report(ask('cuda'), ask('auto'), ask('cpu'))"


# ---- libraries ----


@pytest.mark.skipif(INSTALLED.exists(), reason="this installation has a CUDA library")
def test_without_a_library_nobody_is_told() -> None:
    check_refused(run(THREE), "UnsupportedError", NO_LIBRARY, level="DEBUG")
    check_refused(run(THREE, LMDEPLOY_C_CUDA_LIBRARY=""), "UnsupportedError", NO_LIBRARY, "DEBUG")


@pytest.mark.parametrize("case", ["is not there", "is a text", "is another library"])
def test_a_library_that_is_none(tmp_path: Path, case: str) -> None:
    path, why = tmp_path / "library.so", "which cannot be read"
    if case == "is a text":
        path.write_text("no library\n")
        why = "the CUDA library cannot be opened: "
    if case == "is another library":
        path, why = Path(_C.__file__), "is no library of lmdeploy_c"
    check_refused(run(THREE, LMDEPLOY_C_CUDA_LIBRARY=str(path)), "UnsupportedError", why)


def test_the_library_is_opened_for_gpus_alone(emulated: dict[str, str]) -> None:
    program = """
    def opened():
        return os.environ["LMDEPLOY_C_CUDA_LIBRARY"] in open("/proc/self/maps").read()

    imported = opened()
    ask("cpu")
    lmdeploy_c.plan(model, config("cpu"))
    on_the_cpu = opened()
    ask("auto")
    report(imported, on_the_cpu, opened())
    """
    assert run(program, **emulated) == [False, False, True]


# ---- GPUs that cannot be used ----

#: What the emulator is told, the exception, and what its sentence says.
REFUSALS: dict[str, tuple[dict[str, str], str, str]] = {
    "no GPU": ({"EMU_DEVICES": "0"}, "UnsupportedError", "the NVIDIA driver sees no GPU"),
    "an old driver": (
        {"EMU_DRIVER": "old"},
        "UnsupportedError",
        "the NVIDIA driver serves CUDA 12.4, and this build needs 13.0: update the driver",
    ),
    "kernels of an unknown name": (
        {"LMDEPLOY_C_CUDA_KERNELS": "none"},
        "ValueError",
        'LMDEPLOY_C_CUDA_KERNELS must be "sm80" or "ref", not "none"',
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_gpu_that_cannot_be_used(emulated: dict[str, str], case: str) -> None:
    environment, error, why = REFUSALS[case]
    check_refused(run(THREE, **{**emulated, **environment}), error, why)


def test_little_memory(emulated: dict[str, str]) -> None:
    program = "report(*(ask(d, max_prefill_token_num=8192) for d in ('cuda', 'auto', 'cpu')))"
    answers = run(program, **emulated, EMU_MEMORY_MB="1")
    why = "the model does not fit; free memory, lower max_prefill_token_num, or take a smaller or "
    check_refused(answers, "MemoryError", why)
    numbers = r"\(weights take 42\.5 KiB, scratch up to \d+\.\d MiB, of 1\.0 MiB available memory "
    assert re.search(numbers + r"on cuda:0\)$", answers[0]["why"])


def test_an_old_gpu(emulated: dict[str, str]) -> None:
    del emulated["LMDEPLOY_C_CUDA_KERNELS"]
    why = "compute capability 7.5; 8.0 (Ampere) is the least that is served"
    check_refused(run(THREE, **emulated, EMU_ARCH="75"), "UnsupportedError", why)


def test_a_model_that_the_kernels_do_not_serve(emulated: dict[str, str]) -> None:
    del emulated["LMDEPLOY_C_CUDA_KERNELS"]
    why = "models of head_dim 16 are not served on CUDA, only those of 64, 128 and 256"
    check_refused(run(THREE, **emulated), "UnsupportedError", why)


@pytest.mark.parametrize(
    ("call", "doing"),
    [
        ("cudaGetDeviceCount", "looking for GPUs"),
        ("cudaMemGetInfo", "asking for the free memory"),
        ("cudaStreamCreateWithFlags", "making a stream"),
    ],
)
def test_a_driver_that_fails(emulated: dict[str, str], call: str, doing: str) -> None:
    [auto] = run("report(ask('auto'))", **emulated, EMU_FAIL=f"1:{call}")
    assert auto["device"] == "cpu" and len(auto["token_ids"]) == 4
    [(level, text)] = of_gpus(auto["log"])
    assert level == "WARNING" and f'{doing}: CUDA says "unknown error"' in text


def test_hidden_gpus_are_not_missed(emulated: dict[str, str]) -> None:
    answers = run(THREE, **emulated, EMU_DEVICES="0", CUDA_VISIBLE_DEVICES="")
    check_refused(answers, "UnsupportedError", "the NVIDIA driver sees no GPU", level="DEBUG")


def test_a_kv_cache_of_32_bits(emulated: dict[str, str]) -> None:
    program = """
    from lmdeploy_c.files.checkpoint import open_checkpoint

    shape = open_checkpoint(model).config
    try:
        _C.engine_bytes(shape, session_len=64, n_blocks=2, kv_bits=32, device="cuda")
    except lmdeploy_c.UnsupportedError as error:
        report(str(error))
    """
    [why] = run(program, **emulated)
    assert why.startswith("a KV cache of 32 bits is not served on CUDA: use kv_bits 16, 8 or 4")


def test_what_fits_nowhere_is_explained_for_both(emulated: dict[str, str]) -> None:
    program = """
    report(ask("auto", cache_max_entry_count="9000TB"), ask("cuda", session_len=1 << 22))
    """
    auto, named = run(program, **emulated, EMU_MEMORY_MB="64")
    assert auto["error"] == "MemoryError"
    on_cpu, on_gpu = auto["why"].split("; the GPU is not used: ")
    assert "'9000TB' asks for " in on_cpu and on_cpu.endswith("available memory on cpu)")
    assert "'9000TB' asks for " in on_gpu and on_gpu.endswith("available memory on cuda:0)")
    assert not of_gpus(auto["log"]), "nothing runs on the CPU"
    assert named["error"] in ("MemoryError", "ValueError") and "on cuda:0" in named["why"]


def test_a_broken_model_is_no_matter_of_the_gpu(emulated: dict[str, str]) -> None:
    program = """
    folder = os.environ["FOLDER"]
    try:
        lmdeploy_c.plan(folder, config("auto", hf_overrides={"num_hidden_layers": 9}))
    except lmdeploy_c.CheckpointError as error:
        report(str(error), log)
    """
    folder = GOLDEN / "models" / "llama-gqa-tied"
    why, log = run(program, **emulated, FOLDER=str(folder))
    assert "layers." in why and "GPU" not in why and not of_gpus(log)


# ---- a GPU that can be used ----


def test_auto_is_the_gpu(emulated: dict[str, str]) -> None:
    program = "report(*map(ask, ('auto', 'cuda', 'cuda:0', 'cuda:7', 'cpu')))"
    auto, named, first, beyond, cpu = run(program, **emulated, EMU_MEMORY_MB="64")
    assert auto["device"] == named["device"] == first["device"] == "cuda:0"
    assert auto["token_ids"] == named["token_ids"] == first["token_ids"] == cpu["token_ids"]
    assert of_gpus(auto["log"]) == [
        [
            "INFO",
            "device cuda:0: Emulated GPU (compute capability 8.0, kernels ref), "
            "64.0 MiB free of 64.0 MiB",
        ]
    ]
    assert not of_gpus(named["log"])
    # The warning of a CPU's slow kernels does not mean a GPU's reference kernels.
    assert all(level in ("DEBUG", "INFO") for level, _ in auto["log"])
    assert beyond["error"] == "ValueError"
    assert "there is no device cuda:7; there are 1, from cuda:0" in beyond["why"]


def test_the_plan_is_the_gpus(emulated: dict[str, str]) -> None:
    program = """
    plan = lmdeploy_c.plan(model, config("auto"))
    with pipeline("cuda") as pipe:
        assert pipe.plan == plan and not pipe.plan.device_reason
    report(dict(plan), str(plan), plan.available_memory_bytes, plan.total_memory_bytes,
           plan.read_bytes_per_second, plan.tokens_per_second_limit, plan.tokens_per_second)
    """
    plan, text, free, total, bandwidth, limit, timed = run(program, **emulated, EMU_MEMORY_MB="64")
    description = "Emulated GPU (compute capability 8.0, kernels ref)"
    assert (plan["device"], plan["device_description"]) == ("cuda:0", description)
    assert plan["isa"] == "ref"
    assert free == total == 64 << 20
    assert (bandwidth, limit) == (0.0, {}), "the host's memory says nothing about a GPU"
    assert timed["0"] > 0
    lines = text.splitlines()
    assert lines[0].startswith("llama-q4_1.gguf: llama on cuda:0 (ref)")
    assert lines[1:3] == [f"  {description}", '  device="auto": the first GPU that can be used']
    assert "of 64.0 MiB available, 64.0 MiB in all" in text
    assert lines[-2] == "decoding one sequence" and lines[-1].endswith(" tok/s")


def test_the_plan_says_why_it_is_the_cpu(emulated: dict[str, str]) -> None:
    program = """
    large = config("auto", max_prefill_token_num=8192)
    report(str(lmdeploy_c.plan(model, large, measure=False)))
    """
    [text] = run(program, **emulated, EMU_MEMORY_MB="1")
    lines = text.splitlines()
    assert lines[1].startswith('  device="auto": the GPU is not used: llama-q4_1.gguf: the model')
    assert "MiB available memory on cuda:0)" in " ".join(line.strip() for line in lines[1:4])
    assert max(map(len, lines)) < 100


CHECK_ENV = """
from lmdeploy_c.cli.check_env import collect, dump, render

found = collect()
for name in ("x.json", "x.yml"):
    dump(found, os.path.join(os.environ["FOLDER"], name))
report(json.load(open(os.path.join(os.environ["FOLDER"], "x.json"))), render(found))
"""


def test_check_env_shows_the_gpu(emulated: dict[str, str], tmp_path: Path) -> None:
    found, shown = run(CHECK_ENV, **emulated, EMU_MEMORY_MB="64", FOLDER=str(tmp_path))
    gpu = "Emulated GPU (compute capability 8.0, kernels ref), 64.0 MiB free of 64.0 MiB"
    assert found["gpus"] == {"driver": "CUDA 13.0", "cuda:0": gpu}
    auto = found["device auto"]
    assert (auto["name"], auto["why"]) == ("cuda:0", "the first GPU that can be used")
    assert auto["memory"] == "64.0 MiB free of 64.0 MiB"
    assert f"cuda:0: {gpu}\n" in shown
    assert f'  "cuda:0": "{gpu}"\n' in (tmp_path / "x.yml").read_text()


def test_check_env_says_why_there_is_no_gpu(emulated: dict[str, str], tmp_path: Path) -> None:
    found, _ = run(CHECK_ENV, **emulated, EMU_DEVICES="0", FOLDER=str(tmp_path))
    assert found["gpus"]["error"] == "the NVIDIA driver sees no GPU"
    assert found["device auto"]["why"] == "no GPU: the NVIDIA driver sees no GPU"
    del emulated["LMDEPLOY_C_CUDA_KERNELS"]
    found, _ = run(CHECK_ENV, **emulated, EMU_ARCH="75", FOLDER=str(tmp_path))
    assert "compute capability 7.5; 8.0" in found["gpus"]["cuda:0"]
    assert found["device auto"]["name"] == "cpu"
    assert "compute capability 7.5; 8.0" in found["device auto"]["why"]


# ---- what outlives an engine ----


def test_session_files_between_devices(emulated: dict[str, str], tmp_path: Path) -> None:
    """KV of another device is computed again, and the answer is the same; the device's own is
    used."""
    program = """
    short = GenerationConfig(max_new_tokens=4)

    def path(device):
        return os.path.join(os.environ["FOLDER"], device)

    for device in ("cpu", "cuda"):
        with pipeline(device) as pipe:
            session = pipe.session(short)
            session("Hi there", stream_response=False)
            session.save(path(device))
    told = []
    for device in ("cpu", "cuda"):
        with pipeline(device) as pipe:
            for saved in ("cpu", "cuda"):
                log.clear()
                session = pipe.load_session(path(saved))
                answer = session("And you?", short, stream_response=False)
                warnings = [text for level, text in log if level == "WARNING"]
                told.append([warnings, answer.cached_tokens, answer.token_ids])
    report(*told)
    """
    own_cpu, to_cpu, to_cuda, own_cuda = run(program, **emulated, FOLDER=str(tmp_path))
    for warnings, cached, _ in (own_cpu, own_cuda):
        assert not warnings and cached > 0
    for warnings, cached, _ in (to_cpu, to_cuda):
        assert warnings == ["the session's KV is computed again: other device"] and cached == 0
    assert own_cpu[2] == to_cpu[2] == to_cuda[2] == own_cuda[2]
    assert len(own_cpu[2]) == 4


def test_a_fork_leaves_the_gpu_alone(emulated: dict[str, str]) -> None:
    """The child is refused, and may use the CPU; its end frees nothing of the parent's."""
    program = """
    short = GenerationConfig(max_new_tokens=4)
    pipe = pipeline("auto")
    before = pipe("Hi", short).token_ids
    session = pipe.chat("Hi", gen_config=short)
    child = os.fork()
    if child == 0:
        code = 0
        for call in (lambda: pipe("Hi"), pipe.stats, lambda: session("Hi", stream_response=False)):
            try:
                call()
                code = 1
            except RuntimeError as error:
                code = code or 2 * ("fork" not in str(error))
        auto = ask("auto")
        code = code or 3 * (auto.get("device") != "cpu" or auto["token_ids"] != before)
        code = code or 4 * ("error" not in ask("cuda"))
        del session, pipe
        sys.exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    report(code, before == pipe("Hi", short).token_ids, pipe.backend_config.device)
    """
    assert run(program, **emulated) == [0, True, "cuda:0"]
