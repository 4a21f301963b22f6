"""Running the application on uvicorn: in this thread until a signal ends it, or beside a notebook.

This module needs `pip install lmdeploy_c[serve]`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import signal
import socket
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..engine.text_engine import TextEngine
from .app import App
from .config import ServeConfig
from .service import Service

try:
    import uvicorn
    import uvloop

    from .protocol import Protocol
except ImportError as error:
    raise ImportError(
        f"serving needs uvicorn, httptools and uvloop ({error}): pip install lmdeploy_c[serve]"
    ) from None

if TYPE_CHECKING:
    from collections.abc import Coroutine

logger = logging.getLogger("lmdeploy_c.serve")

#: What the kernel may hold of a stream that its client does not read, in bytes.
_SEND_BUFFER = 1 << 17
#: Seconds for which an idle connection is kept.
_KEEP_ALIVE = 5


class _Uvicorn(uvicorn.Server):
    """Leaves signals alone: the caller handles them."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Server:
    """A text engine that answers over HTTP. `url` is where.

    The socket listens from the beginning; requests are answered once it runs, by `run` or `start`.
    The engine stays open when the server ends. Raises OSError for an address that cannot be had.
    """

    def __init__(self, engine: TextEngine, config: ServeConfig | None = None) -> None:
        self.config = config or ServeConfig()
        self._socket = _listen(self.config)
        self.port: int = self._socket.getsockname()[1]
        host = self.config.host
        host = f"[{host}]" if ":" in host else host
        scheme = "https" if self.config.ssl_certfile else "http"
        self.url = f"{scheme}://{host}:{self.port}"
        self._service = Service(engine, self.config)
        self._app = App(self._service)
        self._uvicorn: _Uvicorn | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._stop: asyncio.Event | None = None

    # ---- in this thread ----

    def run(self) -> None:
        """Serves until SIGTERM or SIGINT, then drains. A second signal ends it at once."""
        self._run(self._serve(signals=True))

    # ---- in one of its own ----

    def start(self) -> Server:
        """Serves in a thread, from now on until `stop`."""
        self._thread = threading.Thread(
            target=self._in_thread, name="lmdeploy_c-serve", daemon=True
        )
        self._thread.start()
        self._ready.wait()
        if self._failure is not None:
            raise self._failure
        return self

    def stop(self) -> None:
        """Drains, and returns when the last request has ended. Idempotent."""
        loop, thread = self._loop, self._thread
        if thread is None or loop is None:
            self._socket.close()
            return
        if self._stop is not None and not loop.is_closed():
            with contextlib.suppress(RuntimeError):  # it has just ended
                loop.call_soon_threadsafe(self._stop.set)
        thread.join()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<Server {self.url}>"

    # ---- both ----

    def _in_thread(self) -> None:
        try:
            self._run(self._serve(signals=False))
        except BaseException as error:
            self._failure = error
        finally:
            self._ready.set()

    def _run(self, main: Coroutine[Any, Any, None]) -> None:
        loop = self._loop = uvloop.new_event_loop()
        try:
            loop.run_until_complete(main)
        finally:
            self._service.close()
            self._socket.close()
            loop.close()

    async def _serve(self, signals: bool) -> None:
        config = uvicorn.Config(
            self._app,
            http=Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE,
            ssl_keyfile=self.config.ssl_keyfile,
            ssl_certfile=self.config.ssl_certfile,
        )
        server = self._uvicorn = _Uvicorn(config)
        self._stop = asyncio.Event()
        if signals:
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, self._on_signal)
        running = asyncio.ensure_future(server.serve([self._socket]))
        stop = asyncio.ensure_future(self._stop.wait())
        while not server.started and not running.done():
            await asyncio.sleep(0.001)
        if running.done():
            stop.cancel()
            await running  # raises why it did not start
            return
        self._warn()
        self._ready.set()
        await asyncio.wait([running, stop], return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if not running.done():
            await self._app.drain()
            server.should_exit = True
            server.force_exit = True  # what is left are idle connections
        await running

    def _on_signal(self) -> None:
        assert self._stop is not None
        if self._stop.is_set():  # the second one
            for job in list(self._service.jobs):
                job.cut("drain")
        self._stop.set()

    def _warn(self) -> None:
        if not self.config.api_keys and not _is_local(self.config.host):
            logger.warning(
                "THE SERVER LISTENS ON %s WITHOUT API KEYS: whoever reaches this machine can use "
                "it. Give --api-keys, or --server-name 127.0.0.1.",
                self.url,
            )


def _listen(config: ServeConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        found.bind((config.host, config.port))
        found.listen(2048)
    except OSError as error:
        found.close()
        raise OSError(
            error.errno, f"cannot listen on {config.host} port {config.port}: {error.strerror}"
        ) from None
    return found


def _is_local(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
