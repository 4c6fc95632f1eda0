"""Wikilinks and LaTeX in files of others, which are not ours to pass on: tell where they are, and they are read.

    DS2DS_WIKI_DUMP=FILE.xml.bz2 DS2DS_TEX_FILES=FOLDER pytest -m slow tests/test_link_formats_real_files.py

A dump is what MediaWiki exports, as gensim's wheel has one in gensim/test/test_data; LaTeX comes with TeX Live's
documentation, as in Debian's texlive-publishers-doc. Imports are read in Python's own files (test_link_format_python).
"""

from __future__ import annotations

import bz2
import html
import os
import re
from pathlib import Path

import pytest
from test_link_format_latex import read_by_pylatexenc
from test_link_format_latex import read_by_us as latex_by_us
from test_link_format_wikilinks import read_by_us as wiki_by_us
from test_link_format_wikilinks import read_by_wikitextparser

pytestmark = pytest.mark.slow

_PAGE = re.compile(r"<title>(.*?)</title>.*?<text[^>]*>(.*?)</text>", re.DOTALL)
_COMMAND = re.compile(r"\\(\w*cite\w*|input|include|\w*ref)\b")


def given_by(variable: str) -> Path:
    if variable not in os.environ:
        pytest.skip(f"{variable} is not set: see the top of this file")
    return Path(os.environ[variable])


def test_wikipedia_is_read_as_wikitextparser_reads_it() -> None:
    pages, links = 0, 0
    with bz2.open(given_by("DS2DS_WIKI_DUMP"), "rt", encoding="utf-8") as dump:
        for title, escaped in _PAGE.findall(dump.read()):
            source = html.unescape(escaped)
            expected = read_by_wikitextparser(source)
            assert wiki_by_us(source) == expected, title
            pages, links = pages + 1, links + len(expected)
    print(f"{pages} pages, {links} links")
    assert links > 1000


def test_papers_and_manuals_are_read_as_pylatexenc_reads_them() -> None:
    """But for files that it cannot parse, paths that lead out of the corpus, and code that only looks like LaTeX."""
    files, links, others = 0, 0, []
    for file in sorted(given_by("DS2DS_TEX_FILES").rglob("*.tex")):
        data = file.read_bytes()
        try:
            source = data.decode()
        except UnicodeDecodeError:
            source = data.decode("latin-1")
        if not _COMMAND.search(source):
            continue
        source += " ."  # as in test_link_format_latex
        try:
            expected = read_by_pylatexenc(source)
        except Exception:  # whatever a parser may raise that files of all ages are given to
            others.append(f"{file.name}: pylatexenc cannot parse it")
            continue
        expected = [(at, key) for at, key in expected if not key.startswith("../")]
        if latex_by_us(source) != expected:
            others.append(f"{file.name}: read otherwise")
        files, links = files + 1, links + len(expected)
    print(f"{files} files, {links} links;", *others, sep="\n  ")
    assert links > 500
    assert sum("otherwise" in told for told in others) <= files / 100
