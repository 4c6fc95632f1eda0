"""`ds2ds generate` needs of what generates no more than the protocol has: here it is none of ours."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scripted import EOS, TOKENIZER, encode
from typer.testing import CliRunner, Result

from ds2ds import AttentionMap, Backend, BackendLimits, GenerationConfig, Grant
from ds2ds.cli import app
from ds2ds.documents.generation_result import GeneratedDocument, GenerationResult
from ds2ds.documents.link_formats import LINK_FORMATS, LinkFormat
from ds2ds.errors import ConfigError
from ds2ds.generation.events import DocumentClosed, DocumentOpened, Done, Event, LinkClosed, TokenWritten


class Parrot:
    """Says "ok" after every prompt, beside a document that it made up. Anything that the protocol lacks is missing."""

    limits = BackendLimits(TOKENIZER.vocab_size, 512, EOS, 4096, 4, 4, has_headings=True)
    link_format: LinkFormat = LINK_FORMATS["markdown"]

    def __init__(self) -> None:
        self.asked: dict[str, Any] = {}

    def default_config(self) -> GenerationConfig:
        return GenerationConfig(max_context_length=512, eos_token_id=EOS)

    def tokenize(self, text: str) -> list[int]:
        return encode(text)

    def detokenize(self, tokens: Any) -> str:
        return TOKENIZER.decode(tokens)

    def token_bytes(self, token: int) -> bytes:
        return TOKENIZER.token_bytes(token)

    def stream(self, prompt: str | None = None, **asked: Any) -> Iterator[Event]:
        self.asked = {"prompt": prompt, **asked}
        config = self.default_config().with_overrides(
            **{name: value for name, value in asked.items() if name not in ("corpus", "title")}
        )
        return self._events(prompt or "", config)

    def _events(self, prompt: str, config: GenerationConfig) -> Iterator[Event]:
        start, said = encode(prompt), encode("ok")
        yield DocumentOpened("root", "generated", 0, None, prompt)
        yield LinkClosed("root", "B", "B", len(start), "generated")
        aux = GeneratedDocument("B", tokens=encode("bee"), text="bee", depth=1, parent_title="root")
        yield DocumentOpened("B", "generated", 1, "root", "")
        yield DocumentClosed("B", "eos", aux)
        for token in said:
            yield TokenWritten("root", token, TOKENIZER.decode([token]), -0.5)
        root = GeneratedDocument(
            "root", tokens=start + said, text=prompt + "ok", is_root=True, finish_reason="eos", given=len(start),
            grants=[Grant(len(start), "B", None, "B")],
        )  # fmt: skip
        yield DocumentClosed("root", "eos", root)
        yield Done(GenerationResult(root, [aux], config))

    def generate(self, *args: Any, **options: Any) -> GenerationResult:
        raise NotImplementedError

    def generate_batch(self, *args: Any, **options: Any) -> list[Any]:
        raise NotImplementedError

    def score(self, *args: Any, **options: Any) -> list[Any]:
        raise NotImplementedError


class Attentive(Parrot):
    def attention(self, result: GenerationResult, *args: Any, **options: Any) -> AttentionMap:
        raise ConfigError(f"asked for {len(result.get_all_documents())} documents")


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Parrot:
    parrot = Parrot()
    monkeypatch.setattr("ds2ds.cli.generate.load_runtime", lambda *args, **options: parrot)
    return parrot


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["generate", "--corpus", "none", *arguments])


def test_it_is_a_backend(backend: Parrot) -> None:
    assert isinstance(backend, Backend)


def test_the_text_the_result_and_the_files(backend: Parrot, tmp_path: Path) -> None:
    done = run("# Home", "--seed", "3", "--max-link-depth", "2", "--picture", str(tmp_path / "a.html"))
    assert done.exit_code == 0, done.output
    assert done.stdout == "# Home\n\nok\n"
    assert backend.asked == {"prompt": "# Home\n\n", "corpus": None, "title": None, "seed": 3, "max_link_depth": 2}
    assert "bee" in (tmp_path / "a.html").read_text()
    saved = run("x", "--json", "--save", str(tmp_path / "s"))
    assert json.loads(saved.stdout)["root_document"]["text"] == "xok"
    assert (tmp_path / "s" / "result.json").is_file()


def test_attention_needs_a_backend_that_tells_it(
    backend: Parrot, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    done = run("x", "--attention", str(tmp_path / "a.npz"))
    assert isinstance(done.exception, ConfigError) and "Parrot does not tell its attention" in str(done.exception)
    assert backend.asked == {}  # before anything is generated
    monkeypatch.setattr("ds2ds.cli.generate.load_runtime", lambda *args, **options: Attentive())
    done = run("x", "--attention", str(tmp_path / "a.npz"))
    assert str(done.exception) == "asked for 2 documents"
