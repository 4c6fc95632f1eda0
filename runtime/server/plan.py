"""From a request to the choices that it asks for: each a prompt and the settings to write it on with."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from ds2ds.backend import AsyncBackend
from ds2ds.errors import ConfigError
from ds2ds.generation.generation_config import GenerationConfig
from ds2ds.server.errors import ApiError, shown
from ds2ds.server.protocol import CompletionRequest
from ds2ds.server.settings import ServerSettings

DEFAULT_MAX_TOKENS = 16
"""OpenAI's."""

NO_CORPUS = "none"

Tokens: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class ChoicePlan:
    """One text to write.

    Attributes:
        prompt: token ids.
        writes: False: the prompt is only scored.
        logprobs: how many alternatives to tell; None: no log-probabilities.
        first: it is the first of its prompt's choices.
    """

    index: int
    prompt: Tokens
    corpus: Any
    config: GenerationConfig
    writes: bool
    echo: bool
    logprobs: int | None
    first: bool


class Planner:
    """Checks requests against what the backend can do and the server allows.

    Args:
        corpora: by the names under which requests ask for them; the first is the default.

    Attributes:
        longest_prompt: most tokens of a prompt and what is written.
    """

    def __init__(self, backend: AsyncBackend, corpora: Mapping[str, Any], settings: ServerSettings) -> None:
        self.backend, self.corpora, self.settings = backend, corpora, settings
        self.limits = backend.limits
        self.default = backend.default_config()
        longest = settings.max_context_length
        if longest is not None and longest > self.limits.max_context_length:
            raise ConfigError(
                f"max_context_length must be at most the model's {self.limits.max_context_length}, got {longest}"
            )
        self.max_context_length = longest or self.default.max_context_length
        self.longest_prompt = self.max_context_length - int(self.limits.has_marks)

    async def plan(self, body: CompletionRequest) -> list[ChoicePlan]:
        """The choices, prompts times n.

        Raises:
            ApiError: the request asks for what cannot be had.
        """
        if body.model != self.settings.model:
            raise ApiError(
                404,
                f"the model {shown(body.model)} does not exist: this server has {self.settings.model!r}",
                param="model",
                code="model_not_found",
            )
        prompts, n = body.prompts, body.n or 1
        if len(prompts) * n > self.settings.max_choices:
            raise ApiError(
                400,
                f"prompts times n must be at most {self.settings.max_choices}, got {len(prompts)} x {n}",
                param="n" if n > 1 else "prompt",
            )
        corpus = self._corpus(body.corpus)
        deepest = self.settings.max_link_depth
        depth = min(self.default.max_link_depth, deepest) if body.max_link_depth is None else body.max_link_depth
        self._check_most("max_link_depth", depth, deepest)
        max_tokens, most = body.max_tokens, self.settings.max_tokens
        if max_tokens is None:
            max_tokens = DEFAULT_MAX_TOKENS if most is None else min(DEFAULT_MAX_TOKENS, most)
        if most is not None:
            self._check_most("max_tokens", max_tokens, most)
        wrong = next((token for token in body.stop_token_ids or () if token >= self.limits.vocab_size), None)
        if wrong is not None:
            raise self._no_token("stop_token_ids", wrong)
        choices: list[ChoicePlan] = []
        for prompt in prompts:
            tokens = await self._tokens(prompt)
            config = self._config(body, tokens, max_tokens, depth)
            choices += [
                ChoicePlan(
                    index=len(choices) + at,
                    prompt=tokens,
                    corpus=corpus,
                    config=config.with_overrides(seed=choice_seed(body.seed, at)),
                    writes=max_tokens > 0,
                    echo=bool(body.echo),
                    logprobs=body.logprobs,
                    first=at == 0,
                )
                for at in range(n)
            ]
        return choices

    def _corpus(self, name: str | None) -> Any:
        if name is None:
            return next(iter(self.corpora.values()), None)
        if name != NO_CORPUS and name not in self.corpora:
            known = [*self.corpora, NO_CORPUS]
            raise ApiError(400, f"corpus must be one of {known}, got {shown(name)}", param="corpus")
        return self.corpora.get(name)

    async def _tokens(self, prompt: str | Sequence[int]) -> Tokens:
        if isinstance(prompt, str):
            # Long text takes a while, in which others want to be served.
            return tuple(await asyncio.to_thread(self.backend.tokenize, prompt))
        wrong = next((token for token in prompt if not 0 <= token < self.limits.vocab_size), None)
        if wrong is not None:
            raise self._no_token("prompt", wrong)
        return tuple(prompt)

    def _config(self, body: CompletionRequest, tokens: Tokens, max_tokens: int, depth: int) -> GenerationConfig:
        """The settings but for the seed."""
        longest, prompt = self.max_context_length, len(tokens) + self._marks(tokens)
        if prompt + max_tokens > longest:
            raise ApiError(
                400,
                f"the context has {longest} tokens, but the prompt has {prompt} and max_tokens is {max_tokens}",
                param="prompt" if prompt > longest else "max_tokens",
                code="context_length_exceeded",
            )
        given: dict[str, Any] = {
            "temperature": body.temperature,
            "top_p": body.top_p,
            "top_k": body.top_k,
            "min_p": body.min_p,
            "repetition_penalty": body.repetition_penalty,
            "stop": body.stop,
            "stop_token_ids": body.stop_token_ids,
            "ignore_eos": body.ignore_eos,
        }
        needed = prompt + max(1, max_tokens)
        if depth == 0:
            # Nothing but the prompt and what is written: no room is kept free for anything else.
            room = {"max_context_length": needed, "max_tokens_per_document": needed, "max_auxiliary_documents": 0}
        else:
            of_document = min(longest, max(self.default.max_tokens_per_document, needed))
            room = {"max_context_length": longest, "max_tokens_per_document": of_document}
        return self.default.with_overrides(
            max_new_tokens=max(1, max_tokens),
            max_link_depth=depth,
            logprobs=body.logprobs is not None,
            prompt_logprobs=body.logprobs is not None and bool(body.echo),
            top_logprobs=body.logprobs or 0,
            **room,
            **{name: value for name, value in given.items() if value is not None},
        )

    def _marks(self, tokens: Tokens) -> int:
        """Tokens that are put before a prompt: no document starts from nothing, or without the layout's mark."""
        marked = tokens[:1] == (self.limits.eos_token_id,)
        return int(not tokens or (self.limits.has_marks and not marked))

    def _check_most(self, name: str, value: int, most: int) -> None:
        if value > most:
            raise ApiError(400, f"{name} must be at most {most}, got {value}", param=name)

    def _no_token(self, name: str, token: int) -> ApiError:
        return ApiError(
            400, f"{name} must have token ids in [0, {self.limits.vocab_size}), got {shown(token)}", param=name
        )


def choice_seed(seed: int | None, at: int) -> int | None:
    """The seed of a prompt's choice: the first has the request's own, so that n does not change it."""
    if seed is None or at == 0:
        return seed
    digest = hashlib.blake2b(f"{seed}\n{at}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
