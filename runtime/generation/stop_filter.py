"""What of a text can be shown while it is written, though a stop string may yet cut it."""

from __future__ import annotations

from collections.abc import Sequence


class StopFilter:
    """Holds back what may turn out to begin a stop string; from a stop string on nothing is passed on.

    Whoever draws the tokens stops at the same one.

    Attributes:
        passed: characters that were passed on.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self.passed = 0
        self._stop = stop
        self._held = ""
        self._cut = False

    def start(self, text: str) -> str:
        """Pass on what a document starts with: stop strings count only in what is written."""
        self.passed += len(text)
        return text

    def feed(self, text: str) -> str:
        """More text; returns what can be passed on now."""
        if not self._stop:
            self.passed += len(text)
            return text
        if self._cut:
            return ""
        self._held += text
        found = [at for stop in self._stop if (at := self._held.find(stop)) >= 0]
        if found:
            passed = self._take(min(found))
            self._held, self._cut = "", True
            return passed
        return self._take(len(self._held) - max((_begun(self._held, stop) for stop in self._stop), default=0))

    def flush(self, whole: str | None = None) -> str:
        """What is held back: all of it, or what the document's whole text has beyond what was passed on."""
        if whole is not None:
            self._held = whole[self.passed :]
        return self._take(len(self._held))

    def _take(self, length: int) -> str:
        taken, self._held = self._held[:length], self._held[length:]
        self.passed += length
        return taken


def _begun(text: str, stop: str) -> int:
    """How many characters at the text's end are the beginning of a stop string, at most all but its last."""
    longest = min(len(text), len(stop) - 1)
    return next((length for length in range(longest, 0, -1) if text.endswith(stop[:length])), 0)
