"""LaTeX's commands that are links or hide text, and the titles that a path may mean."""

from __future__ import annotations

import posixpath

CITATIONS = frozenset(
    {"cite", "citep", "citet", "citealp", "citealt", "citeauthor", "citeyear", "citeyearpar", "citefullauthor",
     "citetitle", "citeurl", "citedate", "citenum", "Cite", "Citep", "Citet", "Citealp", "Citealt", "Citeauthor",
     "parencite", "Parencite", "textcite", "Textcite", "autocite", "Autocite", "smartcite", "Smartcite", "footcite",
     "footcitetext", "supercite", "fullcite", "footfullcite"}
)  # fmt: skip
INPUTS = frozenset({"input", "include"})
REFERENCES = frozenset({"ref", "eqref", "pageref", "autoref", "nameref", "vref", "cref", "Cref"})
SEVERAL_LABELS = frozenset({"cref", "Cref"})

VERBATIM_COMMANDS = frozenset({"verb", "lstinline", "url", "path", "nolinkurl", "href"})
VERBATIM_ENVIRONMENTS = frozenset(
    {b"verbatim", b"verbatim*", b"Verbatim", b"Verbatim*", b"BVerbatim", b"LVerbatim", b"lstlisting", b"minted",
     b"comment", b"filecontents", b"filecontents*"}
)  # fmt: skip


def file_titles(written: str, include: bool, document_title: str) -> list[str]:
    """The titles that a path may mean in this document, from its own folder upwards; none if all lead out."""
    path = written.strip('" ')
    if not path:
        return []
    names = [path] if path.endswith(".tex") else [f"{path}.tex"] if include else [f"{path}.tex", path]
    parts = document_title.split("/")[:-1]
    folders = ["/".join(parts[:depth]) for depth in range(len(parts), -1, -1)]
    titles = [posixpath.normpath(posixpath.join(folder, name)) for folder in folders for name in names]
    return [title for title in titles if not title.startswith(("../", "/"))]
