"""The budgets of kernels, cuda/kernels.json: what a kernel may cost, as it shows without a GPU.

usage: budget.py compiled           what nvcc made of the library's kernels, for each target
       budget.py emulated PROFILE   what accesses cost in the kernel suite: its EMU_PROFILE_FILE
       --list prints what is there now; --update makes it the budget

Spills, a stack, and more shared memory than a target has are wrong whatever the budget says. Must
not know: any kernel. `make cuda-budget` builds what "compiled" reads.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import make
import toolkit

BUDGETS = toolkit.ROOT / "cuda" / "kernels.json"
PROGRAM = toolkit.ROOT / make.BUILD / "gpu" / "dynamic_smem"
CUBINS = toolkit.ROOT / make.BUILD / "cuda" / "cubins"


class Multiprocessor(NamedTuple):
    """What NVIDIA's CUDA programming guide says in its table of compute capabilities."""

    n_threads: int
    n_blocks: int
    smem: int  # bytes
    n_registers: int = 64 << 10

    def blocks_of(self, kernel: dict[str, int]) -> int:
        """How many blocks of a kernel it holds at once. Registers go to warps in units of 256 and
        lie in four parts, each for a quarter of the warps; a block's shared memory is a multiple
        of 128 bytes, and 1 KiB of it is the system's."""
        warps = -(-kernel["threads"] // 32)
        registers = -(-kernel["registers"] * 32 // 256) * 256
        smem = -(-(kernel["smem"] + SYSTEM_SMEM) // 128) * 128
        return min(
            self.n_blocks,
            self.n_threads // 32 // warps,
            self.n_registers // 4 // registers * 4 // warps,
            self.smem // smem,
        )


SYSTEM_SMEM = 1 << 10
MULTIPROCESSORS = {
    "80": Multiprocessor(2048, 32, 164 << 10),
    "86": Multiprocessor(1536, 16, 100 << 10),
    "89": Multiprocessor(1536, 24, 100 << 10),
    "90a": Multiprocessor(2048, 32, 228 << 10),
    "100": Multiprocessor(2048, 32, 228 << 10),
    "120": Multiprocessor(1536, 24, 100 << 10),
}
#: What must not be there at all; what may not rise; what may not fall.
NEVER = ("spills", "stack")
AT_MOST = ("registers", "smem")
AT_LEAST = ("blocks", "HMMA", "LDSM", "LDG.128", "LDGSTS.128")
#: Instructions by how they begin, with 16 bytes each where that is asked.
COUNTED = {
    "HMMA": r"HMMA\.",
    "LDSM": r"LDSM\.",
    "LDG.128": r"LDG\.(\w+\.)*128",
    "LDGSTS.128": r"LDGSTS\.(\w+\.)*128",
    "spills": r"(STL|LDL)\b",
}

# ---- what nvcc made ----


def arch_of(target: str) -> int:
    return int(target.rstrip("abcf"))


def output_of(tool: str, *arguments: str | Path) -> str:
    path = toolkit.require("disassembler") / "bin" / tool
    return subprocess.check_output([path, *arguments], text=True, cwd=CUBINS)


def read_cubin(cubin: Path) -> dict[str, dict[str, int]]:
    """The kernels of a cubin, by their mangled names."""
    kernels: dict[str, dict[str, int]] = defaultdict(dict)
    usage = output_of("cuobjdump", "--dump-resource-usage", cubin)
    for name, text in re.findall(r" Function (\S+):\n +(.*)", usage):
        numbers = dict(re.findall(r"(\w+):(\d+)", text))
        kernels[name]["registers"] = int(numbers["REG"])
        kernels[name]["stack"] = int(numbers["STACK"]) + int(numbers["LOCAL"])
        kernels[name]["smem"] = int(numbers["SHARED"])
    elf = output_of("cuobjdump", "--dump-elf", cubin)
    for section in re.split(r"^\.nv\.info\.", elf, flags=re.M)[1:]:
        sizes = re.search(r"EIATTR_MAX_THREADS\n.*\n\s*Value:\s*(\w+) (\w+) (\w+)", section)
        x, y, z = (int(size, 16) for size in sizes.groups())
        kernels[section.split()[0]]["threads"] = x * y * z
    _, functions = json.loads(output_of("nvdisasm", "-json", cubin))
    for function in functions:
        if function["function-name"] not in kernels:
            continue  # a division's, say, that kernels call
        opcodes = Counter(line["opcode"] for line in function["sass-instructions"])
        for what, pattern in COUNTED.items():
            found = sum(n for opcode, n in opcodes.items() if re.match(pattern, opcode))
            kernels[function["function-name"]][what] = found
    return kernels


def dynamic_smem() -> dict[str, int]:
    """Mangled name of a kernel -> bytes that it may be launched with; those without are absent."""
    symbols = subprocess.check_output(["nm", PROGRAM], text=True).splitlines()
    names = {int(line.split()[0], 16): line.split()[-1] for line in symbols if line[0] != " "}
    asked = [line.split() for line in subprocess.check_output(PROGRAM, text=True).splitlines()]
    return {names[int(address, 16)]: int(n_bytes) for address, n_bytes in asked}


def readable(names: list[str]) -> dict[str, str]:
    """Mangled name -> the kernel with its template's arguments."""
    text = subprocess.check_output(["c++filt", *names], text=True)
    plain = [re.sub(r"^void |\(.*", "", line).replace(" >", ">") for line in text.splitlines()]
    if twice := [name for name, n in Counter(plain).items() if n > 1]:
        sys.exit(f"two kernels have one name: {twice}")
    return dict(zip(names, plain, strict=True))


def measure_library() -> dict[str, dict[str, dict[str, int]]]:
    """Kernel -> target -> numbers."""
    shutil.rmtree(CUBINS, ignore_errors=True)
    CUBINS.mkdir()
    output_of("cuobjdump", "--extract-elf", "all", CUBINS.parent / make.LIBRARY)
    cubins = sorted(CUBINS.iterdir())
    with ThreadPoolExecutor(2) as pool:
        contents = list(pool.map(read_cubin, cubins))
    names = readable(sorted({name for kernels in contents for name in kernels}))
    dynamic = dynamic_smem()
    found: dict[str, dict[str, dict[str, int]]] = defaultdict(dict)
    for cubin, kernels in zip(cubins, contents, strict=True):
        target = re.search(r"\.sm_(\w+)\.cubin$", cubin.name).group(1)
        if target not in MULTIPROCESSORS:
            sys.exit(f"nothing is known here of the multiprocessors of sm_{target}")
        for name, kernel in kernels.items():
            if arch_of(target) >= 90 and kernel["smem"]:
                kernel["smem"] -= SYSTEM_SMEM  # it is counted there, with a kernel's own
            kernel["smem"] += dynamic.get(name, 0)
            kernel["blocks"] = MULTIPROCESSORS[target].blocks_of(kernel)
            found[names[name]][target] = kernel
    return found


def check_kernel(kernel: dict[str, int], budget: dict[str, int] | None) -> list[str]:
    """What is wrong with a kernel."""
    wrong = [f"{what} {kernel[what]}, never more than 0" for what in NEVER if kernel[what]]
    if kernel["blocks"] == 0:
        wrong.append(f"no block fits: {kernel['smem']} bytes of shared memory")
    if budget is None:
        return [*wrong, "has no budget"]
    for what in AT_MOST:
        if kernel[what] > budget[what]:
            wrong.append(f"{what} {kernel[what]}, at most {budget[what]}")
    for what in AT_LEAST:
        if kernel[what] < budget[what]:
            wrong.append(f"{what} {kernel[what]}, at least {budget[what]}")
    return wrong


def list_kernels(found: dict[str, dict[str, dict[str, int]]]) -> None:
    """A line for each kernel; where targets differ, a number for each, in their order."""
    for name, by_target in sorted(found.items()):
        kernels = [by_target[target] for target in sorted(by_target, key=arch_of)]
        text = f"{name:58}"
        for what in ("registers", "blocks", "smem", "spills"):
            numbers = [str(kernel[what]) for kernel in kernels]
            text += f" {what} {'/'.join(numbers) if len(set(numbers)) > 1 else numbers[0]}"
        print(text)


def nvcc_version() -> str:
    nvcc = toolkit.require("compiler") / "bin" / "nvcc"
    text = subprocess.check_output([nvcc, "--version"], text=True)
    return re.search(r"V(\d[\d.]*)", text).group(1)


def check_compiled(budgets: dict, wants_update: bool, wants_list: bool) -> list[tuple[str, list]]:
    found = measure_library()
    section = budgets.setdefault("compiled", {})
    if wants_list:
        list_kernels(found)
    if wants_update:
        budgets["nvcc"] = nvcc_version()
        for name, by_target in found.items():
            for target, kernel in by_target.items():
                if any(kernel[what] for what in NEVER):
                    continue  # no budget is made of that
                kept = {what: kernel[what] for what in ("threads", *AT_MOST, *AT_LEAST)}
                section.setdefault(name, {})[target] = kept
        for name in set(section) - set(found):
            del section[name]
    if budgets.get("nvcc") != nvcc_version():
        print(f"note: this is nvcc {nvcc_version()}, the budgets are of {budgets.get('nvcc')}")
    results = [(name, ["is not in the library"]) for name in section if name not in found]
    for name, by_target in found.items():
        for target, kernel in by_target.items():
            wrong = check_kernel(kernel, section.get(name, {}).get(target))
            results.append((f"{name}, sm_{target}", wrong))
    return results


# ---- what the emulator saw ----

#: Sectors of global memory, and passes over the banks of shared memory, over the least there could
#: be for the same bytes; rounded, so that the last place may differ.
ROUNDING = 0.01


def check_emulated(
    budgets: dict, wants_update: bool, wants_list: bool, profile: Path
) -> list[tuple[str, list]]:
    totals: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(lambda: [0, 0]))
    for line in profile.read_text().splitlines():
        site = json.loads(line)
        if "place" in site:
            of_kernel = totals[site["kernel"].strip("()")][site["memory"]]
            of_kernel[0] += site["got"]
            of_kernel[1] += site["least"]
    found = {
        name: {memory: round(got / max(least, 1), 2) for memory, (got, least) in sorted(of.items())}
        for name, of in sorted(totals.items())
    }
    if wants_list:
        print("\n".join(f"{name:60} {ratios}" for name, ratios in found.items()))
    if wants_update:
        budgets["emulated"] = found
    section = budgets.get("emulated", {})
    results = [(name, ["was not run"]) for name in section if name not in found]
    for name, ratios in found.items():
        budget = section.get(name, {})
        wrong = [
            f"{memory} memory: {ratio} times the least, at most {budget.get(memory, 'nothing')}"
            for memory, ratio in ratios.items()
            if ratio > budget.get(memory, 0) + ROUNDING
        ]
        results.append((name, wrong))
    return results


# ---- the file and the program ----


def write(budgets: dict) -> None:
    """A line for each kernel of each target, so that a change of one is one line."""
    text = json.dumps(budgets, indent=1, sort_keys=True)
    text = re.sub(r"\{\s*([^{}]*?)\s*\}", lambda m: "{" + " ".join(m[1].split()) + "}", text)
    BUDGETS.write_text(text + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("section", choices=["compiled", "emulated"])
    parser.add_argument("profile", nargs="?", type=Path)
    parser.add_argument("--update", action="store_true")
    parser.add_argument("--list", action="store_true")
    args = parser.parse_args()
    budgets = json.loads(BUDGETS.read_text()) if BUDGETS.exists() else {}
    if args.section == "compiled":
        results = check_compiled(budgets, args.update, args.list)
    else:
        results = check_emulated(budgets, args.update, args.list, args.profile)
    if args.update:
        write(budgets)
    for name, wrong in results:
        for what in wrong:
            print(f"FAILED {name:60} {what}")
    n_failed = sum(bool(wrong) for _, wrong in results)
    print(f"{len(results) - n_failed} passed, {n_failed} failed")
    sys.exit(n_failed != 0)


if __name__ == "__main__":
    main()
