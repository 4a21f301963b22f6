"""Fuzzes tokenizer.json: mutants of right ones are opened, and a text goes through those that open.

python fuzz_tokenizer.py --mutants 1000 --seed 0, or --seconds 60. Mutants keep JSON's form and most
of a tokenizer's, so that they reach what checks leave open. A mutant may raise ValueError, and
nothing else; one that takes too long, or too much memory, or a process that ends, is a fault. The
mutant at hand stands in a file, whose name is printed.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "text")]

from test_tokenizer_json import KNOWN  # noqa: E402
from tokenizer_dirs import KINDS  # noqa: E402

from lmdeploy_c.tokenizer import Tokenizer  # noqa: E402

MAX_SECONDS = 2.0  # of processor time, for one mutant
MAX_BYTES = 2 << 30  # of address space beyond what the process has at its start
TEXTS = ["", "a", "hello  world, it's 12345", "ab" * 200 + " é北🙂\n", " " * 300 + "x", "1" * 300]
NUMBERS = [0, 1, -1, 2, 3, 63, 64, 255, 256, 1023, 1024, 2**24 - 1, 2**24, 2**31, 2**32, 2**64, 0.5]
WORDS = ["", "a", "▁", "<0x41>", "<0xZZ>", "\x00", "\ud800", "🙂", "a" * 128, "b" * 4096, "##",
         "NFC", "BPE", "Split", "\\s+", "[a", "a{0,5}b", "A"]  # fmt: skip
OTHERS = [None, True, False, [], {}, [[]], [0], ["a"], {"type": "NFC"}, {"String": "a"}]


def seeds() -> list[dict[str, Any]]:
    """Whole tokenizers, and each known step in one."""
    whole = [{"post_processor": None, **parts} for parts in KINDS.values()]
    model = {"type": "Unigram", "unk_id": 0, "vocab": [[c, -1.0] for c in "<ab 1▁"]}
    whole.append({**whole[0], "model": model, "added_tokens": []})
    return whole + [{**whole[i % len(whole)], name: part} for i, (name, part, _) in
                    enumerate(KNOWN.values())]  # fmt: skip


def containers(value: Any) -> list[Any]:
    """The objects and lists in a value, itself too."""
    found, i = [value], 0
    while i < len(found):
        items = found[i].values() if isinstance(found[i], dict) else found[i]
        found += [item for item in items if isinstance(item, (dict, list)) and item]
        i += 1
    return found


def small(rng: random.Random, value: Any) -> list[Any]:
    """The containers of a value, without most of a vocabulary's pairs."""
    found = [c for c in containers(value) if c]
    return [c for c in found if not (isinstance(c, list) and len(c) == 2) or rng.random() < 0.1]


def mutate(rng: random.Random, parts: Any, others: list[Any]) -> None:
    """One edit in place."""
    places = small(rng, parts)
    if not places:
        return
    place = rng.choice(places)
    key = rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
    edit = rng.randrange(8)
    if edit == 0:
        place[key] = rng.choice(NUMBERS)
    elif edit == 1:
        place[key] = rng.choice(WORDS)
    elif edit == 2:
        place[key] = copy.deepcopy(rng.choice(OTHERS))
    elif edit == 3:
        del place[key]
    elif edit == 4:  # a piece of another file, of the same name if it has it
        found = small(rng, rng.choice(others))
        same = [c[key] for c in found if isinstance(c, dict) and key in c]
        place[key] = copy.deepcopy(rng.choice(same or found))
    elif edit == 5 and isinstance(place, list):  # longer
        place += copy.deepcopy(place[:64]) * rng.choice([1, 2, 40])
    elif edit == 6:  # deeper
        inner = place[key]
        for _ in range(rng.choice([1, 3, 6])):
            inner = {"type": "Sequence", "normalizers": [inner], "pretokenizers": [inner],
                     "decoders": [inner], "processors": [inner]}  # fmt: skip
        place[key] = inner
    elif isinstance(place[key], str) and place[key]:  # a character
        at = rng.randrange(len(place[key]))
        text = place[key]
        place[key] = text[:at] + rng.choice([*WORDS, *"()[]{}*+?|\\^$."]) + text[at + 1 :]


def use(path: Path) -> bool:
    """Whether a tokenizer opens; then everything that it offers."""
    try:
        tokenizer = Tokenizer(path)
    except ValueError:
        return False
    for text in TEXTS:
        for plain in (False, True):
            try:
                ids = tokenizer.encode(text, split_special_tokens=plain)
                tokenizer.decode(ids)
                tokenizer.decode(ids, None, False)
                detokenizer = tokenizer.detokenizer()
                detokenizer.add(ids)
                detokenizer.finish()
            except ValueError:
                pass
    try:
        tokenizer.decode(range(300))
        tokenizer.token_ids_of("a")
        tokenizer.fingerprint()
        tokenizer.indexes_containing_token("a")
    except ValueError:
        pass
    return True


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mutants", type=int, default=1 << 62)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng, right, end = random.Random(options.seed), seeds(), time.monotonic() + options.seconds
    folder = Path(tempfile.mkdtemp(prefix="fuzz_tokenizer."))
    file = folder / "tokenizer.json"
    print("mutants in", file, flush=True)
    n_pages = int(Path("/proc/self/statm").read_text().split()[0])
    used = n_pages * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MAX_BYTES, resource.RLIM_INFINITY))
    n_made = n_opened = 0
    while n_made < options.mutants and time.monotonic() < end:
        parts = copy.deepcopy(rng.choice(right))
        for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
            mutate(rng, parts, right)
        file.write_text(json.dumps(parts))
        start = time.process_time()
        n_opened += use(folder)
        assert time.process_time() - start < MAX_SECONDS, f"mutant {n_made} takes too long"
        n_made += 1
    file.unlink()
    folder.rmdir()
    print(f"{n_made} mutants, {n_opened} opened")


if __name__ == "__main__":
    main()
