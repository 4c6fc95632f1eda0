r"""LaTeX: citations, inputs and references, against pylatexenc's reading of an article and of generated texts."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pylatexenc.latexwalker import LatexCharsNode, LatexMacroNode, LatexWalker, get_default_latex_context_db
from pylatexenc.macrospec import MacroSpec

from ds2ds.documents.link_formats import link_format
from ds2ds.documents.link_formats.latex import _LatexScanner
from ds2ds.documents.link_formats.latex_commands import CITATIONS, INPUTS, REFERENCES
from ds2ds.documents.link_scanner import ScannedLink

ARTICLE = Path(__file__).parent / "data" / "latex"
EVERYTHING = link_format("latex+ref")


def scan(source: str, title: str = "main.tex", format: str = "latex") -> list[ScannedLink]:
    return link_format(format).scanner(title).feed(source.encode())


def targets(source: str, title: str = "main.tex", format: str = "latex") -> list[str]:
    return [link.target for link in scan(source, title, format)]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (r"\cite{a}", ["a"]),
        (r"\cite{a,b, c}", ["a", "b", "c"]),
        (r"\citep[see][p.~3]{a} \citet*{b} \Citet{c} \parencite*[3]{d}", ["a", "b", "c", "d"]),
        ("\\cite\n [p.]\n {a}", ["a"]),
        ("\\cite\n\n{a}", []),  # a paragraph ends
        ("\\cite[a\n\nb]{c}", []),
        ("\\cite{a,\n\nb}", []),
        ("\\cite{% why\n a,% and\n b}", ["a", "b"]),
        ("\\cite% why\n{a}", ["a"]),
        (r"\cite[\S3, {[1]}, \]]{a}", ["a"]),
        (r"\cite[see][\citep[x]{b} and][c]{a}", ["b"]),  # three are not an option
        (r"\citep[see \citet[p.~1]{b}]{a}", ["b", "a"]),
        (r"{\cite[a} ]{b} \cite{c}", ["c"]),
        ("% \\cite{a}\n\\cite{b}", ["b"]),
        (r"50\% \cite{a}", ["a"]),
        (r"\\cite{a} \\\cite{b}", ["b"]),
        (r"\verb|\cite{a}| \verb*+\cite{b}+ \cite{c}", ["c"]),
        (r"\lstinline[language=C]|\cite{a}| \lstinline{\cite{b}{}} \cite{c}", ["c"]),
        ("\\verb|never closed\n\\cite{a}", ["a"]),
        (r"\url{http://a.b/%20\cite{x}} \href{http://a%20b}{text} \cite{c}", ["c"]),
        (r"\verbatim \cite{a}", ["a"]),
        ("\\begin{verbatim}\n\\cite{a}\n\\end{verbatim}\\cite{b}", ["b"]),
        ("\\begin{lstlisting}[x]\n\\cite{a} \\end{verbatim}\n\\end{lstlisting}\\cite{b}", ["b"]),
        ("\\begin {comment}\\cite{a}\\end{comment}\\cite{b}", ["b"]),
        ("\\begin{figure}[t]\\cite{a}\\end{figure}", ["a"]),
        (r"\cite[\begin{x}]{a}", ["a"]),
        (r"\newcommand{\x}[1]{\cite{#1}} \cite{\key} \cite{{a}} \cite{a}", ["a"]),
        (r"\citestyle{a} \cites{b} \nocite{c} \xcite{d} \cite e", []),
        (r"\cite{} \cite{ , } \cite{a,}", ["a"]),
        (r"\cite{日本} é", ["日本"]),
        (r"\ref{a} \eqref{b}", []),
        (r"\cite{a", []),
    ],
)
def test_citations(source: str, expected: list[str]) -> None:
    assert targets(source) == expected


@pytest.mark.parametrize(
    ("source", "title", "target", "candidates"),
    [
        (r"\input{a}", "main.tex", "a.tex", ["a.tex", "a"]),
        (r"\input{a.tex}", "main.tex", "a.tex", ["a.tex"]),
        (r"\input{ ./s/a }", "", "s/a.tex", ["s/a.tex", "s/a"]),
        (r'\input{"s/a b"}', "", "s/a b.tex", ["s/a b.tex", "s/a b"]),
        (r"\input{fig.pgf}", "", "fig.pgf.tex", ["fig.pgf.tex", "fig.pgf"]),
        ("\\input a\\relax", "", "a.tex", ["a.tex", "a"]),
        ("\\input s/a.tex\n", "", "s/a.tex", ["s/a.tex"]),
        (r"\include{s/a}", "p/main.tex", "s/a.tex", ["p/s/a.tex", "s/a.tex"]),
        (r"\input{s/b.tex}", "p/s/a.tex", "s/b.tex", ["p/s/s/b.tex", "p/s/b.tex", "s/b.tex"]),
        (r"\include{../a}", "s/b.tex", "a.tex", ["a.tex"]),
    ],
)
def test_files(source: str, title: str, target: str, candidates: list[str]) -> None:
    (link,) = scan(source, title)
    assert (link.target, list(link.candidates)) == (target, candidates)


def test_what_is_no_file_of_the_folder() -> None:
    assert targets(r"\input{../a} \input{/a} \input{} \input{\jobname} \input[x]{a} \includegraphics{a}") == []
    assert targets("\\input a") == []  # it may go on


def test_references_only_if_asked_for() -> None:
    source = r"\ref{a} \ref*{b,c} \cref{d,e} \eqref {f} \cite{g}"
    assert targets(source) == ["g"]
    assert targets(source, format="latex+ref") == ["a", "b,c", "d", "e", "f", "g"]


def test_arxiv_titles_are_taken_whole() -> None:
    source = r"\cite{Of C#, 100% \& {E}lse} \citep[p.~5]{On  A, B} \cite{} \ref{x}"
    assert targets(source, format="arxiv") == [r"Of C#, 100% \& {E", "On A, B"]
    assert all(link.candidates == () for link in scan(source, format="arxiv"))
    assert [link.candidates for link in scan(r"\cite{a,b}")] == [("a",), ("b",)]


def test_offsets() -> None:
    (link,) = scan(r"é \citep[x]{a} b")
    assert (link.text, link.start, link.middle, link.end) == ("a", 3, 12, 15)


def test_a_documents_end_completes_nothing() -> None:
    scanner = EVERYTHING.scanner("m.tex")
    for opened in (
        b"\\cite{a",
        b"\\begin{verbatim}",
        b"\\verb|",
        b"% ",
        b"\\cite[",
        b"\\ci",
        b"\\",
        b"\\input a",
        b"\\begin{",
    ):
        assert scanner.feed(opened) == []
        scanner.reset()
        start = scanner.position
        (link,) = scanner.feed(b"\\cite{b}")
        assert (link.target, link.start, link.end) == ("b", start, start + 8)


def test_what_is_kept_is_bounded() -> None:
    for opened in (b"", b"\\cite{", b"\\cite[", b"\\begin{verbatim}", b"\\verb|", b"\\begin{", b"\\input ", b"%"):
        scanner = _LatexScanner("m.tex", True, True)
        scanner.feed(opened)
        for _ in range(2000):
            scanner.feed(b"somewords" if opened == b"\\input " else b"some words \\cite[see ")
            assert len(scanner._argument) < 4200 and len(scanner._name) <= 34
            assert len(scanner._open) <= 8 and len(scanner._tail) < 32


# Against pylatexenc


CONTEXT = get_default_latex_context_db()
# pylatexenc knows the arguments of some of them only.
CONTEXT.add_context_category(
    "citations",
    macros=[*(MacroSpec(name, "*[[{") for name in CITATIONS), *(MacroSpec(name, "*{") for name in REFERENCES)],
    prepend=True,
)


def macros(nodes: Any) -> Iterator[LatexMacroNode]:
    for node in nodes or []:
        arguments = getattr(getattr(node, "nodeargd", None), "argnlist", None) or []
        yield from macros([argument for argument in arguments if argument is not None])
        if isinstance(node, LatexMacroNode):
            yield node
        yield from macros(getattr(node, "nodelist", None))


def read_by_pylatexenc(source: str) -> list[tuple[int, str]]:
    """Offset (in characters) and key, label or path as written, of each link, where a command's end orders them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        walker = LatexWalker(source, latex_context=CONTEXT, tolerant_parsing=False)
        nodes = walker.get_latex_nodes()[0]
    found = []
    for node in macros(nodes):
        if node.macroname not in CITATIONS | INPUTS | REFERENCES or node.nodeargd is None:
            continue
        argument = node.nodeargd.argnlist[-1]
        written = "".join(inner.chars for inner in argument.nodelist if isinstance(inner, LatexCharsNode))
        several = node.macroname in CITATIONS or node.macroname == "cref"
        for key in written.split(",") if several else [written]:
            found.append((node.pos, " ".join(key.split())))
    return [(at, key) for at, key in sorted(found, key=lambda pair: pair[0]) if key and "#" not in key]


