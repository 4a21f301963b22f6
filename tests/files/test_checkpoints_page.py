"""docs/checkpoints.md against the tables that the code reads by."""

from __future__ import annotations

import re
from pathlib import Path

from lmdeploy_c.files import quantization

PAGE = (Path(__file__).parents[2] / "docs" / "checkpoints.md").read_text()


def test_the_table_of_methods_is_the_codes() -> None:
    rows = re.findall(r"^\| ([a-z/-]+) \| ([\w ,]+) \| (.*) \|$", PAGE, re.MULTILINE)
    assert [row[0] for row in rows] == list(quantization.METHODS)
    for method, bits, served in rows:
        known = quantization.BITS.get(method)
        assert bits == (", ".join(map(str, known)) if known else "as its packing")
        if method == "compressed-tensors":
            for form, presets in quantization.PRESETS.items():
                assert all(name in served for name in (form, *presets))


def test_every_place_and_name_of_settings_is_on_the_page() -> None:
    for name in (*quantization.KEYS, *quantization.FILES, *quantization.OLDER_NAMES):
        assert f"`{name}`" in PAGE
    sizes = [str(size) for size in quantization.GROUP_SIZES if size > 0]
    assert f"Groups of {', '.join(sizes)} columns or whole rows" in PAGE
