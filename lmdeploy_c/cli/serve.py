"""`lmdeploy_c serve api_server`: a model behind HTTP."""

from __future__ import annotations

import argparse
import logging
import os
from typing import Any

from ..messages import TurbomindEngineConfig
from ..serve.config import DEFAULT_PORT, ServeConfig
from .options import (
    ENGINE_OPTIONS,
    Commands,
    Formatter,
    Later,
    add_engine_options,
    add_model,
    add_options,
    chat_template_config,
    speculative_config,
    values,
)
from .output import PROG, note

#: LMDeploy's flags that this release does not have.
_LATER_FLAGS = (
    "--adapters",
    "--allowed-media-domains",
    "--eager-mode",
    "--logprobs-mode",
    "--proxy-url",
    "--reasoning-parser",
    "--tool-call-parser",
)
_ACCEPTED = "Accepted, without effect: "


def add_parser(commands: Commands[Any]) -> None:
    serve = commands.add_parser(
        "serve", help="serve a model over HTTP", description="Serve a model over HTTP."
    )
    kinds = serve.add_subparsers(dest="kind", metavar="KIND", required=True)
    server = kinds.add_parser(
        "api_server",
        usage=f"{PROG} serve api_server [MODEL] [options]",
        formatter_class=Formatter,
        help="OpenAI's, Anthropic's and LMDeploy's routes",
        description="Serve a model with OpenAI's, Anthropic's and LMDeploy's routes, which "
        "/openapi.json lists. SIGTERM lets answers that are being written end.",
    )
    add_model(server)
    server.add_argument("--server-name", default="127.0.0.1", help="The address to listen on.")
    server.add_argument("--server-port", type=int, default=DEFAULT_PORT, help="0: a free one.")
    server.add_argument("--model-name", help="What clients call it; None: as the files do.")
    server.add_argument(
        "--api-keys", nargs="*", default=[], help="Whoever asks needs one of these. Default: none."
    )
    server.add_argument(
        "--ssl",
        action="store_true",
        help="Speak TLS, with the files that SSL_KEYFILE and SSL_CERTFILE name.",
    )
    server.add_argument(
        "--allow-origins",
        nargs="*",
        default=[],
        help="Web pages that may ask from a browser, or '*'. Default: none.",
    )
    _add_limits(server)
    server.add_argument(
        "--chat-template", help="A built-in template's name, or a file.json; None: the model's own."
    )
    server.add_argument(
        "--backend",
        choices=("turbomind", "pytorch"),
        default="turbomind",
        help="pytorch, too, runs on the C engine.",
    )
    server.add_argument(
        "--log-level", default="WARNING", help="INFO has a line of JSON for each request."
    )
    server.add_argument("--max-log-len", type=int, help="Characters of a prompt in the log.")
    server.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="Accepted; code that comes with a model is never run.",
    )
    for flag, why in (
        ("--disable-fastapi-docs", "there are none."),
        ("--enable-abort-handling", "/abort_request is always there."),
    ):
        server.add_argument(flag, action="store_true", help=_ACCEPTED + why)
    add_engine_options(server)
    server.add_argument(
        "--disable-metrics", action="store_true", help="Count nothing; /metrics is a 404."
    )
    for flag in _LATER_FLAGS:
        server.add_argument(flag, nargs="*", action=Later, help=argparse.SUPPRESS)
    server.set_defaults(run=run)


def _add_limits(server: argparse.ArgumentParser) -> None:
    add_options(
        server.add_argument_group("limits"),
        (
            ("--max-concurrent-requests", int, "Requests at once; others get a 429."),
            ("--max-body-bytes", int, "Of one request."),
            ("--max-sessions", int, "Conversations of /v1/chat/interactive that are kept."),
            ("--client-timeout", float, "Seconds that a client may neither send nor read."),
            ("--drain-timeout", float, "Seconds that answers may take after SIGTERM."),
        ),
        ServeConfig,
    )


def serve_config(args: argparse.Namespace) -> ServeConfig:
    key, certificate = os.environ.get("SSL_KEYFILE"), os.environ.get("SSL_CERTFILE")
    if args.ssl and not (key and certificate):
        raise ValueError("--ssl needs the environment variables SSL_KEYFILE and SSL_CERTFILE")
    return ServeConfig(
        host=args.server_name,
        port=args.server_port,
        api_keys=args.api_keys,
        ssl_keyfile=key if args.ssl else None,
        ssl_certfile=certificate if args.ssl else None,
        allow_origins=args.allow_origins,
        max_concurrent_requests=args.max_concurrent_requests,
        max_body_bytes=args.max_body_bytes,
        max_sessions=args.max_sessions,
        client_timeout=args.client_timeout,
        drain_timeout=args.drain_timeout,
    )


def run(args: argparse.Namespace) -> int:
    from ..serve.server import Server

    config = serve_config(args)  # what is wrong in it is said before a model is loaded
    engine_config = TurbomindEngineConfig(
        **values(args, ENGINE_OPTIONS), enable_metrics=not args.disable_metrics
    )
    template, speculative = chat_template_config(args.chat_template), speculative_config(args)
    if args.backend == "pytorch":
        note("--backend pytorch: this release has no PyTorch engine; the C engine runs")
    logging.basicConfig(format="%(message)s")
    from ..pipeline import pipeline

    with pipeline(
        args.model_path,
        engine_config,
        template,
        args.log_level,
        args.max_log_len,
        speculative_config=speculative,
        model_name=args.model_name,
    ) as pipe:
        server = Server(pipe.engine, config)
        note(f"{pipe.model_name} answers at {server.url}/v1")
        server.run()
    return 0
