"""A request's window: the documents in view, their budget, and eviction."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ds2ds.documents.document import Document, plain_ids
from ds2ds.documents.eviction import EVICTION_POLICIES, Candidate
from ds2ds.documents.spans import DocSpan, spans_of
from ds2ds.documents.title_utils import title_key
from ds2ds.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor


class DocumentContext:
    """The documents of one request.

    The window holds the root and the auxiliary documents that later tokens may still link to; together they stay
    within max_context_length tokens. An evicted document leaves the window and the view of all later tokens (S4).
    The root, and any document still being written, is never evicted.

    Args:
        max_context_length: most tokens in the window.
        max_auxiliary_documents: most documents in the window besides the root.
        eviction_policy: whom to evict to make room for a new document, a name in EVICTION_POLICIES: "drop_oldest" the
            one that came first, "least_recently_linked" the one whose last link is the longest ago, "largest_first"
            the longest one; "stop_new" refuses the new one. Room for the next token of a document in progress is made
            under any of them.
        max_tokens_per_document: most tokens a document started here may come to hold.
        max_new_tokens: most tokens that are written in one; None: up to that.

    Attributes:
        window: in order of arrival, the root first.
        completed: every document completed so far, evicted ones too, in order of completion (dependencies first).
        current: the document that is being written.
        evictions: how many documents were evicted.
    """

    def __init__(
        self,
        max_context_length: int = 2048,
        max_auxiliary_documents: int = 5,
        eviction_policy: str = "drop_oldest",
        max_tokens_per_document: int = 512,
        max_new_tokens: int | None = None,
    ) -> None:
        if eviction_policy not in EVICTION_POLICIES:
            raise ValueError(f"eviction_policy must be one of {tuple(EVICTION_POLICIES)}, got {eviction_policy!r}")
        self.max_context_length = max_context_length
        self.max_auxiliary_documents = max_auxiliary_documents
        self.eviction_policy = eviction_policy
        self.max_tokens_per_document = max_tokens_per_document
        self.max_new_tokens = max_new_tokens
        self.window: list[Document] = []
        self.completed: list[Document] = []
        self.evictions = 0
        self._links = 0
        self._last_link: dict[Document, int] = {}
        self._replaced: set[Document] = set()
        self._current: Document | None = None

    def restarted(self) -> DocumentContext:
        """A context with these limits, and a root that starts as this one's did."""
        limits = (self.max_context_length, self.max_auxiliary_documents, self.eviction_policy)
        context = DocumentContext(*limits, self.max_tokens_per_document, self.max_new_tokens)
        context.initialize_root(self.root.tokens[: self.root.given], self.root.title)
        return context

    @property
    def current(self) -> Document:
        """Raises RuntimeError when no document is being written."""
        if self._current is None:
            raise RuntimeError("no document is being written: call initialize_root or switch_to_document first")
        return self._current

    @property
    def root(self) -> Document:
        """Raises RuntimeError before initialize_root."""
        if not self.window:
            raise RuntimeError("there is no root document: call initialize_root first")
        return self.window[0]

    @property
    def total_tokens(self) -> int:
        return sum(len(document.tokens) for document in self.window)

    # Opening and closing documents

    def initialize_root(self, tokens: Iterable[int], title: str = "") -> Document:
        """Start the window with the root, which then is the current document. Without a title no link can mean it.

        Raises:
            ConfigError: (a ValueError) it has more tokens than the window holds.
        """
        if self.window:
            raise RuntimeError(f"the root is {self.root.title!r} already")
        document = Document(title, plain_ids(tokens))
        if len(document.tokens) > self.max_context_length:
            raise ConfigError(
                f"the prompt has {len(document.tokens)} tokens, more than max_context_length {self.max_context_length}"
            )
        return self._open(document, self._most_tokens(document))

    def start_auxiliary_generation(self, title: str, tokens: Iterable[int] = ()) -> Document:
        """Add a document that is to be written, linked from the current one, and make it the current one.

        Call `make_room` first.
        """
        parent = self.current
        document = Document(title, plain_ids(tokens), depth=parent.depth + 1, parent=parent)
        return self._open(document, self._most_tokens(document))

    def open_corpus_document(self, title: str, tokens: Iterable[int], source: str = "corpus") -> Document:
        """Add a document from the corpus, or whatever source, linked from the current one, and make it the current one.

        It is not complete yet: its own links are to be resolved first. Call `make_room` before.
        """
        parent = self.current
        document = Document(title, plain_ids(tokens), source, parent.depth + 1, parent)
        return self._open(document, len(document.tokens))

    def add_corpus_document(self, title: str, tokens: Iterable[int]) -> Document:
        """Add a complete document from the corpus, linked from the current one. Call `make_room` first."""
        self.open_corpus_document(title, tokens)
        return self.complete_current_document()

    def append_token_to_current(self, token: int, logprob: float = float("nan")) -> None:
        self.current.append(int(token), logprob)

    def complete_current_document(self) -> Document:
        """Close the current document: it may be granted, and evicted. Its parent, if it has one, is current again."""
        document = self.current
        document.capacity = None
        self.completed.append(document)
        self._current = document.parent
        return document

    def readmit(self, document: Document) -> None:
        """Bring an evicted document back into the window. Call `make_room` first."""
        self.window.append(document)

    def note_link(self, document: Document) -> None:
        """Tell that a link has named this document."""
        self._links += 1
        self._last_link[document] = self._links

    def switch_to_document(self, title: str) -> Document:
        """Make a document in progress the current one.

        Raises:
            KeyError: none in the window has this title; ValueError: it is complete.
        """
        document = self.find(title)
        if document is None:
            raise KeyError(f"no document titled {title!r} in the window: {[d.title for d in self.window]}")
        if not document.in_progress:
            raise ValueError(f"document {title!r} is complete and takes no more tokens")
        self._current = document
        return document

    def _most_tokens(self, document: Document) -> int:
        """What a document that is to be written may come to hold."""
        longest = min(self.max_tokens_per_document, self.max_context_length)
        if self.max_new_tokens is not None:
            longest = min(longest, document.given + self.max_new_tokens)
        return max(len(document.tokens), longest)

    def _open(self, document: Document, capacity: int) -> Document:
        document.capacity = capacity
        self.note_link(document)
        self.window.append(document)
        self._current = document
        return document

    # Looking up

    def find(self, title: str, exactly: bool = False) -> Document | None:
        """The document in the window with this title: case and white space folded, but for `exactly`."""
        return _by_title(self.window, title, exactly)

    def recall(self, title: str, exactly: bool = False) -> Document | None:
        """The document with this title, evicted ones that were not replaced among them: a title spelt just so comes
        before one that is folded, and then what is in the window before what was evicted.
        """
        here = {*self.window, *self._replaced}
        gone = [document for document in self.completed if document not in here]
        return _by_title([*self.window, *gone], title, exactly)

    def has_title(self, title: str) -> bool:
        """Whether a document of exactly this title is in the window, or was and is complete."""
        return any(document.title == title for document in (*self.window, *self.completed))

    def get_all_documents(self) -> list[Document]:
        """The root first, then all others that were completed (dependencies first) or are in progress."""
        rest = [*self.completed, *(d for d in self.window if d.in_progress)]
        return [self.root, *(d for d in rest if d is not self.root)]

    # Budget

    def can_add_document(self, num_tokens: int) -> tuple[bool, str]:
        """Whether a document of this many tokens fits as things stand, and if not, why."""
        return self._fits(self.window, num_tokens)

    def could_make_room(self, num_tokens: int, instead_of: Document | None = None) -> tuple[bool, str]:
        """What `make_room` would return; evicts nothing."""
        return self._plan_room(num_tokens, instead_of)[:2]

    def make_room(self, num_tokens: int, instead_of: Document | None = None) -> tuple[bool, str]:
        """Like `can_add_document`, after evicting what the policy lets go. Evicts nothing if that would not do.

        Args:
            instead_of: a complete document whose title the new one takes: it goes first, and is not found any more.
        """
        fits, reason, leaving = self._plan_room(num_tokens, instead_of)
        for document in leaving:
            self.evict(document)
        if fits and instead_of is not None:
            self._replaced.add(instead_of)
        return fits, reason

    def _plan_room(self, num_tokens: int, instead_of: Document | None) -> tuple[bool, str, list[Document]]:
        """Whether there can be room, and if not, why; and who leaves for it."""
        leaving = [document for document in self.window if document is instead_of]
        window = [document for document in self.window if document is not instead_of]
        fits, reason = self._fits(window, num_tokens)
        if fits:
            return True, "", leaving
        if not EVICTION_POLICIES[self.eviction_policy].admits:
            return False, reason, []
        evictable = [document for document in self._evictable() if document in window]
        kept = [document for document in window if document not in evictable]
        if sum(len(d.tokens) for d in kept) + num_tokens > self.max_context_length:
            return False, f"{num_tokens} tokens do not fit beside the documents in progress", []
        if len(kept) > self.max_auxiliary_documents:
            return False, f"max_auxiliary_documents {self.max_auxiliary_documents} are in progress", []
        while not self._fits(window, num_tokens)[0]:
            leaving.append(evictable.pop(0))
            window.remove(leaving[-1])
        return True, "", leaving

    def _fits(self, window: list[Document], num_tokens: int) -> tuple[bool, str]:
        if len(window) > self.max_auxiliary_documents:
            return False, f"max_auxiliary_documents {self.max_auxiliary_documents} are in view"
        total = sum([len(document.tokens) for document in window]) + num_tokens
        if total > self.max_context_length:
            return False, f"{total} tokens would exceed max_context_length {self.max_context_length}"
        return True, ""

    def evict_if_needed(self, num_tokens: int = 0) -> list[Document]:
        """Evict auxiliary documents, as the policy orders them, until the window and num_tokens more fit; returns them.

        Where none is left to evict, the window may still be too full: compare `total_tokens`.
        """
        evicted: list[Document] = []
        for document in self._evictable():
            if self.total_tokens + num_tokens <= self.max_context_length:
                break
            self.evict(document)
            evicted.append(document)
        return evicted

    def evict(self, document: Document) -> None:
        """Take a complete auxiliary document out of the window and out of the view of all later tokens."""
        self.window.remove(document)
        self.evictions += 1
        for reader in self.window:
            if reader.in_progress:
                reader.end_grants(document)

    def _evictable(self) -> list[Document]:
        """Complete auxiliary documents, the one to leave first in front."""
        candidates = [
            Candidate(document, arrived, self._last_link[document])
            for arrived, document in enumerate(self.window)
            if arrived and not document.in_progress
        ]
        candidates.sort(key=EVICTION_POLICIES[self.eviction_policy].order)
        return [candidate.document for candidate in candidates]

    # The window as one packed sequence

    def get_tokens_for_model(self) -> Tensor:
        """All tokens of the window, packed as `get_doc_spans` says: int64 [1, T]."""
        import torch  # documents/ stays importable without torch

        return torch.tensor([[token for document in self._packed() for token in document.tokens]])

    def get_doc_spans(self) -> list[DocSpan]:
        """Where each document of the window lies: the newest first, so that targets stand before what reads them."""
        return spans_of(self._packed())

    def _packed(self) -> list[Document]:
        current = self._current or self.root
        return [*(d for d in reversed(self.window) if d is not current), current]


def _by_title(documents: Iterable[Document], title: str, exactly: bool) -> Document | None:
    documents = [document for document in documents if document.title]
    exact = next((document for document in documents if document.title == title), None)
    if exact is not None or exactly:
        return exact
    key = title_key(title)
    return next((document for document in documents if title_key(document.title) == key), None)
