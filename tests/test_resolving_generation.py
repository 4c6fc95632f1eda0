"""Links whose targets are not quite titles: what they bring in, what they never do, and what the result says of it."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from scripted import EOS, TOKENIZER, Texts, encode, follow, small_runtime
from scripted import run as generate
from titled import Titled
from typer.testing import CliRunner

from ds2ds import (
    ConfigError,
    CorpusError,
    DocumentClosed,
    DocumentContext,
    DocumentCorpus,
    DocumentOpened,
    GeneratedDocument,
    GenerationConfig,
    LinkClosed,
    Match,
    PromptLinkProcessor,
    ResolvingCorpus,
    Runtime,
    TokenWritten,
)
from ds2ds.cli import app
from ds2ds.cli.rendering import TerminalRenderer
from ds2ds.corpus.build.writer import SourceDocument, write_corpus
from ds2ds.corpus.resolving import edit, embeddings
from ds2ds.corpus.resolving.edit import EditResolver
from ds2ds.documents.content import content_of
from ds2ds.documents.document import Document
from ds2ds.generation.save import graph, save_result

ALL = ("exact", "folded", "edit:0.85")


class Library(Texts):
    """Texts that lists its titles."""

    def titles(self) -> Any:
        return iter(self.texts)


LIBRARY = {
    "compiler": "about compilers",
    "linked list": "about lists",
    "Graph": "see [trees](forest)",
    "forests": "f",
}


def reads(document: Any) -> list[tuple[str, str, str | None, float | None]]:
    return [(grant.title, grant.link, grant.resolved_by, grant.score) for grant in document.grants]


def links(prompt: str, corpus: Any, **options: Any) -> list[tuple[str, str, str, str | None]]:
    """(target, outcome, reason, resolver) of each link."""
    events = small_runtime().stream(prompt, corpus=corpus, seed=0, **options)
    return [(e.target, e.outcome, e.reason, e.resolved_by) for e in events if isinstance(e, LinkClosed)]


# What is recorded


def test_the_result_says_how_each_target_was_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    follow(monkeypatch, {"": " [l](LINKED-LIST) and [q](Quux) end", "Quux": "q"})
    prompt = "[c](compilers) [c](compiler)"
    result = generate(prompt, Library(LIBRARY), title_resolution=ALL)
    assert reads(result.root_document) == [
        ("compiler", "compilers", "edit", 0.8889),  # the grant is the first link's
        ("linked list", "LINKED-LIST", "folded", 1.0),
        ("Quux", "Quux", None, None),
    ]
    assert result.trace.links_resolved_by == {"edit": 1, "exact": 1, "folded": 1}
    assert (result.trace.links_from_corpus, result.trace.links_already_in_view) == (2, 1)
    edges = [(edge["link"], edge["resolved_by"], edge["score"]) for edge in graph(result)["edges"]]
    assert edges == [("compilers", "edit", 0.8889), ("LINKED-LIST", "folded", 1.0), ("Quux", None, None)]
    save_result(result, tmp_path / "out")
    saved = json.loads((tmp_path / "out" / "result.json").read_text())
    assert saved["root_document"]["grants"][0]["resolved_by"] == "edit"
    assert saved["generation_config"]["title_resolution"] == list(ALL)


def test_links_that_close_tell_it(monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, {"": " end", "Q": "q"})
    events = list(small_runtime().stream("[c](compilers) [q](Q)", corpus=Library(LIBRARY), title_resolution=ALL))
    first, second = (event for event in events if isinstance(event, LinkClosed))
    assert (first.target, first.outcome, first.resolved_by, first.score) == ("compilers", "corpus", "edit", 0.8889)
    assert (second.target, second.outcome, second.resolved_by, second.score) == ("Q", "generated", None, None)


def test_links_of_corpus_documents_are_resolved_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, {"": " end"})
    result = generate("[g](graph!)", Library(LIBRARY), title_resolution="folded,edit:0.7", max_link_depth=2)
    found = {document.title: reads(document) for document in result.get_all_documents()}
    assert found["root"] == [("Graph", "graph!", "folded", 1.0)]
    assert found["Graph"] == [("forests", "forest", "edit", 0.8571)]


def test_by_itself_nothing_is_resolved_but_by_the_corpus_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, {"": " end", "compilers": "written"})
    for options in ({}, {"title_resolution": "exact"}, {"title_resolution": ()}):
        result = generate("[c](compilers) [l](linked list)", Library(LIBRARY), **options)
        assert reads(result.root_document) == [
            ("compilers", "compilers", None, None),
            ("linked list", "linked list", "exact", 1.0),
        ]


def test_a_document_is_computed_alike_whatever_led_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, {"": " end"})
    runtime = small_runtime()
    options = {"corpus": Library(LIBRARY), "title_resolution": ALL}
    first = runtime.generate("[c](compiler)", **options)
    again = runtime.generate("[c](compilers)", **options)
    assert (first.trace.documents_reused, again.trace.documents_reused) == (0, 1)
    target = Document("compiler", [1, 2])
    contents = []
    for link, match in (("", None), ("compilers", Match("compiler", "edit", 0.9))):
        reader = Document("r", [3, 4, 5])
        reader.add_grant(1, target, link, match)
        contents.append(content_of(reader).digest)
    assert contents[0] == contents[1]


def test_an_evicted_grant_keeps_what_led_to_it() -> None:
    target, reader = Document("compiler", [1]), Document("r", [3, 4, 5], capacity=9, settled=3)
    reader.add_grant(1, target, "compilers", Match("compiler", "edit", 0.9))
    reader.end_grants(target)
    (grant,) = reader.grants
    assert (grant.end, grant.link, grant.match) == (3, "compilers", Match("compiler", "edit", 0.9))


# What is never done


def test_an_exact_title_wins_over_all_that_is_like_it(monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, {"": " end"})
    corpus = Library({"compilers": "many", "compiler": "one"})
    for resolution in (("exact", "edit"), ("edit",), "redirects=FILE"):
        monkeypatch.setattr("ds2ds.corpus.resolving.making.read_redirects", lambda path: {"compiler": "compilers"})
        result = generate("[c](compiler)", corpus, title_resolution=resolution)
        assert reads(result.root_document) == [("compiler", "compiler", "exact", 1.0)]


@pytest.mark.parametrize("max_auxiliary_documents", [1, 5])
def test_what_the_corpus_has_just_so_wins_over_another_spelling_that_was_written(
    monkeypatch: pytest.MonkeyPatch, max_auxiliary_documents: int
) -> None:
    follow(monkeypatch, {"": " end", "compiler": "written", "COMPILER": " end"})
    corpus = Library({"Compiler": "one"})  # it knows titles only as they are
    prompt = "[a](compiler) [b](Compiler) [c](compiler) [d](Compiler)"
    assert links(prompt, corpus, max_auxiliary_documents=max_auxiliary_documents) == [
        ("compiler", "generated", "", None),
        ("Compiler", "corpus", "", "exact"),
        ("compiler", "in_view" if max_auxiliary_documents == 5 else "generated", "", None),
        ("Compiler", "in_view" if max_auxiliary_documents == 5 else "corpus", "", "exact"),
    ]
    assert links("[me](Compiler)", corpus, title="COMPILER") == [
        ("Compiler", "not_followed", "a link to itself", "exact")
    ]


def test_a_document_in_view_wins_over_what_is_like_it_in_the_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    context = DocumentContext(max_context_length=200)
    tokens = encode("[c](compilers)")
    context.initialize_root(tokens)
    written = context.start_auxiliary_generation("Compilers", [7])
    context.complete_current_document()
    config = GenerationConfig(max_context_length=200, eos_token_id=EOS, title_resolution=ALL)
    PromptLinkProcessor(TOKENIZER).process_prompt(tokens, context, Library(LIBRARY), config)
    assert [(grant.target, grant.match) for grant in context.root.grants] == [(written, None)]


@pytest.mark.parametrize("max_auxiliary_documents", [1, 5])
def test_a_written_document_wins_in_view_and_evicted(
    monkeypatch: pytest.MonkeyPatch, max_auxiliary_documents: int
) -> None:
    script = {"": " [a](alphabet soup) [b](Bee) [a](Alphabet Soup) end", "alphabet soup": "written", "Bee": "b"}
    follow(monkeypatch, script)

    corpus = Library({"alphabet soups": "another"})
    calls: list[str] = []
    real = EditResolver.find

    def find(self: EditResolver, title: str) -> Match | None:
        calls.append(title)  # the first time it finds nothing, so that the document is written
        return None if len(calls) == 1 else real(self, title)

    monkeypatch.setattr(EditResolver, "find", find)
    result = generate("p", corpus, title_resolution="edit", max_auxiliary_documents=max_auxiliary_documents)
    granted = ["alphabet soup", "Bee", "alphabet soup"]  # in view, the first grant still holds
    assert [grant.title for grant in result.root_document.grants] == granted[: 3 if max_auxiliary_documents == 1 else 2]
    assert calls == ["alphabet soup", "Bee"]  # the third was not asked for


@pytest.mark.parametrize(
    ("title", "link", "resolver"), [("Compiler", "compilers", "edit"), ("linked list", "Linked-List", "folded")]
)
def test_a_link_to_itself_grants_nothing_however_it_is_spelt(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, title: str, link: str, resolver: str
) -> None:
    follow(monkeypatch, {title: " end"})
    write_corpus(
        tmp_path / "c", [SourceDocument(name, "text") for name in LIBRARY], "bytes", tokenizer=TOKENIZER, search=False
    )
    with DocumentCorpus(tmp_path / "c") as corpus:
        found = links(f"[me]({link})", corpus, title=title, title_resolution=ALL)
    assert found == [(link, "not_followed", "a link to itself", resolver)]


def test_a_link_to_an_ancestor_grants_nothing_however_it_is_spelt(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {
        "compiler": "see [l](Linked-Lists) and [c](compilers)",
        "linked list": "see [c](a compiler) [l](linkedlist)",
    }
    follow(monkeypatch, {"": " end"})
    options = {"title_resolution": "folded,edit:0.75", "max_link_depth": 4, "allow_corpus_fallback": False}
    assert links("[c](Compiler)", Library(texts), **options) == [
        ("Compiler", "corpus", "", "folded"),
        ("Linked-Lists", "corpus", "", "edit"),
        ("a compiler", "not_followed", "a document still being written", "edit"),
        ("linkedlist", "not_followed", "a link to itself", "folded"),
        ("compilers", "not_followed", "a link to itself", "edit"),
    ]


def test_what_is_ambiguous_is_written_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, {"": " end", "commmutator": "written"})
    corpus = Library({"commutator": "one", "commutators": "two", "com-mutator": "three"})
    assert links("[c](commmutator)", corpus, title_resolution="folded") == [("commmutator", "generated", "", None)]
    result = generate("[c](comm mutator)", Library({"commutator": "1"}), title_resolution="edit:0.8")
    assert reads(result.root_document) == [("commutator", "comm mutator", "edit", 0.8333)]


# Corpora


def test_a_resolving_corpus_uses_its_resolvers_unless_the_request_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, {"": " end", "compilers": "written", "Thing": "written"})

    class Mine:
        name = "mine"

        def find(self, title: str) -> Match | None:
            return Match("compiler", self.name, 0.25) if title == "Thing" else None

    corpus = ResolvingCorpus(Library(LIBRARY), [Mine()])
    assert reads(generate("[t](Thing)", corpus).root_document) == [("compiler", "Thing", "mine", 0.25)]
    assert reads(generate("[t](Thing)", corpus, title_resolution="edit").root_document) == [
        ("Thing", "Thing", None, None)
    ]
    assert reads(generate("[c](compilers)", corpus, title_resolution="exact").root_document) == [
        ("compilers", "compilers", None, None)
    ]


def test_warm_through_a_resolving_corpus() -> None:
    runtime = small_runtime()
    corpus = ResolvingCorpus(Library(LIBRARY), ["edit"])
    assert runtime.warm(["compiler"], corpus).documents == ["compiler"]
    with pytest.raises(CorpusError, match="no documents titled"):
        runtime.warm(["Ω"], corpus)


def test_a_corpus_of_another_tokenizer_is_refused_through_its_resolvers(tmp_path: Path) -> None:
    write_corpus(tmp_path / "c", [SourceDocument("A", "text")], search=False)
    with DocumentCorpus(tmp_path / "c") as corpus, pytest.raises(ConfigError, match="was made with tokenizer 'gpt2'"):
        small_runtime().generate("x", corpus=ResolvingCorpus(corpus, ["edit"]))


def test_what_is_wrong_is_told_at_once() -> None:
    runtime = small_runtime()
    with pytest.raises(ConfigError, match="resolver 'edit' needs a corpus that lists its titles"):
        runtime.stream("x", corpus=Texts({}), title_resolution="edit")
    with pytest.raises(ConfigError, match="cannot read"):
        runtime.stream("x", corpus=Titled("A"), title_resolution="redirects=nowhere.json")
    runtime.generate("x", title_resolution="edit", max_new_tokens=1)  # no corpus: nothing to resolve


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (5, "title_resolution must be a string or a sequence of strings, got 5"),
        ("fuzzy", "title_resolution: unknown resolver 'fuzzy'"),
        (["folded", "exact"], "title_resolution: resolver 'exact' is always the first"),
        ([None], "title_resolution: a resolver is written as a string, got None"),
        ("edit:2", "title_resolution: resolver 'edit:2': its minimum must be in"),
    ],
)
def test_settings_that_are_wrong(given: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        GenerationConfig(title_resolution=given)


def test_settings_in_either_form() -> None:
    assert GenerationConfig(title_resolution="folded, edit").title_resolution == ("exact", "folded", "edit")
    assert GenerationConfig(title_resolution=["exact", "edit"]).title_resolution == ("exact", "edit")
    assert GenerationConfig(title_resolution="").title_resolution == ()
    assert GenerationConfig(title_resolution="edit").to_dict()["title_resolution"] == ["exact", "edit"]


# The command line


def ds2ds(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("resolve") / "corpus"
    write_corpus(out, [SourceDocument(title, "text") for title in LIBRARY], search=False, redirects={"CC": "compiler"})
    return str(out)


def test_resolve_tells_what_each_resolver_finds(corpus: str) -> None:
    done = ds2ds("corpus", "resolve", "Compilers", "-c", corpus)
    assert (done.exit_code, done.stdout) == (0, "exact\t-\nfolded\t-\nredirects\t-\nedit\tcompiler\t0.89\n")
    done = ds2ds("corpus", "resolve", "cc", "-c", corpus)
    assert (done.exit_code, done.stdout) == (0, "exact\t-\nfolded\t-\nredirects\tcompiler\t1.00\nedit\t-\n")
    done = ds2ds("corpus", "resolve", "compilers", "-c", "demo")  # which has no redirects
    assert done.stdout.splitlines()[:2] == ["exact\t-", "folded\t-"] and "redirects" not in done.stdout
    done = ds2ds("corpus", "resolve", "cc", "-c", corpus, "--resolvers", "edit:0.5,redirects")
    assert (done.exit_code, done.stdout) == (0, "exact\t-\nedit:0.5\t-\nredirects\tcompiler\t1.00\n")
    done = ds2ds("corpus", "resolve", "Linked List", "-c", corpus)
    assert done.stdout == "exact\tlinked list\t1.00\nfolded\tlinked list\t1.00\nredirects\t-\nedit\tlinked list\t1.00\n"
    assert ds2ds("corpus", "resolve", "Ω", "-c", corpus).exit_code == 1
    assert isinstance(ds2ds("corpus", "resolve", "x", "-c", corpus, "--resolvers", "fuzzy").exception, ConfigError)


def test_generate_with_title_resolution(corpus: str, tmp_path: Path) -> None:
    arguments = ["generate", "[c](compilers)", "--corpus", corpus, "--max-new-tokens", "1", "--seed", "1"]
    out = tmp_path / "out"
    done = ds2ds(*arguments, "--title-resolution", "folded,edit", "--save", str(out))
    assert done.exit_code == 0, done.output
    assert re.search(r'^reads compiler \[\d+:\] \(as "compilers", edit 0\.89\)', done.stderr, flags=re.MULTILINE)
    assert "1 link (1 from the corpus; 1 by edit)" in done.stderr
    (edge,) = json.loads((out / "graph.json").read_text())["edges"]
    assert (edge["link"], edge["resolved_by"]) == ("compilers", "edit")
    assert isinstance(ds2ds(*arguments, "--title-resolution", "fuzzy").exception, ConfigError)


def test_a_terminal_shows_how_a_target_was_found() -> None:
    events = [
        DocumentOpened("Home", "generated", 0, None, ""),
        LinkClosed("Home", "c", "compilers", 3, "corpus", "", "edit", 0.8889),
        DocumentOpened("compiler", "corpus", 1, "Home", "text"),
        DocumentClosed("compiler", None, GeneratedDocument("compiler", tokens=[1, 2], source="corpus")),
        LinkClosed("Home", "l", "Linked-List", 5, "corpus", "", "folded", 1.0),
        DocumentOpened("linked list", "corpus", 1, "Home", "text"),
        DocumentClosed(
            "linked list", None, GeneratedDocument("linked list", tokens=[1], source="corpus", truncated=True)
        ),
        # A document that was evicted comes back without being opened: what is said of it is not said of the next.
        LinkClosed("Home", "c", "compilers", 6, "corpus", "", "edit", 0.8889),
        LinkClosed("Home", "g", "Graph", 7, "corpus", "", "exact", 1.0),
        DocumentOpened("Graph", "corpus", 1, "Home", "text"),
        DocumentClosed("Graph", None, GeneratedDocument("Graph", tokens=[1], source="corpus")),
        TokenWritten("Home", 1, "end", -1.0),
        DocumentClosed("Home", "eos", GeneratedDocument("Home", tokens=[1], text="end")),
    ]
    out = io.StringIO()
    renderer = TerminalRenderer(Console(file=out, width=100))
    for event in events:
        renderer.show(event)
    renderer.finish()
    assert [line.strip() for line in out.getvalue().splitlines() if "->" in line] == [
        '-> compiler (corpus, 2 tokens, as "compilers", edit 0.89)',
        '-> linked list (corpus, 1 token, cut, as "Linked-List", folded)',
        "-> Graph (corpus, 1 token)",
    ]


# What is written of the measurement

ROOT = Path(__file__).parent.parent


def test_the_page_on_titles_shows_the_measurement() -> None:
    sys.path.insert(0, str(ROOT / "bench"))
    try:
        from resolving import RESULT, markdown_table
    finally:
        sys.path.remove(str(ROOT / "bench"))
    page = (ROOT / "docs" / "titles.md").read_text(encoding="utf-8")
    assert markdown_table(RESULT) in page
    measured = json.loads(RESULT.read_text(encoding="utf-8"))
    assert measured["defaults"] == {"edit": edit.MINIMUM, "embeddings": embeddings.MINIMUM}
    took, large = measured["look_up_us"], measured["large"]
    assert (
        f"Among {measured['titles']:,} titles a look-up takes {took['exact']:.0f} µs (exact), {took['folded']:.0f} µs "
        f"(folded), {took['edit']:.0f} µs (edit) and {took['embeddings'] / 1e3:.0f} ms (embeddings"
    ) in " ".join(page.split())
    assert (
        f"among {large['titles']:,} titles, {large['folded']['look_up_us']:.0f} µs (folded) and "
        f"{large['edit']['look_up_us'] / 1e3:.0f} ms (edit)"
    ) in " ".join(page.split())


def test_the_python_of_the_page_runs() -> None:
    page = (ROOT / "docs" / "titles.md").read_text(encoding="utf-8")
    examples = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert len(examples) == 2
    names: dict[str, Any] = {
        "runtime": Runtime.from_pretrained("demo", max_queue=4),
        "prompt": "A [compilers](compilers)",
    }
    exec(examples[0], names)
    exec(examples[1], names)
    assert ("compiler", "compilers", "plurals", 1.0) in reads(names["result"].root_document)