def read_by_us(source: str) -> list[tuple[int, str]]:
    data = source.encode()
    links = EVERYTHING.scanner("main.tex").feed(data)
    return sorted(((len(data[: link.start].decode()), link.text) for link in links), key=lambda pair: pair[0])


@pytest.mark.parametrize("file", sorted(ARTICLE.rglob("*.tex")), ids=lambda file: file.stem)
def test_an_article_is_read_as_pylatexenc_reads_it(file: Path) -> None:
    source = file.read_text()
    expected = read_by_pylatexenc(source)
    assert read_by_us(source) == expected
    assert len(expected) > 15 or file.stem != "main"


KEYS = st.sampled_from(["a", "b2", "knuth:84", "x-y_z"])
NOTES = st.sampled_from(["", "see", "p.~3", r"\S 2", "{[1]}", r"\emph{x}", "$x_1$", r"\%", "a\nb"])
SPACES = st.sampled_from(["", "", " ", "\n", "%c\n", "  "])
CITES = st.builds(
    lambda name, star, notes, keys, space: rf"\{name}{star}{''.join(f'[{note}]' for note in notes)}{space}"
    + "{" + ("," + space).join(keys) + "}",
    st.sampled_from(["cite", "citep", "citet", "citealp", "citeauthor"]),
    st.sampled_from(["", "*"]),
    st.lists(NOTES, max_size=2),
    st.lists(KEYS, min_size=1, max_size=3),
    SPACES,
)  # fmt: skip
COMMANDS = st.builds(
    lambda name, key: rf"\{name}" + "{" + key + "}",
    st.sampled_from(["input", "include", "ref", "eqref", "label"]),
    KEYS,
)
NESTED = st.builds(lambda outer, inner: rf"\citep[see {inner}]{{{outer}}}", KEYS, CITES)
OTHERS = st.sampled_from(
    [r"\\.", r"\%", r"\{", r"\}", r"\[x\]", "$a[1]$", "[", "]", "{x}", "{[}", "\n", "\n\n", "% \\cite{no}\n", "word",
     " ", "é日", r"\verb|\cite{no}|", "\\begin{verbatim}\n\\cite{no}\n\\end{verbatim}", r"\emph{\cite{yes}}",
     r"\item[\cite{yes}]", "\\begin{itemize}\n\\item x\\cite{yes}\\end{itemize}", r"\citestyle", r"\, "]
)  # fmt: skip
TEXTS = st.lists(st.one_of(CITES, COMMANDS, NESTED, OTHERS, OTHERS), max_size=12).map("".join)


