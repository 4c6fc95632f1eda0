"""A LaTeX folder: its files and the works in its bibliographies are documents, citations and inputs the links."""

from __future__ import annotations

from pathlib import Path

from ds2ds.corpus.build.bibliography import entry_text, read_bibliography
from ds2ds.corpus.build.labels import labelled_parts
from ds2ds.corpus.build.note import read_markdown, skipped
from ds2ds.corpus.build.source_files import SourceFile, SourceFolder, list_sources, readable
from ds2ds.corpus.build.tokenizing import SourceDocument
from ds2ds.errors import CorpusError

ENDINGS = (".tex", ".bib")


def read_latex_folder(source: Path, skip_unreadable: bool, labels: bool = False) -> SourceFolder:
    r"""The documents of the LaTeX files under `source`.

    Each ``.tex`` file is one, titled by its path in the folder, "sec/intro.tex", as ``\input`` names it; so is each
    entry of each ``.bib`` file, titled by its key, with title, authors, place, year and abstract as its body. Of
    entries that share a key the first counts. With `labels`, so is what each ``\label`` stands for (see
    ``labelled_parts``), titled by the label, for the format "latex+ref".

    Raises:
        CorpusError: no such folder; a file that cannot be read or is not UTF-8, unless those are skipped.
    """
    remarks: list[str] = []
    files = list_sources(source, skip_unreadable, remarks)
    texts = [(file, str(path)) for file, path in files if path.suffix.lower() == ".tex"]
    documents = readable(texts, skip_unreadable, remarks)
    known = {document.title for document in documents}
    for file, path in files:
        if path.suffix.lower() != ".bib":
            continue
        try:
            entries = list(read_bibliography(read_markdown(file)))
        except CorpusError as error:
            remarks.append(skipped(error, skip_unreadable))
            continue
        for entry in entries:
            body = entry_text(entry)
            if entry.key in known or not body.strip():
                why = "there is another" if entry.key in known else "it has no fields"
                remarks.append(f"{file}: entry {entry.key} left out, {why}")
                continue
            known.add(entry.key)
            documents.append(SourceDocument(entry.key, body))
    if not labels:
        return SourceFolder(tuple(documents), "latex", tuple(remarks))
    for document in [document for document in documents if isinstance(document, SourceFile)]:
        for label, text in labelled_parts(read_markdown(document.file)):
            if label in known:
                remarks.append(f"{document.file}: label {label} left out, there is another")
                continue
            known.add(label)
            documents.append(SourceDocument(label, text + "\n"))
    return SourceFolder(tuple(documents), "latex+ref", tuple(remarks))
