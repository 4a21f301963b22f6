"""Measures drafts from n-grams: what they gain where answers copy, and lose where they do not.

    python benchmarks/speculation.py [--rounds N] [--users N ...] [--csv FILE]

SmolLM2 through `_C.Engine`, 1, 4 and 16 requests at once, without drafts and with them in turn; the
ratio of a round's two speeds is what counts. Prints a table in Markdown and appends a CSV row.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import ROOT, Neighbours, append_csv, machine
from peer_report import number

from lmdeploy_c import _C
from lmdeploy_c.files.checkpoint import open_checkpoint, resolve_model
from lmdeploy_c.text.chat_template import ChatTemplateConfig
from lmdeploy_c.tokenizer import Tokenizer

N_NEW = 128

TEXTS = (
    "The harbour bridge was closed to cars on Monday after engineers found a crack in one of the "
    "steel cables on its northern side. The city council said that the bridge, which carries forty "
    "thousand vehicles a day, will stay closed for at least three weeks. Ferries will run every "
    "ten minutes between the old market and the university, and the tram line over the railway "
    "bridge will be extended until midnight. Shop owners near the harbour fear that they will lose "
    "customers. The mayor promised that the repair will be paid for by the region, and that a "
    "second crossing, planned since 2011, will be discussed again in the autumn.",
    "Bees find their way home by the sun, by landmarks and by the smell of the hive. When a "
    "forager returns with nectar, she dances on the comb: the angle of the dance tells the others "
    "the direction of the flowers, and its length tells the distance. On cloudy days bees use the "
    "polarisation of the light, which they see and we do not. Researchers who moved hives at night "
    "found that young bees make short flights around the hive before they forage, and that bees "
    "which skip these flights get lost more often. Pesticides disturb the learning of landmarks "
    "even in doses that do not kill a single bee.",
    "The museum opens a new wing this spring with two hundred paintings that have never been "
    "shown. Most of them were bought by a merchant, Anna Velt, between 1890 and 1925, and were "
    "kept in a warehouse near the river for a century. The director says that the warehouse was "
    "dry and dark, so the colours have hardly faded. Restorers worked for six years on the frames. "
    "Visitors will be able to watch the restorers through a glass wall on the second floor. Entry "
    "is free on the first Sunday of the month, and schools may book a guided tour at no cost.",
    "A storm on Tuesday night left the valley without electricity for eleven hours. Trees fell on "
    "the lines in four places, and the road to the dam was blocked by a landslide. The power "
    "company sent sixty workers, who repaired the lines to the hospital first. The school stayed "
    "closed on Wednesday. Farmers in the upper valley poured away milk because it could not be "
    "cooled. The company says that it will bury the lines along the river, where the trees are "
    "oldest, within two years, and that the hospital will get a second generator before winter.",
)
CODES = (
    "def mean(values):\n    total = 0.0\n    for value in values:\n        total += value\n"
    "    if not values:\n        raise ValueError('mean of nothing')\n"
    "    return total / len(values)\n\n\ndef variance(values):\n    center = mean(values)\n"
    "    total = 0.0\n    for value in values:\n        total += (value - center) ** 2\n"
    "    return total / len(values)\n",
    "class Stack:\n    def __init__(self):\n        self.items = []\n\n    def push(self, item):\n"
    "        self.items.append(item)\n\n    def pop(self):\n        if not self.items:\n"
    "            raise IndexError('pop from an empty stack')\n        return self.items.pop()\n\n"
    "    def size(self):\n        return len(self.items)\n",
    "def read_config(path):\n    settings = {}\n    with open(path) as file:\n"
    "        for line in file:\n            line = line.strip()\n"
    "            if not line or line.startswith('#'):\n                continue\n"
    "            name, value = line.split('=', 1)\n"
    "            settings[name.strip()] = value.strip()\n    return settings\n",
    "function formatPrice(amount, currency) {\n  const rounded = Math.round(amount * 100) / 100;\n"
    "  const parts = rounded.toFixed(2).split('.');\n  let whole = parts[0];\n"
    "  let result = '';\n  while (whole.length > 3) {\n"
    "    result = ',' + whole.slice(-3) + result;\n    whole = whole.slice(0, -3);\n  }\n"
    "  return currency + whole + result + '.' + parts[1];\n}\n",
)
EDITS = ("Add a comment to the first line of", "Rename the first name in", "Add type hints to",
         "Print a message at the start of")  # fmt: skip
QUESTIONS = (
    "Tell me a story about a fox who lives near a lighthouse.",
    "What should I think about before I move to another city?",
    "Explain why the sky is blue to a child.",
    "Give me ideas for a birthday party in a small garden.",
)


@dataclass
class Case:
    key: str
    title: str
    prompts: list[str]
    params: dict[str, Any] = field(default_factory=dict)


CASES = (
    Case("summary", "summary of a text, greedy",
         [f"Summarize this text in a few sentences, in its own words:\n\n{t}" for t in TEXTS]),
    Case("code", "editing of code, greedy",
         [f"{edit} this code, and answer with the whole code:\n```\n{code}```"
          for edit, code in zip(EDITS, CODES, strict=True)]),
    Case("chat", "open chat, greedy", list(QUESTIONS)),
    Case("chat_sampled", "open chat, sampled at temperature 0.8", list(QUESTIONS),
         {"do_sample": True, "temperature": 0.8, "top_k": 50}),
)  # fmt: skip

#: Variant -> options of the engine. The first is what the others are compared with.
VARIANTS: dict[str, dict[str, Any]] = {
    "none": {},
    "7": {"num_speculative_tokens": 7},
    "15": {"num_speculative_tokens": 15},
    "7_always": {"num_speculative_tokens": 7, "adaptive_speculation": False},
}


class Runner:
    """One model with an engine for each variant. Prompts are found in KV from the second round on,
    so that speeds are those of decoding."""

    def __init__(self, variants: dict[str, dict[str, Any]]) -> None:
        checkpoint = open_checkpoint(resolve_model(None))
        model = _C.Model(checkpoint.config, checkpoint.source)
        self.end_ids = list(checkpoint.eos_token_ids)
        self.tokenizer = Tokenizer.from_gguf(checkpoint.metadata or {})
        self.template = ChatTemplateConfig().template(self.tokenizer)
        self.engines = {
            name: _C.Engine(model, session_len=1024, n_blocks=256, max_batch_size=16, **options)
            for name, options in variants.items()
        }

    def ids(self, prompt: str) -> list[int]:
        text = self.template.messages2prompt([{"role": "user", "content": prompt}])
        return self.tokenizer.encode(text, add_bos=not self.template.adds_bos)

    def run(self, variant: str, case: Case, batch: list[str]) -> tuple[float, list[list[int]]]:
        """Seconds for a batch of prompts at once, and their answers."""
        engine = self.engines[variant]
        all_ids = [self.ids(prompt) for prompt in batch]
        start = time.perf_counter()
        requests = [
            engine.submit(ids, max_new_tokens=N_NEW, stop_token_ids=self.end_ids, random_seed=i,
                          **case.params)
            for i, ids in enumerate(all_ids)
        ]  # fmt: skip
        answers = [read_tokens(request) for request in requests]
        return time.perf_counter() - start, answers


def read_tokens(request: _C.Request) -> list[int]:
    tokens: list[int] = []
    while True:
        output = request.read()
        if output is None:
            continue
        tokens += output.token_ids
        if output.finish_reason is not None:
            if output.finish_reason == "error":
                raise RuntimeError(output.error_message)
            return tokens


def batches_of(case: Case, n_users: int) -> list[list[str]]:
    """Each prompt by itself, or all of them in turn for so many users at once."""
    if n_users == 1:
        return [[prompt] for prompt in case.prompts]
    return [[case.prompts[i % len(case.prompts)] for i in range(n_users)]]


def measure(runner: Runner, case: Case, n_users: int, n_rounds: int) -> dict[str, object]:
    """Prints a row of the table; returns columns of the CSV."""
    names = list(runner.engines)
    batches = batches_of(case, n_users)
    n_tokens = 0
    for batch in batches:  # prompts into KV; what drafts must not do
        _, expected = runner.run("none", case, batch)
        n_tokens += sum(len(answer) for answer in expected)
        if any(runner.run(name, case, batch)[1] != expected for name in names[1:]):
            raise RuntimeError(f"{case.key}: drafts changed an answer")
    before = {name: engine.stats() for name, engine in runner.engines.items()}
    rates: dict[str, list[float]] = {name: [] for name in names}
    for r in range(n_rounds):
        seconds = dict.fromkeys(names, 0.0)
        for batch in batches:
            for name in names[r % len(names) :] + names[: r % len(names)]:
                seconds[name] += runner.run(name, case, batch)[0]
        for name in names:
            rates[name].append(n_tokens / seconds[name])
    columns: dict[str, object] = {}
    plain = rates["none"]
    cells = [number(statistics.median(plain))]
    columns[f"{case.key}_{n_users}_tok_s"] = statistics.median(plain)
    for name, engine in list(runner.engines.items())[1:]:
        ratios = [rate / other for rate, other in zip(rates[name], plain, strict=True)]
        now = engine.stats()
        n_drafted, n_accepted = (
            int(now[key] - before[name][key]) for key in ("n_draft_tokens", "n_accepted_tokens")
        )
        share = n_accepted / max(n_drafted, 1)
        cells.append(
            f"{statistics.median(ratios):.2f} x [{min(ratios):.2f}-{max(ratios):.2f}], {share:.0%}"
        )
        key = f"{case.key}_{n_users}_drafts_{name}"
        columns[f"{key}_ratio"] = statistics.median(ratios)
        columns[f"{key}_accepted"] = share
    print(f"| {case.title} | {n_users} | {' | '.join(cells)} |", flush=True)
    return columns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--csv", type=Path, default=ROOT / "benchmarks" / "speculation.csv")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--users", type=int, nargs="+", default=[1, 4, 16], help="at once")
    options = parser.parse_args()
    neighbours = Neighbours()
    row: dict[str, object] = {**machine(), "rounds": options.rounds}
    runner = Runner(VARIANTS)
    titles = [f"at most {name}" for name in list(VARIANTS)[1:-1]]
    print("| answers | at once | tok/s without | " + " | ".join(titles) + " | always 7 |")
    print("|---" * (len(VARIANTS) + 2) + "|")
    for n_users in options.users:
        for case in CASES:
            row.update(measure(runner, case, n_users, options.rounds))
    row["busy_neighbours"] = neighbours.share()
    print(f"\nOther processes took {neighbours.share():.0%} of the machine's time.")
    append_csv(options.csv, [row])


if __name__ == "__main__":
    sys.exit(main())
