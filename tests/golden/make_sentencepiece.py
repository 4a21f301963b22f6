"""Makes sentencepiece/: small models of SentencePiece's BPE, and what the library makes of texts.

<name>.model, and <name>.json: [text, ids, the text of the ids] for each text.
"""

import io
import json
from pathlib import Path

import sentencepiece

FOLDER = Path(__file__).parent / "sentencepiece"
TEXTS = [
    *("", "the sea", " the sea", "  the  sea ", "\n\nthe\tsea", "unseeable", "北京的海"),
    *("grüne Straße", "🫖 tea?", "a▁b", "1234567890", "The SEA", "the seathe sea", "x" * 40),
    "e\u0301 é",
]
WORDS = (
    *("the", "sea", "and", "the", "sky", "at", "night", "grün", "Straße", "北京", "海", "see"),
    *("seeing", "able", "un", "ing", "20", "24", "é", "tea"),
)


def corpus():
    """Lines of the words, each beginning elsewhere among them."""
    n = len(WORDS)
    return [" ".join(WORDS[(i * k) % n] for k in range(1, 9)) for i in range(1, 400)]


def main():
    FOLDER.mkdir(exist_ok=True)
    for name, prefix in (("prefix", True), ("plain", False)):
        written = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(corpus()),
            model_writer=written,
            model_type="bpe",
            vocab_size=340,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=prefix,
            character_coverage=0.98,
            minloglevel=2,
        )
        (FOLDER / f"{name}.model").write_bytes(written.getvalue())
        model = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
        rows = [[text, model.encode(text), model.decode(model.encode(text))] for text in TEXTS]
        lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
        (FOLDER / f"{name}.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
