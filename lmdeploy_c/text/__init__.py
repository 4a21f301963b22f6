"""Text of prompts and answers: templates, forms of prompts, stop words, vocabularies. No engine."""
