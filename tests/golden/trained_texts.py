"""What the model of trained/ has learnt from, and what it has not seen: for its maker and for the
benchmarks that quantise it."""

import json
from pathlib import Path

FILE = Path(__file__).parent.parent.parent / "lmdeploy_c" / "lite" / "data" / "builtin.jsonl"


def texts():
    """The first seven eighths of each document of the package's text, and the last eighths."""
    seen, held_out = [], []
    for line in FILE.read_text("utf-8").splitlines():
        document = json.loads(line)
        parts = document.get("messages") or [{"content": document["text"]}]
        text = "\n\n".join(part["content"] for part in parts)
        end = len(text) - len(text) // 8
        seen.append(text[:end])
        held_out.append(text[end:])
    return seen, held_out
