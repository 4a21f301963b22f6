#!/usr/bin/env bash
# tokenizers 0.23.3: an added token does not keep the id that tokenizer.json gives it.
#
# A file of three words (ids 0 to 2) whose added_tokens list has one token with id 9 opens without a
# word, and the token gets the next free id, 3. What a model was trained to read as 9 is then sent as
# 3. An id that is the next free one anyway, or that the vocabulary itself holds, is kept.
# transformers 5.23 builds on the library and so does lmdeploy_c: both take the library's id.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q tokenizers==0.23.3
"$folder/venv/bin/python" - <<'PYTHON'
import json

import tokenizers

token = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
model = {"type": "WordLevel", "vocab": {"x": 0, "y": 1, "z": 2}, "unk_token": "z"}


def id_of(wanted):
    """The id that a token gets whose file says `wanted`."""
    file = {"version": "1.0", "added_tokens": [{"id": wanted, "content": "<a>", **token}], "model": model}
    return tokenizers.Tokenizer.from_str(json.dumps(file)).token_to_id("<a>")


print("tokenizers", tokenizers.__version__)
for wanted in (3, 9):
    print(f"the file says {wanted}, the library {id_of(wanted)}")
assert id_of(3) == 3
assert id_of(9) == 3, "the id of the file is kept now"
print("as described")
PYTHON
