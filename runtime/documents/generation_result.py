"""What a request returns: documents, how they were linked, and what the run did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ds2ds.documents.link_formats import DEFAULT_FORMAT, LINK_FORMATS, LinkFormat
from ds2ds.documents.title_utils import normalize_title


@dataclass(frozen=True)
class Grant:
    """From token `position` up to `end` (None: to the last), a document reads all of the one titled `title`.

    Attributes:
        link: the target of the link that brought it in, as written.
        resolved_by: the resolver that led from `link` to a document of the corpus: "exact", or one of
            GenerationConfig.title_resolution; None: it is not of the corpus.
        score: how sure that resolver was, in [0, 1]; None without one.
    """

    position: int
    title: str
    end: int | None = None
    link: str = ""
    resolved_by: str | None = None
    score: float | None = None


@dataclass
class GeneratedDocument:
    """One document of a result.

    Attributes:
        tokens: the whole document as the model reads it, layout included; None if only text is known.
        text: decoded, without end marks, up to a stop string if one ended it.
        source: "generated", "corpus", "supplied" (by who answered for its link), or the file it was read from.
        parent_title: title of the document whose link brought it in; None for the root.
        grants: what it read, and from which token on (S1).
        depth: links between the root and this document.
        truncated: it was cut at max_tokens_per_document.
        finish_reason: "eos", "max_new_tokens", "max_tokens_per_document", "context_full", "stop" or "quit"; None for a
            document that was not written in this run.
        given: how many of the tokens it was started with; the others were written. None if that is not known.
        token_logprobs: float32 [len(tokens)], natural log under the model's raw distribution, NaN where a token was
            not predicted; None unless asked for.
        top_logprobs: for each token the likeliest ones in its place, as (token, log-probability), likeliest first;
            empty where it was not predicted; None unless asked for.

    Raises:
        ValueError: neither tokens nor text is given, or source is none of the above.
    """

    title: str
    title_normalized: str = ""
    tokens: Sequence[int] | None = None
    text: str | None = None
    source: str | Path = "generated"
    is_root: bool = False
    parent_title: str | None = None
    grants: list[Grant] = field(default_factory=list)
    depth: int = 0
    truncated: bool = False
    finish_reason: str | None = None
    given: int | None = None
    token_logprobs: NDArray[np.float32] | None = None
    top_logprobs: list[list[tuple[int, float]]] | None = None

    def __post_init__(self) -> None:
        if self.tokens is None and self.text is None:
            raise ValueError(f"document {self.title!r} needs tokens or text, got neither")
        if not isinstance(self.source, Path) and self.source not in ("generated", "corpus", "supplied"):
            raise ValueError(f"source must be 'generated', 'corpus', 'supplied' or a Path, got {self.source!r}")
        if not self.title_normalized:
            self.title_normalized = normalize_title(self.title)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; NaN log-probabilities become None."""
        values = asdict(self)
        values["source"] = str(self.source)
        values["tokens"] = None if self.tokens is None else [int(token) for token in self.tokens]
        if self.token_logprobs is not None:
            values["token_logprobs"] = [None if np.isnan(p) else float(p) for p in self.token_logprobs]
        return values


@dataclass
class Trace:
    """What a run did. Seconds are wall time; a step shared by several requests counts in full for each.

    `tokens_reused` were computed for other requests, or earlier, and were found in the document store: those of
    `documents_reused` documents, and `prompt_tokens_reused` of the prompt. `links_resolved_by` counts, for each
    resolver, the links whose targets it found in the corpus, followed or not. What a hypothesis of a beam search has
    from another is reused, too; what is computed counts for all hypotheses together, links and evictions are those of
    the one returned.
    """

    forward_passes: int = 0
    tokens_prefilled: int = 0
    tokens_reused: int = 0
    prompt_tokens_reused: int = 0
    tokens_decoded: int = 0
    documents_reused: int = 0
    links_found: int = 0
    links_from_corpus: int = 0
    links_generated: int = 0
    links_supplied: int = 0
    links_already_in_view: int = 0
    links_skipped: int = 0
    links_not_followed: int = 0
    links_resolved_by: dict[str, int] = field(default_factory=dict)
    evictions: int = 0
    seconds: dict[str, float] = field(
        default_factory=lambda: {"prefill": 0.0, "decode": 0.0, "sampling": 0.0, "total": 0.0}
    )

    def of_hypothesis(self, other: Trace) -> Trace:
        """The same run, with the links and evictions of one of its hypotheses."""
        counts = {name: count for name, count in asdict(other).items() if name.startswith("links_")}
        return replace(self, **counts, evictions=other.evictions, seconds=dict(self.seconds))

    def count_forward(self, prefilled: int, decoded: int, seconds: float) -> None:
        """Count one forward pass over these tokens of the request; the seconds are shared out between the two kinds."""
        self.forward_passes += 1
        self.tokens_prefilled += prefilled
        self.tokens_decoded += decoded
        self.seconds["prefill"] += seconds * prefilled / (prefilled + decoded)
        self.seconds["decode"] += seconds * decoded / (prefilled + decoded)

    def count_decoded(self, seconds: float) -> None:
        """Count one forward pass over one token that was written."""
        self.forward_passes += 1
        self.tokens_decoded += 1
        self.seconds["decode"] += seconds


@dataclass
class GenerationResult:
    """The root, the documents it came to link to (dependencies first), the settings, and what the run did.

    Attributes:
        score: what a beam search ranked it by; None without one.
        alternatives: what a beam search found besides, the best first, as many as num_return_sequences asks for.
        link_format: how the documents' links are written.
    """

    root_document: GeneratedDocument
    auxiliary_documents: list[GeneratedDocument] = field(default_factory=list)
    generation_config: Any = None
    trace: Trace = field(default_factory=Trace)
    score: float | None = None
    alternatives: list[GenerationResult] = field(default_factory=list)
    link_format: LinkFormat = LINK_FORMATS[DEFAULT_FORMAT]

    def get_all_documents(self) -> list[GeneratedDocument]:
        """The root first, then the others, dependencies first."""
        return [self.root_document, *self.auxiliary_documents]

    def get_document_by_title(self, title: str) -> GeneratedDocument | None:
        """The document with this title, original or normalized; an exact match wins."""
        documents = self.get_all_documents()
        for name in ("title", "title_normalized"):
            for document in documents:
                if getattr(document, name) == title:
                    return document
        normalized = normalize_title(title)
        return next((d for d in documents if d.title_normalized == normalized), None)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        config = self.generation_config
        return {
            "root_document": self.root_document.to_dict(),
            "auxiliary_documents": [document.to_dict() for document in self.auxiliary_documents],
            "generation_config": config.to_dict() if hasattr(config, "to_dict") else config,
            "trace": asdict(self.trace),
            "score": self.score,
            "alternatives": [result.to_dict() for result in self.alternatives],
            "link_format": self.link_format.name,
        }
