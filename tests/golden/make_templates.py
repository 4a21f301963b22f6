"""Makes templates.json: what transformers renders of `conversations` by chat templates.

Of the templates in templates/, which are this project's, the texts. Of public ones, in a folder
that is given (llama.cpp's models/templates), hashes of the source and of the texts: they stay their
owners'. A text is null where transformers refuses the conversation.
"""

import datetime
import hashlib
import json
import re
import sys
from pathlib import Path

from conversations import NOW, SENT, for_transformers
from transformers.utils import chat_template_utils
from transformers.utils.chat_template_utils import render_jinja_template

ROOT = Path(__file__).parent


class FixedTime(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return NOW


def rendered(source, messages, add_generation_prompt=True, **kwargs):
    continued = messages[-1]["role"] == "assistant" and add_generation_prompt
    try:
        texts, _ = render_jinja_template(
            [[{k: v for k, v in m.items() if v is not None} for m in messages]],
            chat_template=source,
            add_generation_prompt=add_generation_prompt and not continued,
            continue_final_message=continued,
            bos_token="<s>",
            eos_token="</s>",
            **kwargs,
        )
    except Exception:  # whatever a template fails with
        return None
    return texts[0]


def joined(messages):
    """The messages with parts as lines of one text."""
    return [
        {**m, "content": "\n".join(p["text"] for p in m["content"])}
        if isinstance(m["content"], list)
        else m
        for m in messages
    ]


def shows_parts(text, messages):
    """Whether a text has the texts of all parts, and no part as Python or JSON write it."""
    texts = [p["text"] for m in messages if isinstance(m["content"], list) for p in m["content"]]
    return all(t in text for t in texts) and not re.search(r"text['\"]: ['\"]", text)


def text_of(source, name):
    case = dict(for_transformers()[name])
    messages = case.pop("messages")
    text = rendered(source, messages, **case)
    if text is None or not shows_parts(text, messages):
        text = rendered(source, joined(messages), **case)
    if text is None and name == "call as it is sent":  # templates that take arguments as text
        text = rendered(source, **SENT[name])
    return text


def digest(text):
    return None if text is None else hashlib.sha256(text.encode()).hexdigest()[:16]


def main(folder):
    chat_template_utils.datetime = FixedTime
    own = {
        path.stem: {name: text_of(path.read_text(), name) for name in SENT}
        for path in sorted((ROOT / "templates").glob("*.jinja"))
    }
    public = {
        path.stem: {
            "source": digest(path.read_text()),
            "texts": {name: digest(text_of(path.read_text(), name)) for name in SENT},
        }
        for path in sorted(Path(folder).glob("*.jinja"))
    }
    text = json.dumps({"own": own, "public": public}, ensure_ascii=False, indent=1)
    (ROOT / "templates.json").write_text(text + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
