"""`ds2ds serve` as a process: its options, its line, its signals, its end."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import uvicorn
from serving import FakeBackend, settings
from typer.testing import CliRunner, Result

from ds2ds import DS2DSModel
from ds2ds.cli import app
from ds2ds.corpus.build.writer import SourceDocument, write_corpus
from ds2ds.errors import CheckpointError, ConfigError, CorpusError
from ds2ds.model.checkpoint import save_checkpoint
from ds2ds.server.serve import _Server
from ds2ds.server.service import Service


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the checkpoint `model` and the corpora `fruit` and `colours`."""
    folder = tmp_path_factory.mktemp("serve")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = DS2DSModel.from_config(vocab_size=50257, num_layers=2, model_dim=32, num_heads=2, max_seq_len=2048)
    save_checkpoint(model, folder / "model")
    write_corpus(folder / "fruit", [SourceDocument("Apple", "A fruit.")])
    write_corpus(folder / "colours", [SourceDocument("Red", "A colour.")])
    return folder


@contextlib.contextmanager
def serving(folder: Path, *options: str, **environment: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The URL of a server that is ready, and its process, which must be gone at the end."""
    command = [sys.executable, "-m", "ds2ds", "serve", "--model", str(folder / "model"), "--port", "0", *options]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.fullmatch(r"serving (\S+) at (http://127\.0\.0\.1:\d+)\n", line)
        assert found, (line, process.stderr and process.stderr.read())
        yield found[2], process
        process.wait(30)
    finally:
        process.kill()
        process.communicate()


def endless(url: str, **fields: Any) -> dict[str, Any]:
    return {"model": "model", "prompt": "a", "max_tokens": 1900, "ignore_eos": True, "max_link_depth": 0, **fields}


def test_serving_and_a_graceful_end(folder: Path) -> None:
    key = "s3cret"
    options = ("--api-key-env", "SERVE_KEY", "--corpus", str(folder / "fruit"), "--corpus", f"c={folder / 'colours'}")
    with serving(folder, *options, "--log-level", "info", SERVE_KEY=key) as (url, process):
        with httpx.Client(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=30) as client:
            (model,) = client.get("/v1/models").json()["data"]
            assert model["id"] == "model" and model["corpora"] == ["fruit", "c"]
            assert httpx.get(f"{url}/v1/models").status_code == 401
            assert client.get("/health", headers={"host": "evil.example"}).status_code == 403
            prompt = {"model": "model", "prompt": "see [a](Apple) and [r](Red)", "max_tokens": 3, "seed": 1}
            told = client.post("/v1/completions", json=prompt).json()["choices"][0]["documents"]
            assert [(document["title"], document["source"]) for document in told] == [
                ("Apple", "corpus"),
                ("Red", "generated"),
            ]
            # What runs when the signal comes is finished; nothing new is let in.
            fields = endless(url, max_tokens=150)
            with client.stream("POST", "/v1/completions", json={**fields, "stream": True}) as stream:
                lines = stream.iter_lines()
                next(lines)
                process.send_signal(signal.SIGTERM)
                *_, last = [line for line in lines if line]
            assert last == "data: [DONE]"
            process.wait(20)
            with pytest.raises(httpx.ConnectError):
                httpx.get(f"{url}/health")
        assert process.returncode == -signal.SIGTERM
        assert process.stderr is not None
        log = process.stderr.read()
        assert "ok, 1 choices, 3 tokens written" in log and key not in log and "Traceback" not in log


def test_what_does_not_end_is_cut_off(folder: Path) -> None:
    with (
        serving(folder, "--shutdown-timeout", "0.5") as (url, process),
        httpx.Client(base_url=url, timeout=30) as client,
    ):
        answers: list[httpx.Response] = []
        fields = endless(url, n=8)
        whole = threading.Thread(target=lambda: answers.append(client.post("/v1/completions", json=fields)))
        with client.stream("POST", "/v1/completions", json={**fields, "stream": True}) as stream:
            lines = stream.iter_lines()
            next(lines)
            whole.start()
            while "ds2ds_requests_running 16.0" not in httpx.get(f"{url}/metrics").text:
                pass
            process.send_signal(signal.SIGTERM)
            *_, last = [line for line in lines if line]
        error = json.loads(last.removeprefix("data: "))["error"]
        assert error["code"] == "stopping" and error["type"] == "server_error"
        whole.join()
        assert answers[0].status_code == 503 and answers[0].json()["error"]["code"] == "stopping"
        process.wait(20)
        assert process.stderr is not None and "Traceback" not in process.stderr.read()


def test_a_second_signal_is_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr("os._exit", ended.append)
    service = Service(FakeBackend(), {}, settings())
    server = _Server(uvicorn.Config(lambda: None, log_config=None), service)
    server.handle_exit(signal.SIGTERM, None)
    assert server.should_exit and not ended
    server.handle_exit(signal.SIGTERM, None)
    assert ended == [128 + signal.SIGTERM]


@pytest.mark.slow
def test_a_second_signal_ends_the_process_at_once(folder: Path) -> None:
    with serving(folder) as (url, process), httpx.Client(base_url=url, timeout=30) as client:
        fields = endless(url, n=32, stream=True)
        with client.stream("POST", "/v1/completions", json=fields) as stream:
            lines = stream.iter_lines()
            next(lines)
            process.send_signal(signal.SIGINT)
            # The first one is heard once no more connections are taken.
            with contextlib.suppress(httpx.TransportError):
                while True:
                    httpx.get(f"{url}/health", timeout=1)
            process.send_signal(signal.SIGTERM)
            assert process.wait(5) == 128 + signal.SIGTERM
            with pytest.raises(httpx.TransportError):
                list(lines)


# Options


def run(*arguments: str, **options: Any) -> Result:
    return CliRunner().invoke(app, ["serve", *arguments], **options)


def error_of(*arguments: str, **options: Any) -> str:
    done = run(*arguments, **options)
    assert isinstance(done.exception, (ConfigError, CorpusError, CheckpointError)), (done.output, done.exception)
    return str(done.exception)


def test_a_port_in_use() -> None:
    with socket.socket() as used:
        used.bind(("127.0.0.1", 0))
        used.listen()
        port = used.getsockname()[1]
        error = error_of("--port", str(port))
        assert error.startswith(f"cannot serve at host '127.0.0.1', port {port}: ") and "in use" in error


@pytest.mark.parametrize("host", ["no-such-host.invalid", "203.0.113.7", "", "a" * 300])
def test_a_host_that_is_not_this_machine(host: str) -> None:
    assert f"cannot serve at host {host!r}, port 0" in error_of("--host", host, "--port", "0", "--api-key-env", "HOME")


def test_other_machines_are_let_in_only_where_that_is_said() -> None:
    error = error_of("--host", "0.0.0.0", "--port", "0")
    assert error == (
        "--host 0.0.0.0 lets other machines in: give --api-key-env or --api-key-file, or say --allow-anyone"
    )
    wrong = ("--host", "0.0.0.0", "--port", "0", "--corpus", "none=x")
    assert "must have a name of its own" in error_of(*wrong, "--allow-anyone")


def test_keys(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.write_text(" \n")
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe")
    assert "not set, or empty" in error_of("--api-key-env", "SURELY_NOT_SET")
    assert "not set, or empty" in error_of("--api-key-env", "BLANK", env={"BLANK": " "})
    assert "is empty" in error_of("--api-key-file", str(empty))
    assert "cannot be read" in error_of("--api-key-file", str(tmp_path / "missing"))
    assert "cannot be read" in error_of("--api-key-file", str(binary))
    assert "not both" in error_of("--api-key-file", str(empty), "--api-key-env", "HOME")
    assert "printable ASCII" in error_of("--port", "0", "--api-key-env", "ODD", env={"ODD": "schlüssel"})


def test_a_model_that_is_not_there_ends_the_server(tmp_path: Path) -> None:
    assert str(tmp_path / "none") in error_of("--model", str(tmp_path / "none"), "--port", "0")


def test_a_context_longer_than_the_models_ends_the_server(folder: Path) -> None:
    error = error_of("--model", str(folder / "model"), "--port", "0", "--max-context-length", "2049")
    assert error == "max_context_length must be at most the model's 2048, got 2049"


def test_corpora_and_limits(tmp_path: Path) -> None:
    assert "must have a name of its own" in error_of("--corpus", "a=x", "--corpus", "a=y")
    assert "must have a name of its own" in error_of("--corpus", "none", "--corpus", "a=y")
    assert "must have a name of its own" in error_of("--corpus", "=y")
    assert str(tmp_path) in error_of("--port", "0", "--corpus", f"a={tmp_path}")
    assert "max_choices must be an integer >= 1, got 0" in error_of("--port", "0", "--max-choices", "0")
    assert "log-level must be one of" in error_of("--log-level", "loud")


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    error = error_of()
    assert error == "ds2ds serve needs uvicorn: pip install 'ds2ds[server]'"


def test_help_needs_no_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import sys; import ds2ds.cli; print({'fastapi', 'uvicorn', 'torch', 'pydantic'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
