"""What a run came to: the tree of its documents, and a line of figures."""

from __future__ import annotations

from rich.text import Text
from rich.tree import Tree

from ds2ds.cli.styled_text import printable
from ds2ds.corpus.resolving.exact import EXACT
from ds2ds.documents.generation_result import GeneratedDocument, GenerationResult, Grant


def document_tree(result: GenerationResult) -> Tree:
    """The documents, each under the one whose link brought it in."""
    root = result.root_document
    tree = Tree(_label(root), guide_style="dim")
    branches: dict[str, Tree] = {}
    # Dependencies come first in a result, in a tree they come last.
    for document in sorted(result.auxiliary_documents, key=lambda document: document.depth):
        parent = tree if document.depth == 1 else branches[document.parent_title or ""]
        branches[document.title] = parent.add(_label(document))
    return tree


def _label(document: GeneratedDocument) -> Text:
    facts = [str(document.source), count(len(document.tokens or ()), "token")]
    if document.finish_reason:
        facts.append(document.finish_reason)
    elif document.truncated:
        facts.append("cut")
    label = Text(printable(document.title), style="bold") + Text("  " + ", ".join(facts), style="not bold dim")
    if document.grants:
        label.append("\nreads " + ", ".join(map(_reads, document.grants)), style="not bold cyan")
    return label


def _reads(grant: Grant) -> str:
    facts = resolution(grant.link, grant.resolved_by, grant.score)
    how = f" ({', '.join(facts)})" if facts else ""
    return f"{printable(grant.title)} [{grant.position}:{'' if grant.end is None else grant.end}]{how}"


def resolution(link: str, resolved_by: str | None, score: float | None) -> list[str]:
    """How a link's target led to its document, as in: as "compilers", edit 0.93. Nothing, where it was its title."""
    if resolved_by in (None, EXACT):
        return []
    sure = "" if score in (None, 1) else f" {score:.2f}"
    return [f'as "{printable(link)}"', f"{resolved_by}{sure}"]


def figures(result: GenerationResult, written: int) -> str:
    """One line: tokens written, speed, documents, links, time, and the seed that gives the same again."""
    trace = result.trace
    parts = [f"{count(written, 'token')} written"]
    decoding = trace.seconds["decode"] + trace.seconds["sampling"]
    decoded = trace.tokens_decoded if result.score is None else written
    if decoded and decoding:
        parts[0] += f" at {decoded / decoding:.1f} tokens/s"
    reused = f", {trace.tokens_reused:,} reused" if trace.tokens_reused else ""
    parts.append(f"{trace.tokens_prefilled:,} prefilled{reused}")
    parts.append(count(1 + len(result.auxiliary_documents), "document"))
    links = {
        "from the corpus": trace.links_from_corpus,
        "generated": trace.links_generated,
        "supplied": trace.links_supplied,
        "already in view": trace.links_already_in_view,
        "skipped": trace.links_skipped,
        "not followed": trace.links_not_followed,
    }
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in links.items() if count)
    others = (f"{count} by {name}" for name, count in trace.links_resolved_by.items() if name != EXACT)
    outcomes = "; ".join(filter(None, [outcomes, ", ".join(others)]))
    parts.append(count(trace.links_found, "link") + (f" ({outcomes})" if outcomes else ""))
    if trace.evictions:
        parts.append(count(trace.evictions, "eviction"))
    parts.append(f"{trace.seconds['total']:.2f} s")
    if result.score is not None:
        parts.append(f"{count(result.generation_config.num_beams, 'beam')}, score {result.score:.4f}")
    elif result.generation_config.temperature:
        parts.append(f"seed {result.generation_config.seed}")
    return " · ".join(parts)


def remark(result: GenerationResult, written: int) -> str | None:
    """Why nothing was written, where the prompt left no room."""
    option = {
        "max_tokens_per_document": "--max-tokens-per-document",
        "context_full": "--max-context-length",
    }.get(result.root_document.finish_reason or "")
    if written or option is None:
        return None
    return f"nothing was written: the prompt's {len(result.root_document.tokens or ())} tokens fill it; raise {option}"


def count(number: int, what: str) -> str:
    """As in "1 token" or "1,200 tokens"."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"
