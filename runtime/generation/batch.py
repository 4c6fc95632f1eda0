"""Many prompts at a time: a request for each, all run to their ends, and what became of each in its place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from ds2ds.engine.engine import Engine
from ds2ds.errors import ConfigError, Ds2dsError
from ds2ds.generation.choices import OnLink
from ds2ds.generation.corpus_source import open_corpus
from ds2ds.generation.generation_config import GenerationConfig
from ds2ds.generation.linked_doc_generator import LinkedDocumentGenerator
from ds2ds.generation.request import Request
from ds2ds.generation.running import Running, queued


def new_requests(
    generator: LinkedDocumentGenerator,
    prompts: Sequence[str | Sequence[int]],
    corpus: Any,
    config: GenerationConfig,
    return_errors: bool,
    interactive: bool = False,
) -> list[Request | Ds2dsError]:
    """A request for each prompt, not queued yet; with return_errors, an error in the place of one that is wrong.

    Raises:
        ConfigError, CorpusError: an argument does not fit; without return_errors, also what is wrong with a prompt.
    """
    opened = open_corpus(corpus)
    if isinstance(prompts, str):
        raise ConfigError("prompts must be a sequence of prompts, got one string: use generate for one")
    if not isinstance(prompts, Iterable):
        raise ConfigError(f"prompts must be a sequence of prompts, got {type(prompts).__name__}")
    requests: list[Request | Ds2dsError] = []
    new_request = partial(generator.new_request, corpus=opened, config=config, interactive=interactive)
    for number, prompt in enumerate(prompts):
        text, tokens = (prompt, None) if isinstance(prompt, str) else (None, prompt)
        try:
            if prompt is None:
                raise ConfigError(f"prompts must be texts or token ids, got None at {number}")
            requests.append(new_request(text, tokens, number=number))
        except Ds2dsError as error:
            if not return_errors:
                raise
            requests.append(error)
    return requests


def run_all(
    engine: Engine,
    requests: Sequence[Request | Ds2dsError],
    submit: Callable[[Request, int], Running],
    priority: int,
    return_errors: bool,
    on_link: OnLink | None,
) -> list[Any]:
    """Run all requests to their ends; see `Runtime.generate_batch`."""
    running: list[Running] = []
    try:
        for request in requests:
            if isinstance(request, Request):
                running.append(queued(engine, partial(submit, request, priority)))
        while not all(one.job.done for one in running):
            engine.step()
            if on_link is not None:
                _answer(engine, running, on_link)
    finally:
        for one in running:
            engine.cancel(one.job)
    return in_place(requests, [one.job.error or one.result() for one in running], return_errors)


def in_place(requests: Sequence[Request | Ds2dsError], ended: Iterable[Any], return_errors: bool) -> list[Any]:
    """What the requests ended with, results and errors, among the errors of prompts that became no request.

    Raises:
        The first error that a request ended with, without return_errors.
    """
    outcomes = list(ended)
    errors = [one for one in outcomes if isinstance(one, BaseException)]
    if errors and not return_errors:
        raise errors[0]
    following = iter(outcomes)
    return [next(following) if isinstance(request, Request) else request for request in requests]


def _answer(engine: Engine, running: Sequence[Running], on_link: OnLink) -> None:
    """Have the questions answered that are open; what that raises ends the request alone."""
    for one in running:
        if one.job.question is not None:
            try:
                answer = on_link(one.job.question)
            except Exception as error:
                engine.cancel(one.job, error)
            else:
                engine.answer(one.job, answer)
