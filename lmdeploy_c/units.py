"""Sizes in bytes as text: read from configurations, written into messages."""

from __future__ import annotations

import re

GIB = 1 << 30
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse_size(text: str) -> int:
    """Bytes of "512MB", "2GB", "1.5 GiB", "100000"; units are powers of 1024. ValueError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:I?B)?\s*", text.upper())
    if match is None:
        raise ValueError(f"{text!r} is no size: wanted something like '512MB' or '2GB'")
    return int(float(match[1]) * _UNITS[match[2]])


def format_size(n_bytes: int) -> str:
    """ "1.5 GiB" and the like."""
    for unit, size in (("GiB", GIB), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if n_bytes >= size:
            return f"{n_bytes / size:.1f} {unit}"
    return f"{n_bytes} bytes"
