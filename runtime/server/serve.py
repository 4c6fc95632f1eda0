"""A server process: its socket, its signals, and its end."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import socket
import sys
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

import uvicorn

from ds2ds.backend import AsyncBackend
from ds2ds.errors import ConfigError
from ds2ds.server.app import create_app
from ds2ds.server.service import Service
from ds2ds.server.settings import ServerSettings

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")

_HARD_STOP = 10
"""Seconds after `shutdown_timeout` in which an ended request may still be telling its client so."""


def bind(host: str, port: int) -> socket.socket:
    """A socket that will listen there; port 0: any that is free.

    Raises:
        ConfigError: it cannot be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError, OverflowError) as error:
        raise ConfigError(f"cannot serve at host {host!r}, port {port}: {error}") from error
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen()  # a port that is in use may be told only now
    except OSError as error:
        bound.close()
        raise ConfigError(
            f"cannot serve at host {host!r}, port {port}: {error.strerror or error}; --port 0 takes a free one"
        ) from error
    return bound


def is_loopback(bound: socket.socket) -> bool:
    """Whether only this machine reaches it."""
    return ipaddress.ip_address(bound.getsockname()[0]).is_loopback


def url_of(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def serve(
    load: Callable[[], AsyncBackend],
    settings: ServerSettings,
    corpora: Mapping[str, Any],
    bound: socket.socket,
    on_ready: Callable[[str], None],
    log_level: str = "warning",
) -> None:
    """Serve until a signal comes: SIGTERM or SIGINT lets what runs end, a second one ends the process at once.

    Args:
        load: makes the backend; it is closed at the end.
        bound: from `bind`; it is closed at the end.
        on_ready: told the URL once the backend is there.

    Raises:
        Exception: what went wrong in `load`.
    """
    logging.basicConfig(level=log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")

    def loaded(service: Service) -> None:
        if service.failure is not None:
            server.should_exit = True
        elif service.state == "ok":
            on_ready(url_of(bound))

    app = create_app(load, settings, corpora, loaded)
    service: Service = app.state.service
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="on",
        ws="none",
        timeout_graceful_shutdown=int(settings.shutdown_timeout) + _HARD_STOP,
    )
    server = _Server(config, service)
    server.run(sockets=[bound])
    if service.failure is not None:
        raise service.failure


class _Server(uvicorn.Server):
    """Ends what still runs after `shutdown_timeout`."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        draining = asyncio.create_task(self._service.drain())
        try:
            await super().shutdown(sockets)
        finally:
            draining.cancel()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            sys.stdout.flush()
            os._exit(128 + sig)  # threads and clients would hold up every other way out
        super().handle_exit(sig, frame)
