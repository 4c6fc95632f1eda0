"""Links in a stream of token ids.

Brackets and parentheses merge into other tokens (`).`, ` "[`, `](`), so links are found in the tokens'
bytes, never by token id. A link belongs to the token in which its `)` falls.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from ds2ds.documents import link_formats
from ds2ds.documents.link_formats import DEFAULT_FORMAT, LinkFormat, Scanner
from ds2ds.documents.link_scanner import ScannedLink
from ds2ds.errors import ConfigError
from ds2ds.tokenizer import Tokenizer, as_tokenizer


@dataclass(frozen=True, slots=True)
class DetectedLink:
    """A link among tokens.

    The positions are indices of the tokens that hold the byte in question; where `](` is one token, as in
    GPT-2, `bracket_close_pos == paren_open_pos`. The token lists are the tokens strictly between, if their
    bytes are exactly those of `text` or `target`; where a token reaches over a bracket, or the source has
    escapes, they are the text or target encoded anew. So decoding `target_tokens` always gives `target`.
    """

    bracket_open_pos: int
    bracket_close_pos: int
    paren_open_pos: int
    paren_close_pos: int
    link_text_tokens: list[int]
    target_tokens: list[int]
    text: str = ""
    target: str = ""


class LinkStream:
    """A link scanner fed with token ids, each once, at a cost that does not grow with the text."""

    def __init__(self, tokenizer: Tokenizer, scanner: Scanner) -> None:
        self._token_bytes, self._eos_token_id = tokenizer.token_bytes, tokenizer.eos_token_id
        self._scanner = scanner

    def feed(self, token_id: int) -> list[ScannedLink]:
        """The links that are complete in this token (markdown: their `)` lies in it), in order.

        Their offsets count the bytes of all tokens fed.

        The EOS token ends the document: no link spans it.

        Raises:
            ValueError: the id is not in the vocabulary.
        """
        if token_id == self._eos_token_id:
            self._scanner.reset()
            return []
        return self._scanner.feed(self._token_bytes(token_id))


class LinkDetector:
    """Finds links in token ids.

    Args:
        tokenizer: whatever `ds2ds.tokenizer.as_tokenizer` takes; None for the packaged GPT-2.
        link_format: how links are written: a name (`ds2ds.documents.link_formats`), or a format of your own.

    Raises:
        ConfigError: there is no such link format.
    """

    # GPT-2's ids of the tokens in most links, for those who write tokens by hand: detection needs no ids.
    OPEN_BRACKET = 58
    OPEN_BRACKET_AFTER_SPACE = 685
    LINK_MIDDLE = 16151
    CLOSE_PAREN = 8
    EOS = 50256
    VOCAB_SIZE = 50257

    def __init__(self, tokenizer: Any = None, link_format: str | LinkFormat = DEFAULT_FORMAT) -> None:
        self.tokenizer = as_tokenizer(tokenizer)
        self.format = link_formats.link_format(link_format)

    def stream(self, document_title: str = "") -> LinkStream:
        """A new stream: for text that grows token by token, each token is looked at once.

        Args:
            document_title: of the document that is read; relative links (Python's, say) are resolved against it.
        """
        return LinkStream(self.tokenizer, self.format.scanner(document_title))

    def detect_link_at_position(self, tokens: Any, end_pos: int) -> DetectedLink | None:
        """The link whose `)` lies in `tokens[end_pos]`, or None. Where several end there, the last of them.

        Reads the document from its start, O(end_pos), if that token has a `)` at all. To follow a document
        as it is written, `stream` is cheaper, and knows links of every format: a DetectedLink has markdown's brackets.

        Args:
            tokens: ids as a sequence, numpy array or torch tensor, of shape [T] or [1, T].
            end_pos: index of the token, 0 <= end_pos < T.

        Raises:
            ConfigError: the format is not markdown.
            ValueError: `end_pos` is out of range, `tokens` has another shape, or an id is not in the
                vocabulary.
        """
        if self.format.name != DEFAULT_FORMAT:
            raise ConfigError(
                f"detect_link_at_position finds markdown links, this detector's format is {self.format.name!r}: "
                "feed the tokens to stream()"
            )
        ids = _as_ids(tokens)
        if not 0 <= end_pos < len(ids):
            raise ValueError(f"end_pos must be in [0, {len(ids)}), got {end_pos}")
        if b")" not in self.tokenizer.token_bytes(ids[end_pos]):
            return None
        stream = self.stream()
        for token in ids[:end_pos]:
            stream.feed(token)
        links = stream.feed(ids[end_pos])
        return self._locate(links[-1], ids[: end_pos + 1]) if links else None

    def _locate(self, link: ScannedLink, ids: list[int]) -> DetectedLink:
        eos = self.tokenizer.eos_token_id
        ends = list(accumulate(0 if token == eos else len(self.tokenizer.token_bytes(token)) for token in ids))
        bracket_open, bracket_close, paren_open, paren_close = (
            bisect_right(ends, offset) for offset in (link.start, link.middle, link.middle + 1, link.end - 1)
        )
        return DetectedLink(
            bracket_open_pos=bracket_open,
            bracket_close_pos=bracket_close,
            paren_open_pos=paren_open,
            paren_close_pos=paren_close,
            link_text_tokens=self._tokens_of(link.text, ids[bracket_open + 1 : bracket_close]),
            target_tokens=self._tokens_of(link.target, ids[paren_open + 1 : paren_close]),
            text=link.text,
            target=link.target,
        )

    def _tokens_of(self, text: str, between: list[int]) -> list[int]:
        if b"".join(self.tokenizer.token_bytes(token) for token in between) == text.encode():
            return between
        return self.tokenizer.encode(text)


def _as_ids(tokens: Any) -> list[int]:
    """`tokens` as a list of ids; arrays and tensors make their own, so that torch need not be imported."""
    ids = tokens.tolist() if hasattr(tokens, "tolist") else tokens
    if len(ids) == 1 and isinstance(ids[0], Sequence):
        ids = ids[0]
    if any(isinstance(token, Sequence) for token in ids):
        raise ValueError(f"tokens must have the shape [T] or [1, T], got {len(ids)} rows")
    return list(ids)
