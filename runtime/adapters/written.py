"""What adapters have in common: room for what they ask for, and the text that was written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ds2ds.backend import Texts
from ds2ds.documents.generation_result import GeneratedDocument
from ds2ds.generation.generation_config import GenerationConfig


def config_for(backend: Texts, prompt_tokens: int, new_tokens: int, settings: dict[str, Any]) -> GenerationConfig:
    """Settings under which a document of so many tokens is not cut short, as long as the window has room for it.

    Callers of these interfaces know of prompts and new tokens alone, not of limits per document.
    """
    config = backend.default_config()
    room = min(prompt_tokens + new_tokens + 1, config.max_context_length)  # one more for the layout's mark
    longest = max(config.max_tokens_per_document, room)
    return config.with_overrides(
        **{"max_new_tokens": new_tokens, "max_tokens_per_document": longest, **settings},
    )


def written_tokens(document: GeneratedDocument) -> list[int]:
    """The tokens that the model wrote, EOS included."""
    return list(document.tokens or ())[document.given :]


def written_text(backend: Texts, document: GeneratedDocument, eos_token_id: int) -> str:
    """What the model wrote as text: no EOS, nothing from a stop string on."""
    tokens: Sequence[int] = document.tokens or ()
    start = backend.detokenize([token for token in tokens[: document.given] if token != eos_token_id])
    return (document.text or "")[len(start) :]
