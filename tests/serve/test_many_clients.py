"""Many clients at once, in random order: nothing mixes, nothing is lost, memory stays flat."""

from __future__ import annotations

import gc
import json
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from served_models import Wire, ask, is_idle, request_bytes, wait_for

from lmdeploy_c import GenerationConfig
from lmdeploy_c.engine.session import Session
from lmdeploy_c.engine.text_engine import TextEngine
from lmdeploy_c.serve.config import ServeConfig
from lmdeploy_c.serve.server import Server

TURN = "/v1/chat/interactive"
KEYS = ["one", "two", "three"]


def resident() -> int:
    """Bytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def test_conversations_never_mix(engine: TextEngine) -> None:
    """Users of three keys with the same session ids, each turn beside the others': every answer is
    that of a session of its own."""
    random_ = random.Random(0)
    users = [(key, number) for key in KEYS for number in (1, 2)]
    scripts = {
        user: [f"{user[0]} {user[1]} says {random_.randrange(10**6)}" for _ in range(3)]
        for user in users
    }
    found: dict[Any, list[Any]] = {user: [] for user in users}
    with Server(engine, ServeConfig(port=0, api_keys=KEYS)).start() as server:

        def talk(user: tuple[str, int]) -> None:
            for prompt in scripts[user]:
                body = {"prompt": prompt, "session_id": user[1], "interactive_mode": True}
                body |= {"temperature": 0, "request_output_len": 6}
                reply = ask(server, TURN, body, {"x-api-key": user[0]})
                found[user].append((reply.json["text"], reply.json["history_tokens"]))

        random_.shuffle(users)
        with ThreadPoolExecutor(len(users)) as pool:
            list(pool.map(talk, users))
    for user in users:
        session, config = Session(engine), GenerationConfig(max_new_tokens=6)
        for prompt, (text, n_history) in zip(scripts[user], found[user], strict=True):
            assert n_history == len(session.token_ids)
            assert session(prompt, config, stream_response=False).text == text


def test_memory_is_flat(tiny_text_engine: TextEngine) -> None:
    """Requests of every kind, of which every second client leaves at some byte."""
    random_ = random.Random(1)
    paths = ["/v1/completions", "/generate", "/v1/chat/interactive", "/tokenize"]
    with Server(tiny_text_engine, ServeConfig(port=0, max_sessions=16)).start() as server:

        def some(n: int) -> None:
            for _ in range(n):
                stream, path = random_.random() < 0.5, random_.choice(paths)
                body = {"prompt": f"a {random_.randrange(99)}"}
                if path != "/tokenize":
                    body |= {"stream": stream, "ignore_eos": True}
                if path == TURN:
                    number = random_.randrange(40)
                    body |= {"session_id": number, "interactive_mode": True}
                    body |= {"request_output_len": 4}
                elif path != "/tokenize":
                    body |= {"max_tokens": 4}
                data = request_bytes("POST", path, json.dumps(body).encode())
                with Wire(server.url) as wire:
                    if random_.random() < 0.5:
                        wire.send(data[: random_.randrange(len(data) + 1)])
                    else:
                        wire.send(data).until(b"\r\n\r\n")

        some(600)
        wait_for(lambda: is_idle(tiny_text_engine))
        gc.collect()
        before, n_threads = resident(), threading.active_count()
        some(1200)
        wait_for(lambda: is_idle(tiny_text_engine))
        gc.collect()
        assert resident() - before < 4 << 20
        assert threading.active_count() == n_threads
        assert ask(server, "/slots").json["slots"] == []
