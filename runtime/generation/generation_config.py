"""The settings of one request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from ds2ds.errors import ConfigError
from ds2ds.generation.config_checks import checked

_NO_BEAMS = {"num_beams": 1, "num_return_sequences": 1}


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
        eos_token_id: ends a document, and stands around it under layouts with marks. The model's vocab_size, which is
            no id of it: none does.
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
        device: must be the runtime's, if given; kept as its name.

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
    device: str | torch.device | None = None
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
        for name, value in checked(vars(self)).items():
            object.__setattr__(self, name, value)
        if self.device is not None:
            object.__setattr__(self, "device", str(parse_device(self.device)))

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


def scoring(config: GenerationConfig | None, default: GenerationConfig, overrides: dict[str, Any]) -> GenerationConfig:
    """The settings of a call that only says how likely its prompts are.

    Nothing is searched, so beams keep nothing else from being asked for: they are checked by themselves.
    """
    given = vars(resolve_config(config, default, {}))
    GenerationConfig(**{name: overrides.get(name, given[name]) for name in _NO_BEAMS})
    settings = resolve_config(config, default, overrides | _NO_BEAMS)
    return settings.with_overrides(allow_corpus_fallback=False, prompt_logprobs=True, seed=0)


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
