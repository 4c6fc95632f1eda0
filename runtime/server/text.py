"""Text of tokens: as it comes, with stop strings cut off, and of single tokens as log-probabilities name them."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence

TokenBytes = Callable[[int], bytes]


class TextWriter:
    """The text of tokens as they come.

    Characters come whole, with their last byte. What may turn out to begin a stop string is held back, and from a stop
    string on nothing is passed on: whoever draws the tokens stops at the same one.

    Attributes:
        length: characters that all tokens so far have, those held back or cut off included.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self.length = 0
        self._stop = stop
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""
        self._cut = False

    def feed(self, data: bytes) -> str:
        """A token's bytes; returns what can be passed on now."""
        return self._pass_on(self._decoder.decode(data))

    def finish(self) -> str:
        """What is left: bytes that are no character, and what began a stop string that never came."""
        return self._pass_on(self._decoder.decode(b"", final=True)) + self._take(len(self._held))

    def _pass_on(self, text: str) -> str:
        self.length += len(text)
        if self._cut:
            return ""
        self._held += text
        found = [at for stop in self._stop if (at := self._held.find(stop)) >= 0]
        if found:
            passed = self._take(min(found))
            self._held, self._cut = "", True
            return passed
        return self._take(len(self._held) - max((begun(self._held, stop) for stop in self._stop), default=0))

    def _take(self, length: int) -> str:
        taken, self._held = self._held[:length], self._held[length:]
        return taken


def begun(text: str, stop: str) -> int:
    """How many characters at the text's end are the beginning of a stop string, at most all but its last."""
    longest = min(len(text), len(stop) - 1)
    return next((length for length in range(longest, 0, -1) if text.endswith(stop[:length])), 0)


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
