"""Sessions are values: a conversation that is forked, rewound, saved, and gone on with later.

Nothing is computed twice: `cached_tokens` says how much of a turn's prompt was found in the KV
cache, which is all of it but the new question and the last token of the answer before.
"""

import tempfile
from pathlib import Path

from lmdeploy_c import GenerationConfig, Response, Session, TurbomindEngineConfig, pipeline

CONFIG = GenerationConfig(max_new_tokens=24)
ENGINE = TurbomindEngineConfig(session_len=2048, cache_max_entry_count="128MB")
NOTES = "My notes: " + " ".join(f"On day {i} it rained {i * 2} mm." for i in range(1, 25))


def say(session: Session, prompt: str) -> str:
    answer = session(prompt, CONFIG, stream_response=False)
    assert isinstance(answer, Response)
    print(
        f"  {answer.cached_tokens:4d} of {answer.input_token_len:4d} tokens known | {prompt[:40]}"
    )
    print(f"       -> {answer.text!r}")
    return answer.text


with pipeline(backend_config=ENGINE) as pipe:
    print("a conversation:")
    session = pipe.session()
    say(session, NOTES)
    said = say(session, "On which day did it rain most?")

    print("a fork goes its own way, and the session does not notice:")
    fork = session.fork()
    say(fork, "Sum up my notes in five words.")
    print(f"  turns: {len(session.history)} and {len(fork.history)}")

    print("a rewind takes turns back; asked again, the answer is the same:")
    session.rewind(1)
    assert say(session, "On which day did it rain most?") == said

    folder = tempfile.TemporaryDirectory()
    path = Path(folder.name) / "notes.session"
    session.save(path)
    print(f"saved: {path.stat().st_size / 2**20:.1f} MB with its KV")

with pipeline(backend_config=ENGINE) as pipe, folder:
    print("loaded by another pipeline (or another process), it goes on where it was:")
    session = pipe.load_session(path)
    print(f"  {len(session.history)} turns")
    say(session, "And least?")
