"""How titles find documents beyond the exact rule: each resolver, the chain, and how they are written."""

from __future__ import annotations

import json
import multiprocessing
import random
import threading
import time
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rapidfuzz import process
from scripted import Texts
from titled import Titled

from ds2ds import ConfigError, CorpusError, DocumentCorpus, Match, ResolvingCorpus
from ds2ds.corpus.build.markdown_folder import build_corpus
from ds2ds.corpus.build.writer import SourceDocument, write_corpus
from ds2ds.corpus.resolving.chain import ResolverChain
from ds2ds.corpus.resolving.edit import MOST_EDITS, EditResolver
from ds2ds.corpus.resolving.exact import ExactResolver
from ds2ds.corpus.resolving.folded import FoldedResolver, fold
from ds2ds.corpus.resolving.redirects import RedirectResolver, read_redirects
from ds2ds.corpus.resolving.resolver import Lazy
from ds2ds.corpus.resolving.specification import ResolverSpec, parse_resolver, resolver_order
from ds2ds.documents.title_utils import title_key

TITLES = ["compiler", "linked list", "Actor", "actor", "C", "C++", "C#", "café", "TCP/IP", "X.25", "garbage collection"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("resolving") / "corpus"
    redirects = {"GC": "garbage collection", "collector": "GC", "nothing": "nowhere"}
    write_corpus(out, [SourceDocument(title, "text") for title in TITLES], search=False, redirects=redirects)
    return out


# exact


def test_exact_is_what_the_corpus_says(folder: Path) -> None:
    with DocumentCorpus(folder) as corpus:
        exact = ExactResolver(corpus)
        for title in (*TITLES, "Linked_List", "ACTOR", "compilers", "\ud800"):
            resolved = corpus.resolve(title)
            assert exact.find(title) == (None if resolved is None else Match(resolved, "exact", 1.0))
    assert ExactResolver(Texts({"A": "x"})).find("A") == Match("A", "exact", 1.0)
    assert ExactResolver(Texts({"A": "x"})).find("a") is None


# folded


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("linked list", "Linked-List"),
        ("database", "data base"),
        ("TCP/IP", "tcp ip"),
        ("café", "CAFE"),
        ("cafe\u0301", "caf\u00e9"),
        ("Bézier", "bezier"),
        ("straße", "STRASSE"),
        ("ﬁle", "File"),
        ("Rock 'n' Roll", "rock ’n’ roll"),
        ("Yahoo!", "yahoo"),
        ("Hello (programme)", "hello programme"),
        ("がく", "か\u3099く"),
        ("line\ttab", "line_tab"),
    ],
)
def test_what_folds_to_the_same(one: str, other: str) -> None:
    assert fold(one) == fold(other) != ""


@pytest.mark.parametrize(
    ("one", "other"),
    [("C", "C++"), ("C", "C#"), ("C++", "C#"), ("A", "A*"), ("AT&T", "ATT"), ("か", "が"), ("compiler", "compilers")],
)
def test_what_stays_apart(one: str, other: str) -> None:
    assert fold(one) != fold(other)


@given(st.text())
def test_folding_twice_is_folding_once(title: str) -> None:
    assert fold(fold(title)) == fold(title)
    assert fold(title.upper().lower()) == fold(title.lower().upper().lower())


def test_folded_finds_the_only_title(folder: Path) -> None:
    with DocumentCorpus(folder) as corpus:
        folded = FoldedResolver(corpus)
        assert folded.find("LINKED-list") == Match("linked list", "folded", 1.0)
        assert folded.find("tcp-ip") == Match("TCP/IP", "folded", 1.0)
        assert folded.find("Cafe") == Match("café", "folded", 1.0)
        assert folded.find("ACTOR") is None  # two are called so
        assert folded.find("compilers") is None
        assert folded.find("!?") is None  # nothing is left of it


def test_folded_takes_a_title_that_stands_there_twice_for_one() -> None:
    assert FoldedResolver(Titled("big-o", "x", "big-o")).find("Big O") == Match("big-o", "folded", 1.0)
    assert FoldedResolver(Titled("big-o", "x", "bigo")).find("Big O") is None
    assert FoldedResolver(Titled()).find("Big O") is None


words = st.text(st.sampled_from("aAbB -1é"), max_size=6)


