"""What the page sends."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from ds2ds.generation.choices import Answer, Follow, Quit, Skip, Supply
from ds2ds.server.protocol import CompletionRequest, Text


class SessionRequest(CompletionRequest):
    """A completion of one prompt, with what a reader can choose besides."""

    prompt: Text
    n: Literal[1] | None = None
    echo: Literal[False] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_auxiliary_documents: Annotated[int, Field(ge=0)] | None = None
    eviction_policy: Text | None = None
    allow_corpus_fallback: bool | None = None
    interactive: bool = False

    def overrides(self) -> dict[str, object]:
        """The settings that a completion does not have, as far as they are given."""
        names = ("max_auxiliary_documents", "eviction_policy", "allow_corpus_fallback")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class AnswerRequest(_Strict):
    session: Text
    question: int
    answer: Literal["follow", "skip", "supply", "quit"]
    text: Text | None = None

    def choice(self) -> Answer:
        """Raises ConfigError: a supplied text is blank."""
        if self.answer == "supply":
            return Supply(self.text or "")
        plain: dict[str, Answer] = {"follow": Follow(), "skip": Skip(), "quit": Quit()}
        return plain[self.answer]


class AttentionRequest(_Strict):
    """Of one token of a document of a session, by their numbers; without a token: an overview of all."""

    session: Text
    document: Annotated[int, Field(ge=0)]
    token: Annotated[int, Field(ge=0)] | None = None
