"""``ds2ds serve``: OpenAI's completions over HTTP."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ds2ds.cli.loading import load_runtime
from ds2ds.corpus.document_corpus import DEMO, DocumentCorpus
from ds2ds.errors import ConfigError
from ds2ds.extras import require_extra

if TYPE_CHECKING:
    from ds2ds.backend import AsyncBackend

_NONE = "none"
_LOG_LEVELS = ("debug", "info", "warning", "error")


def _limit(help: str) -> Any:
    return typer.Option(help=help, rich_help_panel="Limits")


def serve(
    model: Annotated[str, typer.Option("--model", "-m", help='Checkpoint folder; "demo" is packaged.')] = DEMO,
    name: Annotated[
        str | None, typer.Option(help="The model's name in requests; default: what --model ends with.")
    ] = None,
    corpus: Annotated[
        list[str] | None,
        typer.Option(
            "--corpus",
            "-c",
            metavar="[NAME=]PATH",
            help='Corpus that links lead to, and its name in requests; "demo" is FOLDOC; may be given again, the first '
            'is the default; "none": there is none. Default: demo for the demo model.',
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to serve at; this machine alone reaches 127.0.0.1.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    api_key_env: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Environment variable that holds the key which requests must bear."),
    ] = None,
    api_key_file: Annotated[Path | None, typer.Option(metavar="FILE", help="File that holds it, instead.")] = None,
    allow_anyone: Annotated[
        bool, typer.Option("--allow-anyone", help="Serve other machines without a key, too.")
    ] = False,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(help="Name by which clients call this server, beside its address; may be given again."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N; default: a GPU if there is one.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Of the weights; default float32 on a CPU, bfloat16 on a GPU.")
    ] = None,
    weights: Annotated[str | None, typer.Option(help="int8 or int8_dynamic: rounded to 8 bits.")] = None,
    arena_tokens: Annotated[
        int | None, typer.Option(help="Tokens that the KV arena holds; default: 1 GiB, half a free GPU.")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Documents prefilled by `ds2ds cache warm`, with this model.")
    ] = None,
    max_running: Annotated[int, _limit("Most texts that are written at a time.")] = 256,
    max_queue: Annotated[int, _limit("Most texts that wait; what comes beyond is told to try again later.")] = 1024,
    max_choices: Annotated[int, _limit("Most texts that one request may ask for, prompts times n.")] = 128,
    max_tokens: Annotated[int | None, _limit("Most that max_tokens may be; default: what the context allows.")] = None,
    max_context_length: Annotated[int | None, _limit("Most tokens in view; default 2048, or the model's.")] = None,
    max_link_depth: Annotated[int, _limit("Most that max_link_depth may be; 0: no links are followed.")] = 4,
    max_body_bytes: Annotated[int, _limit("Of a request.")] = 4 * 2**20,
    body_timeout: Annotated[float, _limit("Seconds in which a request's body must have come.")] = 30.0,
    request_timeout: Annotated[float, _limit("Seconds that a request may take, waiting included.")] = 600.0,
    shutdown_timeout: Annotated[
        float, _limit("Seconds that running requests have to end when the server is told to stop.")
    ] = 30.0,
    retry_after: Annotated[int, _limit("Seconds to wait that a refused client is told.")] = 1,
    log_level: Annotated[
        str, typer.Option(help="debug, info (a line for each request), warning or error; on stderr.")
    ] = "warning",
) -> None:
    """Serve OpenAI's completions: /v1/completions, /v1/models, /health and /metrics.

    Prints a line with its URL when it is ready. SIGTERM or Ctrl-C lets running requests end, a second one does not.

    A key is never given on the command line, where every user of the machine could read it.
    """
    require_extra("server", "ds2ds serve", "fastapi", "uvicorn", "prometheus_client")
    if log_level not in _LOG_LEVELS:
        raise ConfigError(f"log-level must be one of {_LOG_LEVELS}, got {log_level!r}")
    key = _api_key(api_key_env, api_key_file)
    corpora = _corpora(corpus, model)

    from ds2ds.server.serve import LOOPBACK_NAMES, bind, is_loopback
    from ds2ds.server.serve import serve as serve_backend
    from ds2ds.server.settings import ServerSettings

    names = tuple(allowed.lower() for allowed in allowed_host or ())
    with contextlib.ExitStack() as resources:
        bound = resources.enter_context(bind(host, port))
        local = is_loopback(bound)
        if not (local or key or allow_anyone):
            raise ConfigError(
                f"--host {host} lets other machines in: give --api-key-env or --api-key-file, or say --allow-anyone"
            )
        settings = ServerSettings(
            model=name or (model if model == DEMO else Path(model).resolve().name),
            api_key=key,
            allowed_hosts=(*LOOPBACK_NAMES, host.lower(), *names) if local else names or None,
            max_body_bytes=max_body_bytes,
            body_timeout=body_timeout,
            request_timeout=request_timeout,
            shutdown_timeout=shutdown_timeout,
            max_choices=max_choices,
            max_tokens=max_tokens,
            max_context_length=max_context_length,
            max_link_depth=max_link_depth,
            retry_after=retry_after,
        )
        opened = {known: resources.enter_context(DocumentCorpus(path)) for known, path in corpora.items()}

        def load() -> AsyncBackend:
            from ds2ds.async_runtime import AsyncRuntime

            memory = {"weights": weights, "arena_tokens": arena_tokens}
            work = {"max_running": max_running, "max_queue": max_queue}
            return AsyncRuntime(load_runtime(model, device, dtype, cache, **memory, **work))

        def ready(url: str) -> None:
            typer.echo(f"serving {settings.model} at {url}")

        serve_backend(load, settings, opened, bound, ready, log_level)


def _api_key(variable: str | None, file: Path | None) -> str | None:
    if variable is not None and file is not None:
        raise ConfigError("give --api-key-env or --api-key-file, not both")
    if variable is not None:
        key = os.environ.get(variable, "").strip()
        if not key:
            raise ConfigError(f"--api-key-env: the environment variable {variable} is not set, or empty")
        return key
    if file is None:
        return None
    try:
        key = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"--api-key-file: {file} cannot be read: {error}") from error
    if not key:
        raise ConfigError(f"--api-key-file: {file} is empty")
    return key


def _corpora(given: list[str] | None, model: str) -> dict[str, str]:
    """Paths by name.

    Raises:
        ConfigError: two have one name, or one has a name that means something else.
    """
    if not given:
        return {DEMO: DEMO} if model == DEMO else {}
    if given == [_NONE]:
        return {}
    paths: dict[str, str] = {}
    for one in given:
        name, equals, path = one.partition("=")
        if not equals:
            name, path = (one if one == DEMO else Path(one).resolve().name), one
        if name in ("", _NONE) or name in paths:
            raise ConfigError(f"--corpus {one}: each must have a name of its own, other than {_NONE!r}, got {name!r}")
        paths[name] = path
    return paths
