"""A model's files: found, opened and checked. Weights are not read here, only described.

Must not know: tokenizers, the engine.
"""
