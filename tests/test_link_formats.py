"""Link formats by name, those of other packages, and how they run through the house: model, runtime, corpus, CLI."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from scripted import TOKENIZER, Folding, Texts, encode, follow, grants, is_clean, small_model, small_runtime
from test_import_run import tied_state, write_run
from typer.testing import CliRunner

from ds2ds import Follow, LinkClosed, LinkDetector, LinkQuestion, PromptLinkProcessor, Runtime, Supply
from ds2ds.cli.main import app
from ds2ds.corpus.build.writer import SourceDocument, write_corpus
from ds2ds.documents.document_context import DocumentContext
from ds2ds.documents.link_formats import LINK_FORMATS, LinkFormat, link_format, registry, same_family
from ds2ds.documents.link_scanner import LinkScanner, ScannedLink
from ds2ds.errors import CheckpointError, ConfigError
from ds2ds.generation.generation_config import GenerationConfig
from ds2ds.generation.linked_doc_generator import LinkedDocumentGenerator
from ds2ds.model.config import ModelConfig
from ds2ds.model.ds2ds_model import DS2DSModel
from ds2ds.model.import_run import load_run

NAMES = ["markdown", "wikilinks", "python", "latex", "latex+ref", "arxiv", "null"]


class Shouting:
    """A format of one's own: `@Title!`."""

    name = "shouting"

    class _Scanner:
        def __init__(self, title: str) -> None:
            self.title, self.word, self.at = title, bytearray(), 0

        def feed(self, data: bytes) -> list[ScannedLink]:
            links = []
            for byte in data:
                self.at += 1
                if byte in b"@":
                    self.word.clear()
                elif byte in b"!" and self.word:
                    word = self.word.decode()
                    links.append(ScannedLink(word, word, self.at - len(word) - 2, self.at, self.at - 1))
                    self.word.clear()
                else:
                    self.word.append(byte)
            return links

        def reset(self) -> None:
            self.word.clear()

    def scanner(self, document_title: str = "") -> Shouting._Scanner:
        return self._Scanner(document_title)


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Registers entry points: name -> what the entry point loads."""

    def register(found: Mapping[str, Any]) -> None:
        class Loads(EntryPoint):
            def load(self) -> Any:
                made = found[self.name]
                if isinstance(made, Exception):
                    raise made
                return made

        def entry_points(group: str) -> list[EntryPoint]:
            assert group == "ds2ds.link_formats"
            return [Loads(name, f"somewhere:{name}", group) for name in found]

        monkeypatch.setattr(registry, "entry_points", entry_points)

    return register


# Names


def test_the_packaged_formats() -> None:
    assert list(LINK_FORMATS) == NAMES
    for name in NAMES:
        found = link_format(name)
        assert found.name == name and isinstance(found, LinkFormat)
        scanner = found.scanner("a/b.c")
        assert scanner.feed(b"nothing") == []
        scanner.reset()
    assert isinstance(link_format("markdown").scanner(), LinkScanner)
    source = b"[a](b) [[c]] \\cite{d}\nimport e\n"
    assert [[link.target for link in link_format(name).scanner().feed(source)] for name in NAMES] == [
        ["b"], ["c"], ["e.py"], ["d"], ["d"], ["d"], []
    ]  # fmt: skip


def test_an_unknown_format_is_told_with_all_there_are(plugins: Any) -> None:
    plugins({"shouting": Shouting})
    with pytest.raises(ConfigError, match=r"no link format 'html'; there are: markdown, .*, arxiv, null, shouting$"):
        link_format("html")


def test_formats_of_other_packages(plugins: Any) -> None:
    plugins(
        {"shouting": Shouting, "made": Shouting(), "broken": ImportError("no such thing"), "number": 3, "markdown": 4}
    )
    assert isinstance(link_format("shouting"), Shouting)
    assert isinstance(link_format("markdown").scanner(), LinkScanner)  # packaged names come first
    own = Shouting()
    assert link_format(own) is own
    for name, message in [
        ("made", "calls itself 'shouting'"),
        ("broken", r"'broken' \(somewhere:broken\) cannot be loaded: ImportError\('no such thing'\)"),
        ("number", "must have a name and scanner.document_title., got int"),
    ]:
        with pytest.raises(ConfigError, match=message):
            link_format(name)
    for wrong in (None, 3, LinkScanner(), Shouting):
        with pytest.raises(ConfigError, match="must be a name or have a name and scanner"):
            link_format(wrong)  # type: ignore[arg-type]


def test_an_installed_package_is_found_by_its_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shouting_links.py").write_text("from test_link_formats import Shouting\n")
    installed = tmp_path / "shouting_links-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: shouting-links\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text("[ds2ds.link_formats]\nshouting = shouting_links:Shouting\n")
    monkeypatch.syspath_prepend(tmp_path)
    links = LinkDetector(link_format="shouting").format.scanner().feed(b"@Compiler!")
    assert [(link.target, link.start, link.end) for link in links] == [("Compiler", 0, 10)]
    assert ModelConfig.from_dict({**small_model().config.to_dict(), "link_detector": "shouting"})


def test_families() -> None:
    assert same_family("latex", "latex+ref") and same_family("arxiv", "latex+ref") and same_family("null", "python")
    assert not same_family("markdown", "wikilinks") and not same_family("python", "latex")


# Detector and prompt


def test_a_detector_of_another_format_streams() -> None:
    detector = LinkDetector(link_format="python")
    stream = detector.stream("p/m.py")
    links = [link for token in detector.tokenizer.encode("from . import a\n") for link in stream.feed(token)]
    assert [link.target for link in links] == ["p/a.py"]
    with pytest.raises(
        ConfigError, match="detect_link_at_position finds markdown links, this detector's format is 'python'"
    ):
        detector.detect_link_at_position([1, 2], 0)
    with pytest.raises(ConfigError, match="no link format 'html'"):
        LinkDetector(link_format="html")


def test_a_prompts_imports_are_brought_in() -> None:
    corpus = Texts({"p/a.py": "A", "b/__init__.py": "B", "b.py": "no"})
    context = DocumentContext(512, 5, "drop_oldest")
    prompt = encode("from . import a\nimport b, c.d\nfrom b import x\n")
    context.initialize_root(prompt, "p/m.py")
    processor = PromptLinkProcessor(TOKENIZER, link_format="python")
    missing = processor.process_prompt(prompt, context, corpus, GenerationConfig(eos_token_id=0))
    assert missing == ["c/d.py"]
    assert [(grant.position, grant.target.title) for grant in context.root.grants] == [
        (16, "p/a.py"),
        (30, "b/__init__.py"),
    ]


def test_a_prompts_import_means_no_other_spelling() -> None:
    context = DocumentContext(512, 5, "drop_oldest")
    prompt = encode("import socket\nimport _socket\n")
    context.initialize_root(prompt, "m.py")
    processor, config = PromptLinkProcessor(TOKENIZER, link_format="python"), GenerationConfig(eos_token_id=0)
    assert processor.process_prompt(prompt, context, Texts({"socket.py": "x"}), config) == ["_socket.py"]
    assert [grant.target.title for grant in context.root.grants] == ["socket.py"]


# Generation


def written(title: str, corpus: Mapping[str, str], format: Any, **options: Any) -> Any:
    runtime = small_runtime(link_format=format)
    options = {"max_new_tokens": 200, "max_tokens_per_document": 300, "seed": 0, "max_link_depth": 2, **options}
    result = runtime.generate("", corpus=Texts(corpus), title=title, **options)
    assert is_clean(runtime)
    return result


def test_a_python_file_is_written_and_reads_what_it_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = {
        "shop/cart.py": "from .prices import total\n\nclass Cart: ...\n",
        "shop/prices.py": "import decimal\n",
        "shop/__init__.py": "VERSION = 1\n",
        "shop/store/__init__.py": "x = 1\n",
        "decimal.py": "d = 1\n",
        "Decimal/Context.py": "no",
    }
    lines = [
        "'''import no'''\n",
        "from .cart import (\n    Cart,\n)\n",
        "from . import store as s, VERSION\n",
        "import os; ",
    ]
    follow(monkeypatch, {"shop/main.py": "".join(lines) + "x = 1\n"})
    result = written("shop/main.py", corpus, "python", allow_corpus_fallback=False)
    ends = [1 + sum(map(len, lines[:count])) for count in range(5)]  # the root starts from EOS
    assert grants(result.root_document) == [
        (ends[2] - 1, "shop/cart.py", None),  # at the parenthesis
        (ends[3], "shop/store/__init__.py", None),
        (ends[3], "shop/__init__.py", None),
    ]
    assert [document.title for document in result.auxiliary_documents] == [
        "shop/prices.py", "shop/cart.py", "shop/store/__init__.py", "shop/__init__.py"
    ]  # fmt: skip
    assert grants(result.get_document_by_title("shop/cart.py")) == [(26, "shop/prices.py", None)]
    assert result.trace.links_not_followed == 1  # os; what is two deep is not looked into


def test_what_a_corpus_lacks_is_written_under_the_modules_name(monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, {"m.py": "from a.b import c, D\nfrom a.b import *\nimport a.b\n", "a/b.py": "c = D = 1\n"})
    result = written("m.py", {"A/B.py": "another"}, "python", max_link_depth=1)
    assert [(document.title, document.source) for document in result.auxiliary_documents] == [("a/b.py", "generated")]
    assert grants(result.root_document) == [(22, "a/b.py", None)]
    assert (result.trace.links_generated, result.trace.links_already_in_view) == (1, 3)


@pytest.mark.parametrize("in_view", [9, 1])
def test_candidates_mean_no_document_of_another_spelling(in_view: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Titles are found with case and spacing folded, "_" too; the root's own is like that of a module it imports."""
    lines = ["import _socket\n", "import queue\n", "import Queue\n", "import queue\n", "x"]
    texts = {"socket.py": "".join(lines), "_socket.py": "a", "queue.py": "b", "Queue.py": "c"}
    follow(monkeypatch, texts)
    result = written("socket.py", {}, "python", max_link_depth=1, max_auxiliary_documents=in_view)
    assert [document.title for document in result.auxiliary_documents] == ["_socket.py", "queue.py", "Queue.py"]
    read = [title for _, title, _ in grants(result.root_document)]
    assert read == ["_socket.py", "queue.py", "Queue.py", *(["queue.py"] if in_view == 1 else [])]