@given(st.lists(words, max_size=8), words)
def test_folded_equals_comparing_with_every_title(titles: list[str], title: str) -> None:
    same = {other for other in titles if fold(other) == fold(title) != ""}
    expected = Match(same.pop(), "folded", 1.0) if len(same) == 1 else None
    assert FoldedResolver(Titled(*titles)).find(title) == expected


def test_titles_whose_hashes_collide_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ds2ds.corpus.resolving.folded.hash", lambda folded: len(folded), raising=False)
    folded = FoldedResolver(Titled("ab", "cd", "ef"))
    assert folded.find("C-D") == Match("cd", "folded", 1.0)
    assert folded.find("G-H") is None


# redirects


def redirects(corpus: Any, names: dict[str, str]) -> RedirectResolver:
    return RedirectResolver(corpus, names, "names.json")


def test_redirects_lead_through_others(folder: Path) -> None:
    with DocumentCorpus(folder) as corpus:
        found = redirects(corpus, {"GC": "garbage collection", "collector": "GC", "nothing": "nowhere"})
        for name in ("GC", "gc", "collector", "Collector"):
            assert found.find(name) == Match("garbage collection", "redirects", 1.0)
        assert found.find("nothing") is None and found.find("compiler") is None


def test_a_redirect_ends_at_the_first_document(folder: Path) -> None:
    with DocumentCorpus(folder) as corpus:
        assert redirects(corpus, {"a": "Compiler", "Compiler": "C"}).find("a") == Match("compiler", "redirects", 1.0)


def test_names_that_differ_in_case() -> None:
    corpus = Titled("one", "two")
    found = redirects(corpus, {"IT": "one", "it": "two"})
    assert found.find("IT") == Match("one", "redirects", 1.0) and found.find("it") == Match("two", "redirects", 1.0)
    assert found.find("It") is None  # either might be meant
    assert redirects(corpus, {"IT": "one", "it": "one"}).find("It") == Match("one", "redirects", 1.0)


@pytest.mark.parametrize(
    ("names", "circle"),
    [
        ({"a": "a"}, "'a' -> 'a'"),
        ({"a": "b", "b": "a"}, "'a' -> 'b' -> 'a'"),
        ({"x": "a", "a": "b", "b": "c", "c": "a"}, "'a' -> 'b' -> 'c' -> 'a'"),
        ({"ok": "one", "a": "B", "b": "A"}, "'B' -> 'A' -> 'B'"),
    ],
)
def test_circles_are_named(names: dict[str, str], circle: str) -> None:
    with pytest.raises(CorpusError) as raised:
        redirects(Titled("one"), names)
    assert str(raised.value) == f"names.json go in a circle: {circle}"


def test_a_circle_with_a_document_in_it_ends_there() -> None:
    found = redirects(Titled("one"), {"one": "uno", "uno": "one", "One": "ONE"})
    assert found.find("uno") == Match("one", "redirects", 1.0)


names = st.sampled_from("abcdefg")


@given(st.dictionaries(names, names), st.sets(names), names)
def test_redirects_equal_following_them_one_by_one(table: dict[str, str], titles: set[str], name: str) -> None:
    def follow(start: str) -> str | None:
        at = start
        for _ in range(10):
            if at not in table:
                return None
            at = table[at]
            if at in titles:
                return at
        return "circle"

    if any(follow(start) == "circle" for start in table):
        with pytest.raises(CorpusError, match="go in a circle"):
            redirects(Titled(*titles), table)
        return
    expected = follow(name)
    assert redirects(Titled(*titles), table).find(name) == (expected and Match(expected, "redirects", 1.0))


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (None, ConfigError, "cannot read"),
        ("{", CorpusError, "not valid JSON"),
        ("[" * 100_000, CorpusError, "not valid JSON"),
        ("[]", CorpusError, "expected a JSON object of names and titles, got list"),
        ('{"a": 1}', CorpusError, "the redirect of 'a' must be a title, got 1"),
        ('{"a": ""}', CorpusError, "the redirect of 'a' must be a title, got ''"),
    ],
)
def test_files_of_redirects_that_are_wrong(
    tmp_path: Path, content: str | None, error: type[Exception], message: str
) -> None:
    path = tmp_path / "names.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(error, match=message) as raised:
        read_redirects(path)
    assert str(path) in str(raised.value)