@settings(deadline=None, max_examples=250)
@given(TEXTS)
def test_texts_are_read_as_pylatexenc_reads_them(source: str) -> None:
    source += " ."  # pylatexenc wants something after a macro that may have arguments
    assert read_by_us(source) == read_by_pylatexenc(source)


# Any pieces

FRAGMENTS = st.sampled_from(
    ["\\", "{", "}", "[", "]", "%", "\n", "\\cite", "\\citep*", "\\input", "\\input ", "\\verb|", "|",
     "\\begin{verbatim}", "\\end{verbatim}", "\\begin{", "\\lstinline", "\\url{", "a", ",", " ", "é", "#", "*",
     "\\cite{a,b}", "\\ref{c}", "\\\\"]
)  # fmt: skip


@settings(deadline=None, max_examples=300)
@given(st.lists(FRAGMENTS, max_size=30).map("".join), st.lists(st.integers(0, 10**6), max_size=10))
def test_pieces_make_no_difference(source: str, cuts: list[int]) -> None:
    data = source.encode()
    for name in ("latex", "latex+ref", "arxiv"):
        whole = link_format(name).scanner("p/main.tex").feed(data)
        for ends in ([cut % (len(data) + 1) for cut in cuts], range(len(data))):
            scanner = link_format(name).scanner("p/main.tex")
            edges = sorted({0, *ends, len(data)})
            found = [link for start, end in pairwise(edges) for link in scanner.feed(data[start:end])]
            assert found == whole