def test_a_supplied_text_takes_the_place_of_no_document_of_another_spelling(monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, {"m.py": "import socket\nimport _socket\nx", "socket.py": "a"})

    def on_link(question: LinkQuestion) -> Follow | Supply:
        return Supply("b") if question.title == "_socket.py" else Follow()

    result = written("m.py", {}, "python", on_link=on_link)
    assert grants(result.root_document) == [(15, "socket.py", None), (30, "_socket.py", None)]


def test_a_supplied_text_takes_no_title_of_another_spelling(monkeypatch: pytest.MonkeyPatch) -> None:
    def on_link(question: LinkQuestion) -> Follow | Supply:
        return Supply("b") if question.title == "queue.py" else Follow()

    follow(monkeypatch, {"m.py": "import queue\nimport Queue\nx"})
    runtime = small_runtime(link_format="python")
    options = {"max_new_tokens": 40, "seed": 0, "on_link": on_link}
    result = runtime.generate("", corpus=Folding({"Queue.py": "c"}), title="m.py", **options)
    assert [title for _, title, _ in grants(result.root_document)] == ["queue.py", "Queue.py"]


def test_the_stream_names_the_candidate_that_was_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, {"m.py": "import a.b\nfrom c import d\n"})
    config: dict[str, Any] = {"allow_corpus_fallback": False, "seed": 0}
    corpus = Texts({"a/b/__init__.py": "x"})
    events = list(small_runtime(link_format="python").stream("", corpus=corpus, title="m.py", **config))
    told = [(event.text, event.target, event.outcome) for event in events if isinstance(event, LinkClosed)]
    assert told == [("a.b", "a/b/__init__.py", "corpus"), ("c.d", "c.py", "not_followed")]


