"""Links in tokens that are there already: a prompt's, or a corpus document's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ds2ds.documents.document_context import DocumentContext
from ds2ds.documents.layout import Layout
from ds2ds.documents.link_detector import LinkDetector, LinkStream
from ds2ds.documents.link_formats import DEFAULT_FORMAT, LinkFormat
from ds2ds.documents.link_scanner import ScannedLink, is_external
from ds2ds.generation.corpus_source import CorpusSource, open_corpus
from ds2ds.generation.generation_config import GenerationConfig
from ds2ds.tokenizer import as_tokenizer


@dataclass(frozen=True)
class KnownLink:
    """A link, and the index of the first token after the one in which it closes."""

    position: int
    link: ScannedLink


def find_links(stream: LinkStream, tokens: Sequence[int]) -> list[KnownLink]:
    """All links in these tokens, the first of a new stream's document, in the order in which they are complete."""
    return [KnownLink(index + 1, link) for index, token in enumerate(tokens) for link in stream.feed(token)]


class PromptLinkProcessor:
    """Brings the corpus documents that a prompt links to into a context.

    Args:
        tokenizer: as `ds2ds.tokenizer.as_tokenizer` takes it; None: GPT-2.
        layout_policy: what stands around a document's body, see `ds2ds.documents.layout`.
        vocab_size: of the model that will read the documents; None: the tokenizer's.
        link_format: how links are written, see `ds2ds.documents.link_formats`.
    """

    def __init__(
        self,
        tokenizer: Any = None,
        layout_policy: str = "null",
        vocab_size: int | None = None,
        link_format: str | LinkFormat = DEFAULT_FORMAT,
    ) -> None:
        self.tokenizer = as_tokenizer(tokenizer)
        self.detector = LinkDetector(self.tokenizer, link_format)
        self.layout_policy = layout_policy
        self.vocab_size = vocab_size or self.tokenizer.vocab_size or 2**31

    def process_prompt(
        self, prompt_tokens: Sequence[int], context: DocumentContext, corpus: Any, config: GenerationConfig
    ) -> list[str]:
        """Grant the context's current document what its prompt links to, as far as the corpus has it.

        Args:
            prompt_tokens: the tokens of the current document.
            corpus: see `ds2ds.generation.corpus_source.open_corpus`.

        Returns:
            The titles that still need generation, each once, in order; empty without `allow_corpus_fallback`.
        """
        reader = context.current
        layout = Layout(self.layout_policy, self.tokenizer.encode, config.eos_token_id)
        source = CorpusSource(
            open_corpus(corpus), layout, self.vocab_size, config.title_resolution, self.detector.format
        )
        missing: list[str] = []
        if not config.process_prompt_links or config.max_link_depth == 0:
            return missing
        for known in find_links(self.detector.stream(reader.title), prompt_tokens):
            title = source.choose_title(known.link, context)
            if not title.strip() or is_external(title):
                continue
            match = source.match(known.link, title, context)
            canonical = None if match is None else match.title
            target = source.same(context.find(canonical or title, bool(known.link.candidates)), canonical)
            if target is None and canonical is not None:
                tokens = source.tokens(canonical)
                cut = tokens[: config.max_tokens_per_document]
                if cut and context.make_room(len(cut))[0]:
                    target = context.add_corpus_document(canonical, cut)
                    target.truncated = len(cut) < len(tokens)
            elif target is None and config.allow_corpus_fallback and title not in missing:
                missing.append(title)
            if target is not None and not target.in_progress:
                context.note_link(target)
                reader.add_grant(known.position, target, title, match)
        return missing
