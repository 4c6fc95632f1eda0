r"""LaTeX's links where mutation testing found no test: docs/mutation.md."""

from __future__ import annotations

import pytest

from ds2ds.documents.link_formats.latex import Latex
from ds2ds.documents.link_formats.latex_commands import file_titles
from ds2ds.documents.link_scanner import ScannedLink

CITED = [
    "cite", "citep", "citet", "citealp", "citealt", "citeauthor", "citeyear", "citeyearpar", "citefullauthor",
    "citetitle", "citeurl", "citedate", "citenum", "Cite", "Citep", "Citet", "Citealp", "Citealt", "Citeauthor",
    "parencite", "Parencite", "textcite", "Textcite", "autocite", "Autocite", "smartcite", "Smartcite", "footcite",
    "footcitetext", "supercite", "fullcite", "footfullcite",
]  # fmt: skip
REFERRED = ["ref", "eqref", "pageref", "autoref", "nameref", "vref", "cref", "Cref"]
HIDDEN_IN = [
    "verbatim", "verbatim*", "Verbatim", "Verbatim*", "BVerbatim", "LVerbatim", "lstlisting", "minted", "comment",
    "filecontents", "filecontents*",
]  # fmt: skip


def scan(*pieces: str | bytes, references: bool = False) -> list[ScannedLink]:
    scanner = Latex(references=references).scanner("main.tex")
    return [link for piece in pieces for link in scanner.feed(piece if isinstance(piece, bytes) else piece.encode())]


def targets(*pieces: str | bytes, references: bool = False) -> list[str]:
    return [link.target for link in scan(*pieces, references=references)]


# Commands and environments, by name


@pytest.mark.parametrize("name", CITED + REFERRED)
def test_commands_that_are_links_and_longer_ones_that_are_none(name: str) -> None:
    several = name not in REFERRED or name in ("cref", "Cref")
    assert targets(rf"\{name}{{a,b}}", references=True) == (["a", "b"] if several else ["a,b"])
    assert targets(rf"\{name}x{{a}}", rf"\{name}{'x' * 40}{{a}}", references=True) == []
    assert bool(targets(rf"\{name}{{a}}")) == (name in CITED)


@pytest.mark.parametrize("name", HIDDEN_IN)
def test_environments_that_hide(name: str) -> None:
    source = rf"\begin{{{name}}}\cite{{a}}\end{{{name}}}\cite{{b}}\begin{{{name}}}\cite{{c}}\end{{{name}}}"
    assert targets(source) == ["b"]
    assert targets(rf"\begin{{x{name}}}\cite{{a}}") == ["a"]


@pytest.mark.parametrize("name", ["verb", "lstinline", "url", "path", "nolinkurl", "href"])
def test_commands_that_hide(name: str) -> None:
    assert targets(rf"\{name}{{\cite{{a}}}}\{name} |\cite{{b}}|\cite{{c}}") == ["c"]


def test_the_format_without_settings() -> None:
    assert Latex() == Latex("latex", references=False, several_keys=True)
    assert [link.target for link in Latex().scanner().feed(rb"\cite{a,b}\ref{c}\input{d}")] == ["a", "b", "d.tex"]


# Arguments


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (r"\cite**{a}", []),  # starred once
        (r"\cite[x]*{a}", []),
        (r"\cite[{{x}}]{a}", ["a"]),
        (r"\cite[{\begin{x}}]{a}", ["a"]),
        (r"\cite[x]y]{a}", []),
        (r"\cite e f \include e f", []),  # without braces it is for \input
        ("\\cite \t\r\n\t{a}", ["a"]),
        ("\\cite[%]\n]{a}", ["a"]),
        ("\\cite[x\n  \n]{a}", []),
        ("\\cite{a,%\n\nb}", []),  # blank, after a comment
        ("\\cite[\\verb|]|\n]{a}", ["a"]),
        ("\\cite[\\begin{verbatim}]\n\n\\end{verbatim}\n]{a}", ["a"]),
        (r"\cite{a#b}\cite{c}", ["c"]),
        ("\\cite{a  \t b}", ["a b"]),
        ("\\cite{a\nb}", ["a b"]),
    ],
)
def test_arguments(source: str, expected: list[str]) -> None:
    assert targets(source) == expected


