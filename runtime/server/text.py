"""Text of tokens: as it comes, with stop strings cut off, and of single tokens as log-probabilities name them."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from ds2ds.generation.stop_filter import StopFilter


class TextWriter:
    """The text of tokens as they come: characters whole, with their last byte, and stop strings held back and cut off.

    Attributes:
        length: characters that all tokens so far have, those held back or cut off included.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self.length = 0
        self._filter = StopFilter(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, data: bytes) -> str:
        """A token's bytes; returns what can be passed on now."""
        return self._pass_on(self._decoder.decode(data))

    def finish(self) -> str:
        """What is left: bytes that are no character, and what began a stop string that never came."""
        return self._pass_on(self._decoder.decode(b"", final=True)) + self._filter.flush()

    def _pass_on(self, text: str) -> str:
        self.length += len(text)
        return self._filter.feed(text)


def token_string(token: int, data: bytes, eos: int | None) -> str:
    """A token as OpenAI names it: its text, or its bytes where they are no whole characters.

    A token without text is named, too: no two are to have one name.
    """
    if token == eos:
        return "<|endoftext|>"
    if not data:
        return f"<|{token}|>"
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
