"""Text of prompts and answers: prompts and templates, stop words, vocabularies, detokenizers.

Must not know: model files, the engine.
"""