def test_a_latex_file_is_written_and_reads_what_it_cites(monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = {
        "sections/method.tex": r"As \citet{su2021} do.",
        "su2021": "RoFormer",
        "knuth84": "The TeXbook",
        "Knuth84": "no",
    }
    text = r"\input{method}% \cite{no}" + "\n" + r"\citep[p.~3]{knuth84,su2021}."
    follow(monkeypatch, {"sections/all.tex": text})
    result = written("sections/all.tex", corpus, "latex", allow_corpus_fallback=False)
    assert [document.title for document in result.auxiliary_documents] == ["su2021", "sections/method.tex", "knuth84"]
    assert grants(result.root_document) == [
        (1 + len(r"\input{method}"), "sections/method.tex", None),
        (len(text), "knuth84", None),
        (len(text), "su2021", None),
    ]


def test_a_wiki_page_is_written_and_reads_what_it_links_to(monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = {"Garbage collection": "see [[Tree#Roots|trees]]", "Tree": "[[no"}
    text = "A [[garbage_collection]] <nowiki>[[Tree]]</nowiki> [[Garbage collection|GC]]"
    follow(monkeypatch, {"Page": text})
    result = written("Page", corpus, "wikilinks", allow_corpus_fallback=False)
    assert [document.title for document in result.auxiliary_documents] == ["Tree", "Garbage collection"]
    # Texts knows no other spelling than its own: the first link leads nowhere.
    assert grants(result.root_document) == [(1 + len(encode(text)), "Garbage collection", None)]


def test_the_models_format_counts_unless_another_is_asked_for(monkeypatch: pytest.MonkeyPatch, plugins: Any) -> None:
    settings = {**small_model().config.to_dict(), "link_detector": "wikilinks"}
    model = DS2DSModel.from_config(**settings)
    follow(monkeypatch, {"": "[m](M) [[W]] @S!"})
    corpus = Texts({"M": "m", "W": "w", "S": "s"})
    for format, expected in [(None, ["W"]), ("markdown", ["M"]), (Shouting(), ["S"]), ("null", [])]:
        for front in (
            Runtime(model, TOKENIZER, link_format=format, arena_tokens=2048),
            LinkedDocumentGenerator(model, tokenizer=TOKENIZER, link_format=format),
        ):
            config = GenerationConfig(eos_token_id=0, max_context_length=512)
            result = front.generate("x", corpus=corpus, config=config)
            assert [document.title for document in result.auxiliary_documents] == expected
    with pytest.raises(ConfigError, match="no link format 'html'; there are"):
        Runtime(model, TOKENIZER, link_format="html")


# Checkpoints


def test_a_model_of_an_unknown_format_is_refused_when_it_is_loaded(tmp_path: Path) -> None:
    settings = small_model().config.to_dict()
    for name in NAMES:
        assert ModelConfig.from_dict({**settings, "link_detector": name}).link_detector == name
        assert load_run(write_run(tmp_path / name, tied_state(), link_detector=name)).config.link_detector == name
    assert load_run(write_run(tmp_path / "none", tied_state(), link_detector=None)).config.link_detector == "markdown"
    for name in ("go", "markdown_link_detector", ""):
        with pytest.raises(ConfigError, match=f"no link format '{name}'; there are: markdown, "):
            ModelConfig.from_dict({**settings, "link_detector": name})
        with pytest.raises(
            CheckpointError, match=rf"hyperparameters.json: there is no link format '{name}'; there are"
        ):
            load_run(write_run(tmp_path / f"run{name}", tied_state(), link_detector=name))
    with pytest.raises(ConfigError, match=r"link_detector must be the name of a link format, got \['markdown'\]"):
        ModelConfig.from_dict({**settings, "link_detector": ["markdown"]})


# Corpora


def small_corpus(folder: Path, links: str | None) -> Path:
    write_corpus(
        folder, [SourceDocument("a.py", "import b\n"), SourceDocument("b.py", "x = 1\n")], links=links, search=False
    )
    return folder


def test_a_corpus_of_another_format_than_the_models_is_refused(tmp_path: Path) -> None:
    corpus = small_corpus(tmp_path / "python", "python")
    model = DS2DSModel.from_config(**{**small_model().config.to_dict(), "vocab_size": 50257, "max_seq_len": 64})
    options: dict[str, Any] = {"max_new_tokens": 1, "max_context_length": 64}
    with pytest.raises(
        ConfigError, match="corpus has links of the format 'python', the runtime reads 'markdown': choose"
    ):
        Runtime(model, arena_tokens=512).generate("x", corpus=corpus, **options)
    for format in ("python", "null"):
        Runtime(model, link_format=format, arena_tokens=512).generate("x", corpus=corpus, **options)
    silent = small_corpus(tmp_path / "silent", None)  # as a corpus that others wrote
    assert "link_format" not in json.loads((silent / "metadata.json").read_text())
    Runtime(model, arena_tokens=512).generate("x", corpus=silent, **options)


# The command


def test_generate_takes_a_link_format(tmp_path: Path) -> None:
    run = CliRunner()
    result = run.invoke(app, ["generate", "x", "--link-format", "html", "--corpus", "none"])
    assert result.exit_code != 0
    assert "no link format 'html'; there are: markdown" in str(result.exception) + result.output
    corpus = small_corpus(tmp_path / "corpus", "python")
    command = ["generate", "import b\n", "--title", "m.py", "--corpus", str(corpus), "--max-new-tokens", "1", "--json"]
    shown = run.invoke(app, [*command, "--link-format", "python"])
    assert shown.exit_code == 0, shown.output
    assert [document["title"] for document in json.loads(shown.stdout)["auxiliary_documents"]] == ["b.py"]
    refused = run.invoke(app, command)
    assert "the corpus has links of the format 'python'" in str(refused.exception) + refused.output
