"""The link graph of a result as a page: a click on a card shows its document. Links alone do it, without a script."""

from __future__ import annotations

from ds2ds.documents.generation_result import GenerationResult
from ds2ds.documents.link_graph import LinkGraph, link_graph
from ds2ds.pictures.document_card import about
from ds2ds.pictures.link_graph_svg import draw_link_graph, told_span
from ds2ds.pictures.linked_text import LinkedTexts, Piece
from ds2ds.pictures.markup import asset, escape, page


def link_graph_html(result: GenerationResult) -> str:
    """The drawing of `link_graph_svg` with the documents' texts beside it, as HTML that needs nothing else.

    Raises:
        ConfigError: a grant names no document of the result, or a document reaches itself.
    """
    graph, texts = link_graph(result), LinkedTexts(result)
    documents = result.get_all_documents()
    articles = [_article(index, graph, texts) for index in range(len(documents))]
    # The card of the document that is shown is marked, which a rule can only say for each one by its name.
    shown = {index: f"body:has(#d{index}:target)" for index in range(len(documents))}
    rules = [(rule, index) for index, rule in shown.items()] + [("body:not(:has(article:target))", 0)]
    cards, lines = (
        ", ".join(part) for part in zip(*((f"{r} .n{i} .box", f"{r} .from{i} .way") for r, i in rules), strict=True)
    )
    css = asset("link_graph_page.css")
    css += f"{cards} {{ stroke: var(--mark); stroke-width: 3; }}\n{lines} {{ stroke: var(--mark); }}\n"
    body = (
        f'<main>\n<section class="graph" id="graph" aria-label="Link graph">\n'
        f"{draw_link_graph(result, lambda index: f'#d{index}')}</section>\n"
        f'<section class="documents" aria-label="Documents">\n{"".join(articles)}</section>\n</main>'
    )
    return page(f"Link graph of {result.root_document.title}", css, body)


def _article(index: int, graph: LinkGraph, texts: LinkedTexts) -> str:
    document = texts.documents[index]
    heading = "h1" if index == 0 else "h2"
    read = {edge.target for edge in graph.edges if edge.source == index}
    lists = _list("Reads", [(edge.target, told_span(edge)) for edge in graph.edges if edge.source == index], texts)
    lists += _list("Read by", [(edge.source, told_span(edge)) for edge in graph.edges if edge.target == index], texts)
    parent = graph.parents[index]
    if parent is not None and not any(edge.target == index for edge in graph.edges):
        lists += _list("Brought in, and not read, by", [(parent, "")], texts)
    text = "".join(_marked(piece, read) for piece in texts.pieces(index))
    return (
        f'<article id="d{index}"{" class=root" if index == 0 else ""} tabindex="-1">\n'
        f'<{heading} dir="auto">{escape(document.title)}</{heading}>\n'
        f'<p class="facts">{escape(about(document))} <a class="up" href="#graph">to the graph</a></p>\n'
        f'<div class="text" dir="auto">{text}</div>\n{lists}</article>\n'
    )


def _list(name: str, documents: list[tuple[int, str]], texts: LinkedTexts) -> str:
    if not documents:
        return ""
    items = "".join(
        f'<li><a href="#d{index}"><bdi>{escape(texts.documents[index].title)}</bdi></a> <small>{where}</small></li>'
        for index, where in documents
    )
    return f"<h3>{name}</h3><ul>{items}</ul>\n"


def _marked(piece: Piece, read: set[int]) -> str:
    """A stretch of text; of a link the words stand out from what makes them one."""
    if piece.link is None:
        return escape(piece.text)
    before, after = (part and f'<span class="syntax">{escape(part)}</span>' for part in (piece.before, piece.after))
    inner = f"{before}{escape(piece.text)}{after}"
    if piece.target is None:
        return f'<span class="nowhere" title="leads to no document of this result">{inner}</span>'
    if piece.target in read:
        return f'<a class="read" href="#d{piece.target}">{inner}</a>'
    return f'<a href="#d{piece.target}" title="this document does not read it">{inner}</a>'
