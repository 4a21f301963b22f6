#!/usr/bin/env bash
# transformers 5.23.0: additional_special_tokens of special_tokens_map.json no longer makes a token special.
#
# The folder below is what save_pretrained of transformers 4.33.3 leaves for a LlamaTokenizer with one more special
# token, cut to what matters: added_tokens.json gives <|im_end|> its id, and special_tokens_map.json alone says that it
# is special. Repositories of that time have such files. One would expect decode(skip_special_tokens=True) to leave the
# token out, as 4.57.6 does. 5.23.0 reads both files and gives the token its id, but takes it for an ordinary one
# without a warning: a server that hides special tokens shows its users "the cat<|im_end|>". The same list in
# tokenizer_config.json works in both versions. Seen, for the list in special_tokens_map.json and then in
# tokenizer_config.json:
#   transformers 4.57.6: 'the cat' and 'the cat'
#   transformers 5.23.0: 'the cat<|im_end|>' and 'the cat'
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
cat > show.py <<'PYTHON'
import json
import pathlib
import shutil
import sys

import sentencepiece
import transformers

END = "<|im_end|>"
NAMED = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def decoded(place):
    """What is left of "the cat<|im_end|>" without special tokens, if the file `place` has the list of them."""
    folder = pathlib.Path(place).with_suffix("")
    folder.mkdir()
    shutil.copy("words.model", folder / "tokenizer.model")
    files = {
        "added_tokens.json": {END: 300},
        "special_tokens_map.json": dict(NAMED),
        "tokenizer_config.json": {"tokenizer_class": "LlamaTokenizer", "legacy": False, **NAMED},
    }
    files[place]["additional_special_tokens"] = [END]
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    shutil.rmtree(folder)
    ids = tokenizer("the cat" + END)["input_ids"]
    assert ids[-1] == 300
    return tokenizer.decode(ids, skip_special_tokens=True)


text = iter(["the cat sat on the mat and the dog sat on the log"])
how = {"vocab_size": 300, "model_type": "bpe", "byte_fallback": True, "hard_vocab_limit": False, "minloglevel": 2}
sentencepiece.SentencePieceTrainer.train(sentence_iterator=text, model_prefix="words", **how)
seen = [decoded("special_tokens_map.json"), decoded("tokenizer_config.json")]
print(f"transformers {transformers.__version__}: {seen[0]!r} and {seen[1]!r}")
assert seen == [sys.argv[1], "the cat"], "the token is treated otherwise now"
PYTHON
for version in 4.57.6 5.23.0; do
    python3 -m venv venv-$version
    venv-$version/bin/pip install -q transformers==$version sentencepiece==0.2.3 protobuf==7.36.2
done
export HF_HUB_OFFLINE=1
venv-4.57.6/bin/python show.py "the cat"
venv-5.23.0/bin/python show.py "the cat<|im_end|>"
echo "as described"
