"""The HTTP server: OpenAI's, Anthropic's and LMDeploy's routes on a text engine.

    with lmdeploy_c.pipeline() as pipe, pipe.serve(port=0) as server:
        print(server.url)

server.py runs it, app.py is the ASGI application, and each family of routes has a file. Importing
this package costs nothing; `pip install lmdeploy_c[serve]` brings what running it needs.
"""

from typing import TYPE_CHECKING, Any

from .config import ServeConfig

if TYPE_CHECKING:
    from .app import make_app
    from .server import Server

__all__ = ["ServeConfig", "Server", "make_app"]


def __getattr__(name: str) -> Any:
    if name == "Server":
        from .server import Server

        return Server
    if name == "make_app":
        from .app import make_app

        return make_app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
