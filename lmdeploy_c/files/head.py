"""Whether a model's head is its embedding: what the file holds, against what config.json says.

Both there: the head is its own, unless the config ties them and they are alike. The head alone:
it is the embedding too. The embedding alone: it is the head, unless the config says it is not.
Source: transformers 5.23 (tie_weights); a saver may keep either name of a shared tensor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .._C import TensorSpec

#: arch -> module names of embedding and head; the rest have the names of "llama".
NAMES = {
    "internlm2": ("model.tok_embeddings", "output"),
    "llama": ("model.embed_tokens", "lm_head"),
}
COMPARED_BYTES = 1 << 20  # read at once


def _have_equal_values(a: TensorSpec, b: TensorSpec) -> bool:
    if a[1:3] != b[1:3]:  # dtype, shape
        return False
    left = a[5]
    with open(a[3], "rb") as file_a, open(b[3], "rb") as file_b:
        file_a.seek(a[4])
        file_b.seek(b[4])
        while left > 0:
            n_bytes = min(left, COMPARED_BYTES)
            if file_a.read(n_bytes) != file_b.read(n_bytes):
                return False
            left -= n_bytes
    return True


def tie(
    config: Mapping[str, Any], hf: Mapping[str, Any], specs: Sequence[TensorSpec]
) -> tuple[bool, list[TensorSpec]]:
    """Whether the head is the embedding, and the tensors, that one under the embedding's name.

    config: normalised, what config.json says; hf: config.json.
    """
    embed, head = NAMES.get(config["arch"], NAMES["llama"])
    by_name = {spec[0]: spec for spec in specs}
    embed_spec, head_spec = by_name.get(f"{embed}.weight"), by_name.get(f"{head}.weight")
    has_head = any(name.rpartition(".")[0] == head for name in by_name)
    says_untied = hf.get("tie_word_embeddings") is False
    if embed_spec and not has_head:
        return not says_untied, list(specs)
    if embed_spec and head_spec:
        return config["tie_embeddings"] and _have_equal_values(embed_spec, head_spec), list(specs)
    if head_spec and not says_untied:
        return True, [*specs, (f"{embed}.weight", *head_spec[1:])]
    return False, list(specs)
