"""llama.cpp's server under the load of serving.py: token ids in by HTTP, a stream of events out.

This process is the client; the server is its child and in its process group, so that both are
stopped and ended together. Sockets without a library: an event costs some microseconds.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time
from typing import Any

from drive import Target, answer
from serve import serve

PATIENCE_S = 120.0  # until it has loaded
COUNT = re.compile(rb'"tokens_predicted":\s*(\d+)')
LAST = re.compile(rb'"stop":\s*true')


class Answer:
    """An HTTP response that is read as far as it has come: its last whole event says how many
    tokens there are by now."""

    def __init__(self, address: tuple[str, int], request: bytes) -> None:
        self.socket = socket.create_connection(address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.sendall(request)
        self.socket.setblocking(False)
        self.rest = b""
        self.n_tokens = 0

    def fileno(self) -> int:
        return self.socket.fileno()

    def read(self) -> tuple[int, bool]:
        data = self.socket.recv(1 << 16)
        events, _, self.rest = (self.rest + data).rpartition(b"\n")
        if events.startswith(b"HTTP/") and b" 200 " not in events[:16]:
            raise RuntimeError(f"llama-server: {events[:300].decode(errors='replace')}")
        if not data:
            raise RuntimeError(f"llama-server hung up: {(events + self.rest)[-200:]!r}")
        before = self.n_tokens
        for count in COUNT.findall(events):
            self.n_tokens = int(count)
        ended = LAST.search(events) is not None
        if ended:
            self.socket.close()
        return self.n_tokens - before, ended

    def cancel(self) -> None:
        self.socket.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class LlamaServer(Target):
    def load(
        self, path: str, threads: int, slots: int, context: int, binary: str, flash: str
    ) -> dict[str, Any]:
        """context: most tokens of one slot. flash: "on" or "off"."""
        self.address = ("127.0.0.1", free_port())
        options = {
            "--model": path, "--host": self.address[0], "--port": self.address[1],
            "--threads": threads, "--threads-batch": threads,
            "--parallel": slots, "--ctx-size": slots * context,
            "--flash-attn": flash, "--n-gpu-layers": 0,
            "--cache-ram": 0,  # a copy of what left its slot: no prompt comes back here
        }  # fmt: skip
        flags = ["--cont-batching", "--no-webui", "--no-kv-unified"]
        words = [str(word) for pair in options.items() for word in pair]
        self.server = subprocess.Popen(
            [binary, *words, *flags], stdin=subprocess.DEVNULL, stdout=sys.stderr.fileno()
        )
        self.until_loaded()
        self.vocab_size = json.loads(self.get("/v1/models"))["data"][0]["meta"]["n_vocab"]
        return {"version": "", "pids": [self.server.pid]}

    def get(self, path: str) -> bytes:
        """The body of an answer; an error as ConnectionError."""
        with socket.create_connection(self.address, timeout=30) as connection:
            connection.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
            answer = b""
            while part := connection.recv(1 << 16):
                answer += part
        head, _, body = answer.partition(b"\r\n\r\n")
        if b" 200 " not in head[:16]:
            raise ConnectionError(head[:100])
        return body

    def until_loaded(self) -> None:
        end = time.monotonic() + PATIENCE_S
        while True:
            if self.server.poll() is not None:
                raise RuntimeError(f"llama-server ended with status {self.server.returncode}")
            try:
                self.get("/health")
                return
            except ConnectionError:
                if time.monotonic() > end:
                    raise RuntimeError(f"not loaded after {PATIENCE_S:.0f} s") from None
                time.sleep(0.05)

    def encode(self, ids: list[int], n_output: int) -> bytes:
        body = json.dumps({
            "prompt": ids, "n_predict": n_output, "stream": True, "ignore_eos": True,
            "temperature": 0, "samplers": ["temperature"], "cache_prompt": True,
            "response_fields": ["stop", "tokens_predicted"],
        }).encode()  # fmt: skip
        head = (
            f"POST /completion HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        return head.encode() + body

    def submit(self, payload: bytes) -> Answer:
        return Answer(self.address, payload)


if __name__ == "__main__":
    serve(LlamaServer(), answer)
