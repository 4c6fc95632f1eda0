"""What is asked of a runtime: requests, how many at once, and how much each writes.

All are greedy, and no token ends a document: how much is computed does not depend on what is written, but where a
model writes links of its own. Documents have no layout: a prompt of so many tokens is so many tokens.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from ds2ds.corpus.document_corpus import DocumentCorpus
from ds2ds.errors import ConfigError, CorpusError
from ds2ds.model.config import ModelConfig
from ds2ds.tokenizer import Tokenizer

LINKS_PER_REQUEST = 4
LINKS_AT_ONCE = 4
LONGEST_DOCUMENT = 512
WINDOW = 2048
ZIPF_EXPONENT = 1.0

_PLAIN_TITLE = re.compile(r"[\w -]+")  # needs no escapes in a link


@dataclass(frozen=True)
class Workload:
    """Attributes:
    name: "single", "batch", "links" or "long".
    prompts: token ids, one list for each request.
    at_once: requests that are in the engine at a time; as one ends, the next one comes (a closed loop). Where that is
        all of them, they all arrive at the same moment.
    tokens: that each request writes.
    settings: the rest of GenerationConfig's fields that matter.
    kept: [documents], lengths of what the requests bring in; the arena is to have room for all of it.
    """

    name: str
    prompts: list[list[int]]
    at_once: int
    tokens: int
    settings: dict[str, Any]
    corpus: Any = None
    kept: list[int] = field(default_factory=list)

    def slots(self, block: int) -> int:
        """Slots of an arena in which no request waits for room and nothing is computed twice.

        Args:
            block: alignment of extents in this arena.
        """
        window, longest = self.settings["max_context_length"], self.settings["max_tokens_per_document"]
        reserved = min(window, longest) * (self.settings["max_link_depth"] + 1)
        need = window + reserved + block * (self.settings["max_auxiliary_documents"] + 1)
        kept = [*self.kept, *map(len, self.prompts)]
        return self.at_once * need + sum(-(-length // block) * block for length in kept)


def single(config: ModelConfig, tokens: int, context: int, seed: int) -> Workload:
    """One request, after a prompt of `context` random tokens."""
    return _without_links("single", config, 1, tokens, context, seed)


def batch(config: ModelConfig, requests: int, tokens: int, context: int, seed: int) -> Workload:
    """So many requests, all at once, each after a prompt of its own of `context` random tokens."""
    return _without_links("batch", config, requests, tokens, context, seed)


def long(config: ModelConfig, tokens: int, context: int | None, seed: int) -> Workload:
    """As `single`; where no context is given, as long a one as the model takes."""
    longest = max(1, config.max_seq_len - tokens)
    return _without_links("long", config, 1, tokens, longest if context is None else context, seed)


def links(
    config: ModelConfig,
    tokenizer: Tokenizer,
    corpus: DocumentCorpus,
    requests: int,
    tokens: int,
    seed: int,
    *,
    per_request: int = LINKS_PER_REQUEST,
    at_once: int = LINKS_AT_ONCE,
) -> Workload:
    """Requests whose prompts link documents of a corpus, chosen by Zipf's law: the one that most others link to is of
    rank 1, and rank r has a probability proportional to 1/r.

    Links that the model writes are followed too, into the corpus only.

    Raises:
        ConfigError: the model has no room for the prompts; CorpusError: the corpus has too few documents.
    """
    chosen = zipf_titles(corpus, requests, per_request, seed)
    prompts = [
        tokenizer.encode(f"Request {number}. See {_linked(titles)}. In short, they say that")
        for number, titles in enumerate(chosen)
    ]
    window = min(WINDOW, config.max_seq_len)
    longest = max(map(len, prompts)) + tokens
    if longest > window:
        raise ConfigError(
            f"links: a prompt and {tokens} tokens come to {longest}, more than the {window} in view: ask for fewer"
        )
    distinct = dict.fromkeys(title for titles in chosen for title in titles)
    lengths = (len(body) for title in distinct if (body := corpus.get_document(title)) is not None)
    settings = _settings(config, window, max(longest, min(LONGEST_DOCUMENT, window)))
    settings |= {"max_link_depth": 1, "max_auxiliary_documents": per_request + 1, "process_prompt_links": True}
    kept = [min(length, settings["max_tokens_per_document"]) for length in lengths]
    return Workload("links", prompts, min(at_once, requests), tokens, settings, corpus, kept)


def zipf_titles(corpus: DocumentCorpus, requests: int, per_request: int, seed: int) -> list[list[str]]:
    """For each request as many titles, no two the same, of a corpus' documents that are not empty.

    Raises:
        CorpusError: the corpus has not so many.
    """
    ranked = [title for title in corpus.most_linked(len(corpus)) if _PLAIN_TITLE.fullmatch(title)]
    if len(ranked) < per_request:
        raise CorpusError(f"{corpus.path} has {len(ranked)} titles that can be linked, {per_request} are needed")
    weights = list(accumulate(rank**-ZIPF_EXPONENT for rank in range(1, len(ranked) + 1)))
    draw = random.Random(seed)
    chosen = []
    for _ in range(requests):
        titles: dict[str, None] = {}
        while len(titles) < per_request:
            titles[draw.choices(ranked, cum_weights=weights)[0]] = None
        chosen.append(list(titles))
    return chosen


def _without_links(name: str, config: ModelConfig, requests: int, tokens: int, context: int, seed: int) -> Workload:
    length = context + tokens
    if length > config.max_seq_len:
        raise ConfigError(
            f"{name}: context {context} and {tokens} tokens exceed the model's max_seq_len {config.max_seq_len}"
        )
    draw = random.Random(f"{seed} {name} {requests}")
    prompts = [draw.choices(range(config.vocab_size - 1), k=context) for _ in range(requests)]
    settings = _settings(config, length, length)
    return Workload(name, prompts, requests, tokens, settings)


def _settings(config: ModelConfig, window: int, longest: int) -> dict[str, Any]:
    """Links are looked for, not followed; the vocabulary has no token that ends a document."""
    return {
        "max_context_length": window,
        "max_tokens_per_document": longest,
        "max_auxiliary_documents": 0,
        "max_link_depth": 0,
        "process_prompt_links": False,
        "allow_corpus_fallback": False,
        "temperature": 0.0,
        "seed": 0,
        "eos_token_id": config.vocab_size,
    }


def _linked(titles: Sequence[str]) -> str:
    return ", ".join(f"[{title}]({title})" for title in titles)
