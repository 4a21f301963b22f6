"""Renders random chat templates, each in a process of its own, and measures time and memory.

    python tests/fuzz/fuzz_templates.py COUNT [FIRST]

COUNT templates of the grammar, from seed FIRST on. A template passes if it gives a text or a
ChatTemplateError within its time limit and a second (of processor time), and takes no more than
256 MB. Prints the seeds of those that do not, and the longest and largest of all; exits 1 if there
is one. A process that does not end by itself is killed by its limit of processor time.
"""

from __future__ import annotations

import copy
import os
import resource
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import template_grammar

from lmdeploy_c.text.jinja_meter import MAX_SECONDS
from lmdeploy_c.text.jinja_sandbox import ChatTemplateError, render

MAX_BYTES = 256 << 20
ADDRESS_SPACE = 4 << 30


def rendered(source: str) -> int:
    """In a child: 0 for a text, 1 for a ChatTemplateError, 2 for changed messages."""
    before = copy.deepcopy(template_grammar.VALUES)
    try:
        render(source, template_grammar.VALUES)
    except ChatTemplateError:
        return 1 if before == template_grammar.VALUES else 2
    return 0 if before == template_grammar.VALUES else 2


def measured(source: str) -> tuple[int, float, int]:
    """How the template's process ended, its seconds of processor time and its bytes."""
    child = os.fork()
    if child == 0:
        seconds = int(MAX_SECONDS) + 5
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        code = 3
        try:
            code = rendered(source)
        finally:
            os._exit(code)
    _, status, usage = os.wait4(child, 0)
    return os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime, usage.ru_maxrss << 10


def main(count: int, first: int) -> int:
    render("{{ messages | tojson }}", template_grammar.VALUES)
    _, _, base = measured("x")
    failed, texts, slowest, largest = 0, 0, (0.0, 0), (0, 0)
    seeds = range(first, first + count)
    sources = (template_grammar.Grammar(seed).template() for seed in seeds)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for seed, (code, seconds, n_bytes) in zip(seeds, pool.map(measured, sources), strict=True):
            texts += code == 0
            slowest = max(slowest, (seconds, seed))
            largest = max(largest, (n_bytes - base, seed))
            if code not in (0, 1) or seconds > MAX_SECONDS + 1 or n_bytes - base > MAX_BYTES:
                failed += 1
                found = f"ended with {code}, {seconds:.1f} s, {n_bytes >> 20} MB"
                print(f"seed {seed}: {found}", flush=True)
    print(
        f"{count} templates, {texts} gave a text; the slowest took {slowest[0]:.2f} s (seed "
        f"{slowest[1]}), the largest {largest[0] >> 20} MB (seed {largest[1]}); {failed} failed"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int((sys.argv[2:] or ["0"])[0])))
