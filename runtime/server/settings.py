"""What a server allows."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from ds2ds.errors import ConfigError


@dataclass(frozen=True)
class ServerSettings:
    """Every limit of a server; every value is checked.

    Attributes:
        model: the name that requests must ask for.
        api_key: what they must bear; None: anyone may ask. It is left out of what is printed of this.
        allowed_hosts: names that the Host header may have, in lower case and without a port; None: any. A web page
            that has its own name resolve to this machine is kept out by it.
        max_body_bytes: of a request.
        body_timeout: seconds in which its body must have come.
        request_timeout: seconds that it may take, waiting for its turn included.
        shutdown_timeout: seconds that running requests have to end once the server is told to stop.
        max_choices: most texts that one request may ask for, prompts times n.
        max_tokens: most that `max_tokens` may be; None: what the context allows.
        max_context_length: most tokens in view; None: the default of the backend's model.
        max_link_depth: most that `max_link_depth` may be; 0: no links are followed.
        retry_after: seconds to wait that a refused client is told.

    Raises:
        ConfigError: a value is out of range; the message names field and value.
    """

    model: str
    api_key: str | None = field(default=None, repr=False)
    allowed_hosts: tuple[str, ...] | None = None
    max_body_bytes: int = 4 * 2**20
    body_timeout: float = 30.0
    request_timeout: float = 600.0
    shutdown_timeout: float = 30.0
    max_choices: int = 128
    max_tokens: int | None = None
    max_context_length: int | None = None
    max_link_depth: int = 4
    retry_after: int = 1

    def __post_init__(self) -> None:
        if not self.model:
            raise ConfigError("model must have a name, got ''")
        key = self.api_key
        if key is not None and not (key and key.isascii() and key.isprintable() and key == key.strip()):
            raise ConfigError("api_key must be printable ASCII, and not empty or with spaces around it")
        for name in ("max_body_bytes", "max_choices", "retry_after"):
            self._check_integer(name, 1)
        self._check_integer("max_link_depth", 0)
        for name in ("max_tokens", "max_context_length"):
            if getattr(self, name) is not None:
                self._check_integer(name, 1)
        for name in ("body_timeout", "request_timeout"):
            self._check_seconds(name, positive=True)
        self._check_seconds("shutdown_timeout", positive=False)

    def _check_integer(self, name: str, least: int) -> None:
        value: Any = getattr(self, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ConfigError(f"{name} must be an integer >= {least}, got {value!r}")

    def _check_seconds(self, name: str, positive: bool) -> None:
        value: Any = getattr(self, name)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not 0 <= value < math.inf or (positive and value == 0):
            raise ConfigError(f"{name} must be {'positive' if positive else '>= 0'} and finite, got {value!r}")
