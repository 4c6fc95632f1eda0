"""A model for EleutherAI's lm-evaluation-harness: importing this module registers it as "ds2ds".

    import ds2ds.adapters.lm_eval
    lm_eval.simple_evaluate(model="ds2ds", model_args={"pretrained": "demo", "corpus": "demo"}, tasks=[...])

What a text links to is in view of its later tokens: `corpus`, `max_link_depth` and other settings of GenerationConfig
say what and how far; with `max_link_depth=0` scores are those of the text alone.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from ds2ds.adapters.written import config_for, written_text
from ds2ds.backend import Backend
from ds2ds.errors import ConfigError, GenerationError
from ds2ds.generation.generation_config import GenerationConfig
from ds2ds.runtime import Runtime

try:
    import lm_eval.models  # noqa: F401  the harness lists its own models only where none is registered yet
    from lm_eval import utils
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
except ImportError as error:
    raise ConfigError("ds2ds.adapters.lm_eval needs lm-eval: pip install 'ds2ds[eval]'") from error
from tqdm import tqdm

AT_ONCE = 256
"""Prompts given to the backend in one call: it batches them as it has room, and the bar moves on after each call."""

SETTINGS = frozenset(GenerationConfig.__dataclass_fields__) - {
    "max_new_tokens",
    "stop",
    "eos_token_id",
    "device",
    "logprobs",
    "prompt_logprobs",
    "top_logprobs",
}


@register_model("ds2ds")
class DS2DSLM(TemplateLM):
    """The harness's LM over a backend.

    Args:
        pretrained: checkpoint folder, or "demo"; not with `backend`.
        backend: what generates and scores, in place of a Runtime of its own.
        corpus: where links lead, as for `Runtime.generate`; None or "none": nowhere.
        batch_size: most requests that run at a time; None or "auto": as many as there is room for.
        max_batch_size: as the harness passes it; the larger of the two counts.
        max_length: most tokens of a text, without the layout's mark; None: what the model can do.
        max_gen_toks: most tokens written where a task does not say; None: 256, or half of max_length if that is less.
        device: as for `Runtime.from_pretrained`.
        dtype: the same.
        settings: fields of GenerationConfig, such as max_link_depth.

    Raises:
        ConfigError: an argument is unknown or out of range; CheckpointError: there is no such checkpoint.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        backend: Backend | None = None,
        corpus: Any = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        max_length: int | None = None,
        max_gen_toks: int | None = None,
        device: str | None = None,
        dtype: str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        unknown = sorted(set(settings) - SETTINGS)
        if unknown:
            raise ConfigError(f"unknown arguments {unknown} of the ds2ds model; settings are {sorted(SETTINGS)}")
        if (pretrained is None) == (backend is None):
            raise ConfigError("give pretrained (a checkpoint) or backend, and not both")
        if backend is None:
            running = _at_once(batch_size, max_batch_size)
            options = {} if running is None else {"max_running": running}
            backend = Runtime.from_pretrained(str(pretrained), device, dtype, **options)
        self.backend = backend
        self.corpus = None if corpus == "none" else corpus
        self.settings = settings
        default = backend.default_config().with_overrides(**settings)
        self.eos: int = default.eos_token_id
        # Where the layout puts its mark before a text, that takes the place of a token.
        longest = default.max_context_length - backend.limits.has_marks
        if max_length is not None and not 2 <= max_length <= longest:
            raise ConfigError(f"max_length must be in [2, {longest}], got {max_length}")
        self.max_length = longest if max_length is None else max_length
        if max_gen_toks is None:
            max_gen_toks = min(256, self.max_length // 2)
        if not 1 <= max_gen_toks < self.max_length:
            raise ConfigError(f"max_gen_toks must be in [1, {self.max_length}), got {max_gen_toks}")
        self.max_gen_toks = max_gen_toks

    @property
    def eot_token_id(self) -> int:
        return self.eos

    @property
    def tokenizer_name(self) -> str:
        return f"ds2ds-{self.backend.limits.vocab_size}"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """No tokens are added: what stands around a document is the layout's."""
        return self.backend.tokenize(string)

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[Any, Sequence[int], Sequence[int]]],
        disable_tqdm: bool = False,
        **_: Any,
    ) -> list[tuple[float, bool]]:
        """(log-likelihood, whether it is what greedy decoding would write) of each continuation after its context."""
        found: list[tuple[float, bool]] = []
        with tqdm(total=len(requests), desc="Scoring", disable=disable_tqdm) as bar:
            for some in _parts(requests):
                # From the left, as the harness cuts: what is scored stays whole where that is possible.
                texts = [[*context, *continuation][-self.max_length :] for _, context, continuation in some]
                scored = self.backend.score(texts, self.corpus, self._config(), top_logprobs=1)
                for (text, _, continuation), tokens, result in zip(some, texts, scored, strict=True):
                    answer = _likelihood(result.root_document, min(len(continuation), len(tokens) - 1))
                    found.append(answer)
                    if text is not None:
                        self.cache_hook.add_partial("loglikelihood", text, answer)
                bar.update(len(some))
        return found

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of whole texts, in windows where they are longer than max_length."""
        windows: list[tuple[None, Sequence[int], Sequence[int]]] = []
        owner: list[int] = []
        for index, (text,) in enumerate(request.args for request in requests):
            rolling = utils.get_rolling_token_windows(self.tok_encode(text), self.eos, self.max_length - 1, 1)
            for context, continuation in map(utils.make_disjoint_window, rolling):
                windows.append((None, context, continuation))
                owner.append(index)
        totals = [0.0] * len(requests)
        for index, (likelihood, _) in zip(owner, self._loglikelihood_tokens(windows, disable_tqdm), strict=True):
            totals[index] += likelihood
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """What each context is continued with, up to a stop string. Requests with the same settings share batches."""
        groups: dict[GenerationConfig, list[int]] = defaultdict(list)
        prompts = []
        for index, (context, wanted) in enumerate(request.args for request in requests):
            tokens, config = self._prompt(self.tok_encode(context), dict(wanted))
            prompts.append(tokens)
            groups[config].append(index)
        texts = [""] * len(requests)
        with tqdm(total=len(requests), desc="Generating", disable=disable_tqdm) as bar:
            for config, members in groups.items():
                for some in _parts(members):
                    results = self.backend.generate_batch([prompts[index] for index in some], self.corpus, config)
                    for index, result in zip(some, results, strict=True):
                        texts[index] = written_text(self.backend, result.root_document, self.eos)
                        self.cache_hook.add_partial("generate_until", requests[index].args, texts[index])
                    bar.update(len(some))
        return texts

    def _prompt(self, tokens: list[int], wanted: dict[str, Any]) -> tuple[list[int], GenerationConfig]:
        """What is written after, and how, from a task's generation arguments; the oldest tokens go for want of room.

        Raises:
            ConfigError: there is an argument that is not known.
        """
        until = wanted.pop("until", None) or ()
        lengths = [wanted.pop(name, None) for name in ("max_gen_toks", "max_new_tokens", "max_tokens")]
        new = next((length for length in lengths if length is not None), self.max_gen_toks)
        new = min(new, self.max_length - 1)
        # The harness's rule: without do_sample, and without a temperature, decoding is greedy.
        sample = wanted.pop("do_sample", None)
        temperature = wanted.pop("temperature", 0.0 if not sample else 1.0)
        unknown = sorted(set(wanted) - SETTINGS)
        if unknown:
            raise ConfigError(f"the task asks for {unknown}, which ds2ds does not have; it has {sorted(SETTINGS)}")
        settings = {**self.settings, **wanted, "stop": until}
        settings["temperature"] = 0.0 if sample is False else temperature
        kept = (tokens or [self.eos])[-(self.max_length - new) :]
        return kept, config_for(self.backend, len(kept), new, settings)

    def _config(self) -> GenerationConfig:
        return config_for(self.backend, self.max_length, 1, self.settings)


def _likelihood(document: Any, length: int) -> tuple[float, bool]:
    """Of the last `length` tokens of a scored document."""
    if length <= 0:
        return 0.0, True
    logprobs = document.token_logprobs[-length:]
    total = math.fsum(float(logprob) for logprob in logprobs)
    if math.isnan(total):
        raise GenerationError(f"the score of {document.text!r} is not a number")
    tokens, likeliest = document.tokens[-length:], document.top_logprobs[-length:]
    return total, all(top[0][0] == token for token, top in zip(tokens, likeliest, strict=True))


def _at_once(*sizes: int | str | None) -> int | None:
    """How many requests may run at a time; None: as many as there is room for."""
    given = [size for size in sizes if size is not None]
    if any(isinstance(size, str) and size.startswith("auto") for size in given):
        return None
    try:
        return max((int(size) for size in given), default=None)
    except ValueError as error:
        raise ConfigError(f"batch_size must be a positive integer or 'auto', got {given}") from error


def _parts(items: Sequence[Any]) -> Iterable[Sequence[Any]]:
    return (items[at : at + AT_ONCE] for at in range(0, len(items), AT_ONCE))