@pytest.mark.parametrize("command", ["\\cite{%s}", "\\input{%s.tex}", "\\input %s.tex "])
def test_an_argument_is_of_4_kib_at_most(command: str) -> None:
    longest = 4096 - 4 * ("tex" in command)
    assert len(scan(command % ("a" * longest))) == 1
    assert scan(command % ("a" * (longest + 1))) == []


def test_citations_are_read_eight_deep() -> None:
    for depth, expected in ((8, 8), (9, 8)):
        source = "".join(r"\cite[" for _ in range(depth)) + "".join(f"]{{{number}}}" for number in range(depth))
        assert len(targets(source)) == expected


def test_bytes_that_are_no_text() -> None:
    assert targets(b"\\cite{a\xff}") == ["a\ufffd"]


# \input without braces


def test_where_a_file_without_braces_is() -> None:
    (link,) = scan("x \\input  ab\\relax")
    assert (link.text, link.start, link.middle, link.end) == ("ab", 2, 10, 13)


@pytest.mark.parametrize("ending", [" ", "\n", "\\", "%", "#", "{", "}", "[", "]"])
def test_what_a_file_without_braces_ends_at(ending: str) -> None:
    assert targets(rf"\input a{ending}b ") == ["a.tex"]


@pytest.mark.parametrize(
    ("written", "include", "title", "titles"),
    [
        ("a", False, "", ["a.tex", "a"]),
        ("a", True, "", ["a.tex"]),
        ("XaX", True, "", ["XaX.tex"]),
        ("a.tex", False, "p/q/r.tex", ["p/q/a.tex", "p/a.tex", "a.tex"]),
        ("a.tex", True, "r.tex", ["a.tex"]),
        ('" a" ', False, "", ["a.tex", "a"]),
        ("../a.tex", False, "p/r.tex", ["a.tex"]),
        ("../a.tex", False, "p/q/r.tex", ["p/a.tex", "a.tex"]),
        ("/a.tex", False, "p/r.tex", []),
        ("..a.tex", False, "", ["..a.tex"]),
        ('" "', False, "p/r.tex", []),
    ],
)
def test_titles_of_files(written: str, include: bool, title: str, titles: list[str]) -> None:
    assert file_titles(written, include, title) == titles


# \verb and the like


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (r"\verb X\cite{a}X", ["a"]),  # no letter delimits
        ("\\verb\n\\cite{a}", ["a"]),
        ("\\verb\r\\cite{a}\r", ["a"]),
        ("\\verb \t*|\\cite{a}|\\cite{b}", ["b"]),
        (r"\verb||\cite{a}", ["a"]),
        (r"\url{x}\cite{a}", ["a"]),
        (r"\url{x{y}\cite{a}}\cite{b}", ["b"]),
        (r"\url{x{y{z}}\cite{a}}\cite{b}", ["b"]),
        (r"\verb|{|\cite{a}", ["a"]),
        (r"\lstinline[x={]|{y|\cite{a}", ["a"]),
        (r"\begin X{verbatim}\cite{a}", ["a"]),
        ("\\begin \t{verbatim}\\cite{a}", []),
        (r"\begin{verbatim}\end{verbatim}\cite{a}\begin{verbatim}\end{verbatim}", ["a"]),
        (r"\begin{verbatim\cite{a}", ["a"]),
        ("\\begin{verbatim\n}\\cite{a}", ["a"]),
    ],
)
def test_what_hides_and_what_does_not(source: str, expected: list[str]) -> None:
    assert targets(source) == expected


# Pieces


def test_a_comments_end_begins_a_piece() -> None:
    assert targets("%", "\n\\cite{a}") == ["a"]
    assert targets("%\\cite{a}", "\\cite{b}\n\\cite{c}") == ["c"]


def test_an_environment_cut_anywhere() -> None:
    source = r"\begin{verbatim}\cite{a}\end{verbatim}\cite{b}\cite{c}"
    for at in range(len(source)):
        links = scan(source[:at], source[at:])
        assert [(link.target, link.end) for link in links] == [("b", 46), ("c", 54)]