def test_redirects_of_the_corpus_and_of_a_file(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text(json.dumps({"list": "linked list"}))
    with DocumentCorpus(folder) as corpus:
        assert corpus.resolver("redirects").find("gc") == Match("garbage collection", "redirects", 1.0)
        mine = corpus.resolver(f"redirects={tmp_path / 'mine.json'}")
        assert mine.find("list") == Match("linked list", "redirects", 1.0) and mine.find("gc") is None
    with DocumentCorpus("demo") as demo, pytest.raises(ConfigError, match=r"cannot read .*redirects\.json"):
        demo.resolver("redirects")
    with pytest.raises(ConfigError, match="needs a file, redirects=FILE: Titled has no folder"):
        ResolvingCorpus(Titled("A"), ["redirects"])


def test_aliases_of_notes_become_redirects(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    (notes / "sub").mkdir(parents=True)
    (notes / "Garbage collection.md").write_text("---\naliases: [GC, Shared, garbage_collection]\n---\nText.")
    (notes / "Other.md").write_text("---\naliases: [Shared, Linker]\n---\nText.")
    (notes / "Linker.md").write_text("Text.")
    (notes / "sub" / "Linker.md").write_text("Text.")
    build_corpus(notes, tmp_path / "corpus", search=False)
    # "Shared" is two notes', "Linker" three notes', and "garbage_collection" needs no redirect.
    assert json.loads((tmp_path / "corpus" / "redirects.json").read_text()) == {"GC": "Garbage collection"}
    build_corpus(notes / "sub", tmp_path / "plain", search=False)
    assert not (tmp_path / "plain" / "redirects.json").exists()


def test_files_named_otherwise_than_their_notes_become_redirects(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "gc.md").write_text("---\ntitle: Garbage collection\n---\n[[home]]")
    (notes / "home.md").write_text("---\ntitle: The start\n---\nText.")
    (notes / "Other.md").write_text("---\naliases: [home]\n---\nText.")
    build_corpus(notes, tmp_path / "corpus", search=False)
    # The notes' own links take "home" for the file's name: it must not lead to the note that has it for an alias.
    assert json.loads((tmp_path / "corpus" / "redirects.json").read_text()) == {"gc": "Garbage collection"}


# edit


def edits_between(one: str, other: str) -> int:
    """Optimal string alignment, from its definition."""
    table = [[i + j if 0 in (i, j) else 0 for j in range(len(other) + 1)] for i in range(len(one) + 1)]
    for i in range(1, len(one) + 1):
        for j in range(1, len(other) + 1):
            replaced = table[i - 1][j - 1] + (one[i - 1] != other[j - 1])
            table[i][j] = min(table[i - 1][j] + 1, table[i][j - 1] + 1, replaced)
            if i > 1 and j > 1 and one[i - 1] == other[j - 2] and one[i - 2] == other[j - 1]:
                table[i][j] = min(table[i][j], table[i - 2][j - 2] + 1)
    return table[-1][-1]


def edit_by_brute_force(titles: Sequence[str], title: str, minimum: float) -> Match | None:
    key = title_key(title)
    scored = []
    for other in dict.fromkeys(titles):
        near = title_key(other)
        digits = [[c for c in text if c.isdecimal()] for text in (key, near)]
        edits, longer = edits_between(key, near), max(len(key), len(near))
        if key and near and digits[0] == digits[1] and edits <= MOST_EDITS and 1 - edits / longer >= minimum:
            scored.append((edits, 1 - edits / longer, other))
    best = [(score, other) for edits, score, other in scored if edits == min(scored)[0]]
    return Match(best[0][1], "edit", round(best[0][0], 4)) if len(best) == 1 else None


# Short words of few letters are a slip or two from each other; the others are of every kind.
letters = st.text(st.sampled_from("ab"), min_size=1, max_size=5) | st.text(
    st.sampled_from("abAB 1"), min_size=1, max_size=9
)


@given(st.lists(letters, max_size=8), letters, st.sampled_from([0.1, 0.5, 0.75, 0.85, 0.875, 1.0]))
def test_edit_equals_comparing_with_every_title(titles: list[str], title: str, minimum: float) -> None:
    found = EditResolver(Titled(*titles), minimum).find(title)
    assert found == edit_by_brute_force(titles, title, minimum)


# What shares its bit with another character, and what is beyond 16 bits, is told apart all the same.
strange = st.text(st.sampled_from("a!A\x01é中\U0001f600"), min_size=1, max_size=12)


@given(st.lists(strange, max_size=8), strange, st.data())
def test_edit_equals_comparing_with_every_title_whatever_its_letters(
    titles: list[str], title: str, data: st.DataObject
) -> None:
    near = [title[:at] + data.draw(strange)[:2] + title[at + 1 :] for at in range(len(title))]
    found = EditResolver(Titled(*titles, *near[:3]), 0.5).find(title)
    assert found == edit_by_brute_force([*titles, *near[:3]], title, 0.5)


def test_of_many_titles_edit_compares_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests wait for a look-up, which is part of a step."""
    dice, compared = random.Random(0), []
    titles = ["".join(dice.choices("etaoinshrdlucm", k=12)) for _ in range(10_000)]
    extract = process.extract

    def counted(key: str, keys: Sequence[str], **options: Any) -> Any:
        compared.append(len(keys))
        return extract(key, keys, **options)

    resolver = EditResolver(Titled(*titles))
    monkeypatch.setattr(process, "extract", counted)
    for title in titles[:50]:
        slipped = f"{title[:5]}x{title[6:]}"
        assert resolver.find(slipped) == Match(title, "edit", 0.9167)
    assert sum(compared) < 50 * len(titles) // 20


def test_edit_finds_slips(folder: Path) -> None:
    with DocumentCorpus(folder) as corpus:
        edit = EditResolver(corpus, 0.85)
        for title in ("compilers", "Compilre", "copmiler", "kompiler", "compilr"):
            match = edit.find(title)
            assert match is not None and match.title == "compiler", title
        assert edit.find("compilers") == Match("compiler", "edit", 0.8889)
        assert edit.find("garbige colection") == Match("garbage collection", "edit", 0.8889)
        assert edit.find("linked-lists") is None  # two edits in twelve letters
        assert edit.find("X.29") is None and edit.find("C--") is None and edit.find("") is None
        assert edit.find("ACTOR") is None  # it is as near to both


def test_edit_refuses_what_two_titles_are_as_near_to() -> None:
    corpus = Titled("commutator", "computator", "something")
    edit = EditResolver(corpus, 0.8)
    assert edit.find("compmutator") is None
    assert edit.find("comutator") is None
    assert EditResolver(Titled("stack", "stackses"), 0.5).find("stacks") == Match("stack", "edit", 0.8333)
    assert EditResolver(Titled("stack", "stacksy"), 0.5).find("stacks") is None  # an edit each
    # One edit wins over the two that are looked at before it.
    assert EditResolver(Titled("shacky", "stack"), 0.5).find("stacks") == Match("stack", "edit", 0.8333)
    assert edit.find("commutatorr") == Match("commutator", "edit", 0.9091)
    assert EditResolver(Titled("abcdefgh", "abcdefgh"), 0.8).find("abcdefghi") == Match("abcdefgh", "edit", 0.8889)


def test_digits_are_no_slips() -> None:
    edit = EditResolver(Titled("Windows Version 95"), 0.8)
    assert edit.find("Windows Version 98") is None and edit.find("Windows Version 9") is None
    assert edit.find("Window Version 95") == Match("Windows Version 95", "edit", 0.9444)


def test_the_digits_of_a_nearer_title_do_not_hide_another() -> None:
    edit = EditResolver(Titled("Document format 12", "Documents formats 1"), 0.8)
    assert edit.find("Document format 1") == Match("Documents formats 1", "edit", 0.8947)


def test_at_most_two_edits_however_long_the_title() -> None:
    edit = EditResolver(Titled("breadth-first search in trees and other graphs"), 0.85)
    assert edit.find("breadt-first search in trees and othr graphs") is not None
    assert edit.find("depth-first search in trees and other graphs") is None


def test_the_closest_titles_for_a_person() -> None:
    edit = EditResolver(Titled("X.25", "X.29", "X.400", "compiler", "ZZZ"))
    assert [match.title for match in edit.closest("X.28", 5, 0.6)] == ["X.25", "X.29"]
    assert edit.closest("X.28", 1, 0.6) == [Match("X.25", "edit", 0.75)]
    assert edit.closest("", 5, 0.6) == edit.closest("qqqq", 5, 0.6) == []


@pytest.mark.parametrize("minimum", [0, -1, 1.5])
def test_minimums_out_of_range(minimum: float) -> None:
    with pytest.raises(ConfigError, match=r"the minimum of resolver 'edit' must be in \(0, 1\], got"):
        EditResolver(Titled("A"), minimum)


# The chain


class Fixed:
    """Finds what it is told to."""

    def __init__(self, name: str, found: dict[str, str]) -> None:
        self.name = name
        self._found = found
        self.asked = 0

    def find(self, title: str) -> Match | None:
        self.asked += 1
        return Match(self._found[title], self.name, 0.5) if title in self._found else None


tables = st.dictionaries(st.sampled_from("abc"), st.sampled_from("xyz"))


@given(st.lists(tables, max_size=4), st.sampled_from("abcd"))
def test_the_chain_equals_trying_each_in_order(found: list[dict[str, str]], title: str) -> None:
    resolvers = [Fixed(str(number), table) for number, table in enumerate(found)]
    answers = [resolver.find(title) for resolver in resolvers]
    expected = next((answer for answer in answers if answer is not None), None)
    assert ResolverChain(resolvers).find(title) == expected


def test_the_chain_stops_at_the_first_that_finds() -> None:
    first, second = Fixed("one", {"a": "x"}), Fixed("two", {"a": "y"})
    assert ResolverChain([first, second]).find("a") == Match("x", "one", 0.5)
    assert (first.asked, second.asked) == (1, 0)
    assert ResolverChain([first, second]).find("\ud800") is None  # no corpus has such a title
    assert (first.asked, second.asked) == (1, 0)


# ResolvingCorpus


def test_a_resolving_corpus_asks_its_own_rule_first(folder: Path) -> None:
    with DocumentCorpus(folder) as documents:
        mine = Fixed("mine", {"compiler": "C", "thing": "Actor", "gone": "not there"})
        corpus = ResolvingCorpus(documents, ["exact", "folded", mine, "edit:0.88"])
        assert corpus.match("Compiler") == Match("compiler", "exact", 1.0)
        assert corpus.match("linked-list") == Match("linked list", "folded", 1.0)
        assert corpus.match("thing") == Match("Actor", "mine", 0.5)
        assert corpus.match("compilers") == Match("compiler", "edit", 0.8889)
        assert corpus.resolve("compilers") == "compiler" and corpus.resolve("Ω") is None
        assert corpus.has_document("compilers") and not corpus.has_document("Ω")
        assert corpus.get_document("compilers").tolist() == documents.get_document("compiler").tolist()
        assert corpus.get_document("Ω") is None


def test_resolving_corpora_that_cannot_be_made(folder: Path) -> None:
    with DocumentCorpus(folder) as corpus:
        with pytest.raises(ConfigError, match="give all resolvers at once"):
            ResolvingCorpus(ResolvingCorpus(corpus, []), [])
        with pytest.raises(ConfigError, match="must be a sequence of resolvers or their names, got 'edit'"):
            ResolvingCorpus(corpus, "edit")
        with pytest.raises(ConfigError, match="unknown resolver 'fuzzy'"):
            ResolvingCorpus(corpus, ["fuzzy"])
    for name in ("folded", "edit"):
        with pytest.raises(
            ConfigError, match=f"resolver '{name}' needs a corpus that lists its titles.*Texts has none"
        ):
            ResolvingCorpus(Texts({}), [name])


# State


def test_titles_are_read_once_by_the_first_look_up() -> None:
    titled = Titled(*TITLES)
    corpus = ResolvingCorpus(titled, ["edit"])
    assert titled.listed == 1  # this corpus gives none by number: they are kept
    for _ in range(3):
        assert corpus.resolve("compilers") == "compiler"
    assert titled.listed == 1


def test_a_corpus_makes_each_resolver_once(folder: Path) -> None:
    with DocumentCorpus(folder) as corpus:
        assert corpus.resolver("edit") is corpus.resolver("edit")
        assert corpus.resolver("edit:0.9") is not corpus.resolver("edit")
        assert ResolvingCorpus(corpus, ["edit"]).others.resolvers == (corpus.resolver("edit"),)


def test_titles_by_number(folder: Path) -> None:
    with DocumentCorpus(folder) as corpus:
        assert [corpus.title_at(number) for number in range(len(corpus))] == TITLES
        with pytest.raises(IndexError):
            corpus.title_at(len(TITLES))


def test_threads_share_what_is_made(folder: Path) -> None:
    with DocumentCorpus(folder) as corpus:
        made, found = set(), []
        barrier = threading.Barrier(8)

        def look_up() -> None:
            barrier.wait()
            for name, title in (("folded", "linked-list"), ("edit", "compilers")):
                resolver = corpus.resolver(name)
                made.add(id(resolver))
                found.append(resolver.find(title))

        threads = [threading.Thread(target=look_up) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(made) == 2 and len(found) == 16
        assert set(found) == {Match("linked list", "folded", 1.0), Match("compiler", "edit", 0.8889)}


def test_lazy_makes_once_for_all_threads_and_again_after_an_error() -> None:
    calls: list[int] = []

    def make() -> int:
        calls.append(1)
        time.sleep(0.01)
        if len(calls) == 1:
            raise ValueError("not yet")
        return 7

    lazy = Lazy(make)
    with pytest.raises(ValueError, match="not yet"):
        lazy()
    threads = [threading.Thread(target=lazy) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert lazy() == 7 and len(calls) == 2


def test_lazy_after_a_fork_in_which_another_thread_was_making() -> None:
    began, may_end = threading.Event(), threading.Event()

    def make() -> int:
        began.set()
        may_end.wait(10)
        return 7

    lazy = Lazy(make)
    thread = threading.Thread(target=lazy)
    thread.start()
    began.wait(10)
    fork = multiprocessing.get_context("fork")
    child_may_end = fork.Process(target=lambda: (may_end.set(), lazy()))
    child_may_end.start()
    child_may_end.join(10)
    code = child_may_end.exitcode
    child_may_end.kill()
    may_end.set()
    thread.join()
    assert code == 0 and lazy() == 7


# How they are written


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("exact", ResolverSpec("exact")),
        ("folded", ResolverSpec("folded")),
        ("redirects", ResolverSpec("redirects")),
        ("redirects=a:b/c.json", ResolverSpec("redirects", "a:b/c.json")),
        ("edit", ResolverSpec("edit")),
        ("edit:0.9", ResolverSpec("edit", None, 0.9)),
        ("embeddings=some/model", ResolverSpec("embeddings", "some/model")),
        ("embeddings=some/model:0.8", ResolverSpec("embeddings", "some/model", 0.8)),
        ("embeddings=c:/model:1", ResolverSpec("embeddings", "c:/model", 1.0)),
    ],
)
def test_one_resolver(text: str, spec: ResolverSpec) -> None:
    assert parse_resolver(text) == spec


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"unknown resolver '': there are exact, folded, redirects\[=FILE\], edit\[:MINIMUM\], embeddings=MODEL"),
        ("Edit", "unknown resolver 'Edit'"),
        ("exact:1", "resolver 'exact:1': expected exact"),
        ("folded=x", "resolver 'folded=x': expected folded"),
        ("redirects=", r"resolver 'redirects=': expected redirects\[=FILE\]"),
        ("edit=x", r"resolver 'edit=x': expected edit\[:MINIMUM\]"),
        ("edit:high", r"resolver 'edit:high': expected edit\[:MINIMUM\], got the minimum 'high'"),
        ("edit:0", r"resolver 'edit:0': its minimum must be in \(0, 1\], got 0.0"),
        ("edit:93", r"resolver 'edit:93': its minimum must be in \(0, 1\], got 93.0"),
        ("edit:nan", r"resolver 'edit:nan': its minimum must be in \(0, 1\], got nan"),
        ("embeddings", r"resolver 'embeddings': expected embeddings=MODEL\[:MINIMUM\]"),
        ("embeddings:0.9", r"resolver 'embeddings:0.9': expected embeddings=MODEL"),
    ],
)
def test_one_resolver_that_is_wrong(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_resolver(text)


def test_a_list_of_resolvers() -> None:
    assert resolver_order("exact, folded,edit:0.9") == ("exact", "folded", "edit:0.9")
    assert resolver_order(["folded"]) == ("exact", "folded")
    assert resolver_order("exact") == resolver_order([]) == ("exact",)
    with pytest.raises(ConfigError, match="resolver 'exact' is always the first"):
        resolver_order(["folded", "exact"])
    with pytest.raises(ConfigError, match="a resolver is written as a string, got 5"):
        resolver_order([5])  # type: ignore[list-item]


def test_combining_classes_of_accents_are_as_folding_takes_them() -> None:
    assert unicodedata.combining("\u0301") == 230 and unicodedata.combining("\u3099") == 8
