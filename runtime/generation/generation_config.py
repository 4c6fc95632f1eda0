"""The settings of one request."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from ds2ds.corpus.resolving.specification import resolver_order
from ds2ds.documents.eviction import EVICTION_POLICIES
from ds2ds.errors import ConfigError

MOST_TOP_LOGPROBS = 20

SWITCHES = (
    "allow_corpus_fallback",
    "process_prompt_links",
    "allow_recursive_links",
    "logprobs",
    "prompt_logprobs",
    "ignore_eos",
)
_BEAMS = ("num_beams", "num_return_sequences")

_WITH_BEAMS = {
    "temperature": (1.0, 0.0),
    "top_k": (None, 0),
    "top_p": (1.0,),
    "min_p": (0.0,),
    "repetition_penalty": (1.0,),
    "prompt_logprobs": (False,),
    "top_logprobs": (0,),
}
"""What the settings may be that a beam search cannot do with: those of sampling, since nothing is drawn, off."""


@dataclass(frozen=True)
class GenerationConfig:
    """Settings of one request; every value is checked.

    Attributes:
        max_new_tokens: most tokens written in one document.
        temperature: 0 takes the likeliest token.
        top_k: sample among the k likeliest tokens; None or 0: all.
        top_p: sample among the likeliest tokens that together reach this probability; 1: all.
        min_p: sample among tokens at least this share as likely as the likeliest; 0: all.
        repetition_penalty: divides the (positive) logits of tokens the document has; 1: off.
        max_tokens_per_document: most tokens of one document, prompt and layout included.
        max_context_length: most tokens in view.
        max_auxiliary_documents: most documents in view besides the root.
        max_link_depth: how far links are followed; the root is at depth 0. 0: no links.
        allow_corpus_fallback: write what the corpus lacks.
        eviction_policy: which document leaves when a new one finds no room: "drop_oldest", "least_recently_linked",
            "largest_first", or "stop_new": none, the new one is refused.
        process_prompt_links: follow links in the prompt.
        allow_recursive_links: follow links of documents other than the root.
        eos_token_id: ends a document. The model's vocab_size, which is no id of it: none does.
        stop: strings that end a document; they are cut from its text.
        stop_token_ids: tokens that end a document; they are its last, but not in its text.
        ignore_eos: write on after EOS, as a load test does that wants so many tokens.
        seed: of all noise; None: drawn from torch's global generator, so that torch.manual_seed counts.
        logprobs: return every written token's log-probability.
        prompt_logprobs: return those of the prompt's tokens too, each given those before it.
        top_logprobs: beside each of these, as many of the likeliest tokens there, 0 to 20.
        num_beams: hypotheses that a beam search keeps (see `ds2ds.generation.beam_search`); 1: tokens are drawn. A
            search draws nothing: temperature must be 1 or 0 then, and what else changes a distribution be off.
        length_penalty: the score of a hypothesis is its log-probability over (tokens written) ** length_penalty; above
            0 favours long ones. Like the two below, of no effect without beams.
        early_stopping: when a search ends. True: num_beams hypotheses are finished; False: and none in progress would
            beat the worst of them if it ended now; "never": and none can whatever it writes.
        num_return_sequences: results to return, the best and its alternatives, at most num_beams.
        title_resolution: how a link's target finds its document, in order: "exact", the corpus' own rule, always the
            first; "folded", without case, punctuation, diacritics and spacing; "redirects[=FILE]", other names from a
            JSON file, or the corpus' redirects.json; "edit[:MINIMUM]", the likest title by edit distance;
            "embeddings=MODEL[:MINIMUM]", the nearest by a sentence-transformers model. Or all in one string, with
            commas. Empty: exact alone, or what a ResolvingCorpus has.
        device: must be the runtime's, if given.

    Raises:
        ConfigError: (a ValueError) a value is out of range; the message names field and value.
    """

    max_new_tokens: int = 100
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    max_tokens_per_document: int = 512
    max_context_length: int = 2048
    max_auxiliary_documents: int = 5
    max_link_depth: int = 1
    allow_corpus_fallback: bool = True
    eviction_policy: str = "drop_oldest"
    process_prompt_links: bool = True
    allow_recursive_links: bool = True
    eos_token_id: int = 50256
    device: str | None = None
    seed: int | None = None
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: Sequence[str] = ()
    logprobs: bool = False
    prompt_logprobs: bool = False
    top_logprobs: int = 0
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    title_resolution: str | Sequence[str] = ()
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    num_return_sequences: int = 1

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "max_tokens_per_document", "max_context_length", *_BEAMS):
            if self._integer(name) < 1:
                raise ConfigError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("max_auxiliary_documents", "max_link_depth", "eos_token_id"):
            if self._integer(name) < 0:
                raise ConfigError(f"{name} must be >= 0, got {getattr(self, name)}")
        if self.top_k is not None and self._integer("top_k") < 0:
            raise ConfigError(f"top_k must be >= 0, got {self.top_k}")
        if self.seed is not None and not -(2**63) <= self._integer("seed") < 2**63:
            raise ConfigError(f"seed must fit in 64 bits, got {self.seed}")
        if not 0 <= self._number("temperature") < math.inf:
            raise ConfigError(f"temperature must be >= 0, got {self.temperature}")
        if not 0 < self._number("top_p") <= 1:
            raise ConfigError(f"top_p must be in (0, 1], got {self.top_p}")
        if not 0 <= self._number("min_p") <= 1:
            raise ConfigError(f"min_p must be in [0, 1], got {self.min_p}")
        if not 0 < self._number("repetition_penalty") < math.inf:
            raise ConfigError(f"repetition_penalty must be positive, got {self.repetition_penalty}")
        if not 0 <= self._integer("top_logprobs") <= MOST_TOP_LOGPROBS:
            raise ConfigError(f"top_logprobs must be in [0, {MOST_TOP_LOGPROBS}], got {self.top_logprobs}")
        for name in SWITCHES:
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} must be True or False, got {getattr(self, name)!r}")
        if not isinstance(self.eviction_policy, str) or self.eviction_policy not in EVICTION_POLICIES:
            names = tuple(EVICTION_POLICIES)
            raise ConfigError(f"eviction_policy must be one of {names}, got {self.eviction_policy!r}")
        self._check_stop()
        self._check_stop_token_ids()
        self._check_title_resolution()
        self._check_beams()
        if self.device is not None:
            parse_device(self.device)

    def _check_stop(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop
        if not isinstance(stop, Sequence) or not all(isinstance(text, str) and text for text in stop):
            raise ConfigError(f"stop must be a string or a sequence of strings, none of them empty, got {self.stop!r}")
        object.__setattr__(self, "stop", tuple(stop))

    def _check_stop_token_ids(self) -> None:
        ids = self.stop_token_ids
        listed = isinstance(ids, Sequence) and not isinstance(ids, str)
        if not listed or not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
            raise ConfigError(f"stop_token_ids must be a sequence of token ids >= 0, got {ids!r}")
        object.__setattr__(self, "stop_token_ids", tuple(ids))

    def _check_title_resolution(self) -> None:
        given = self.title_resolution
        if not isinstance(given, str | Sequence):
            raise ConfigError(f"title_resolution must be a string or a sequence of strings, got {given!r}")
        try:
            object.__setattr__(self, "title_resolution", resolver_order(given) if given else ())
        except ConfigError as error:
            raise ConfigError(f"title_resolution: {error}") from error

    def _check_beams(self) -> None:
        if not abs(self._number("length_penalty")) <= 10:
            raise ConfigError(f"length_penalty must be in [-10, 10], got {self.length_penalty}")
        if not isinstance(self.early_stopping, bool) and self.early_stopping != "never":
            raise ConfigError(f"early_stopping must be True, False or 'never', got {self.early_stopping!r}")
        if self.num_return_sequences > self.num_beams:
            raise ConfigError(
                f"num_return_sequences must be at most num_beams {self.num_beams}, got {self.num_return_sequences}"
            )
        for name, allowed in _WITH_BEAMS.items():
            if self.num_beams > 1 and getattr(self, name) not in allowed:
                wanted = " or ".join(map(str, allowed))
                raise ConfigError(f"{name} must be {wanted} with num_beams above 1, got {getattr(self, name)}")

    def _integer(self, name: str) -> int:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int):
            raise ConfigError(f"{name} must be an integer, got {value!r}")
        return value

    def _number(self, name: str) -> float:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ConfigError(f"{name} must be a number, got {value!r}")
        # In float32, as the sampler computes: 1e39 is infinite there, and 1e-60 is 0.
        return torch.tensor(float(value), dtype=torch.float32).item()

    @property
    def tells_logprobs(self) -> bool:
        """Whether results hold log-probabilities."""
        return self.logprobs or self.prompt_logprobs or self.top_logprobs > 0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        values = asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def with_overrides(self, **overrides: Any) -> GenerationConfig:
        """A copy with some fields changed.

        Raises:
            ConfigError: an override is no field of GenerationConfig.
        """
        unknown = sorted(set(overrides) - set(self.__dataclass_fields__))
        if unknown:
            raise ConfigError(f"unknown generation settings {unknown}; known are {sorted(self.__dataclass_fields__)}")
        return replace(self, **overrides)


def resolve_config(
    config: GenerationConfig | None, default: GenerationConfig, overrides: dict[str, Any]
) -> GenerationConfig:
    """The settings of a call: the config given, or the default, with the call's own overrides."""
    if config is not None and not isinstance(config, GenerationConfig):
        raise ConfigError(f"config must be a GenerationConfig, got {type(config).__name__}")
    return (config or default).with_overrides(**overrides)


def scoring(config: GenerationConfig) -> GenerationConfig:
    """These settings, for a request that only says how likely its prompt is."""
    return config.with_overrides(
        allow_corpus_fallback=False, prompt_logprobs=True, seed=0, num_beams=1, num_return_sequences=1
    )


def parse_device(device: str | torch.device) -> torch.device:
    """A device that is here.

    Raises:
        ConfigError: no such device.
    """
    try:
        parsed = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"device must be 'cpu' or 'cuda' (or 'cuda:N'), got {device!r}") from error
    if parsed.type not in ("cpu", "cuda"):
        raise ConfigError(f"device must be 'cpu' or 'cuda' (or 'cuda:N'), got {device!r}")
    if parsed.type == "cuda" and (parsed.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device {device!r} is not here: torch sees {torch.cuda.device_count()} CUDA devices")
    return parsed
