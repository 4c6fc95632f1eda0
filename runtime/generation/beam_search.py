"""Beam search over everything that a request writes.

A *hypothesis* is everything that was written so far, in all documents, in the order in which it was written: a document
that a link makes the model write stands in it between the link and what follows. Its score is the sum of the
log-probabilities of its tokens, under the model's raw distribution, divided by (number of tokens) ** length_penalty.
The rules are those of transformers, and so are the results for a document without links:

    until the search ends (`early_stopping`):
        rank the next tokens of all live hypotheses by the log-probability of the whole
        of the 2 * num_beams best continuations, in that order:
            one whose root ends with it is finished, if it is among the first num_beams
            any other lives on, until num_beams do
    return the finished ones by their score

EOS of any document but the root is a token like others. All limits hold for each hypothesis as they do without beams:
where one of them ends its root, it is finished. As every live hypothesis gets one token a step, all have equally many.
Equal continuations go by the rank of the hypothesis, then by token id: a search is deterministic, and `seed` without
effect. A search may find fewer hypotheses than num_return_sequences, where the limits leave no more.

What is computed is each prompt and document of the corpus once, and a token for each live hypothesis and step. (A root
whose prompt links to documents that are yet to be written is computed after these, and so once for each hypothesis.)
"""

from __future__ import annotations

import math
from dataclasses import replace

from ds2ds.documents.document import Document
from ds2ds.engine.work import AnyWork, Rank, Sampled
from ds2ds.generation.hypothesis import Hypothesis
from ds2ds.generation.request import Request


class BeamSearch:
    """Searches for the best hypotheses of a request.

    Attributes:
        window: the documents that the live hypotheses need in the arena.
        finished: at most num_beams hypotheses, the best first.
    """

    def __init__(self, request: Request) -> None:
        self.window: list[Document] = []
        self.finished: list[Hypothesis] = []
        self._config = request.config
        self._request = replace(request, corpus=request.corpus.remembered())
        self._most_tokens = _most_tokens(request)

    @property
    def best(self) -> list[Hypothesis]:
        """Those to return."""
        return self.finished[: self._config.num_return_sequences]

    def score(self, hypothesis: Hypothesis) -> float:
        return self._score(hypothesis.logprob, len(hypothesis.sent))

    def run(self) -> AnyWork:
        """Search to the end, and tell the events of the best hypothesis."""
        first = Hypothesis(self._request)
        live = [first]
        if first.document is None:
            self.finished, live = live, []
        while live and self._may_improve(live[0]):
            self.window[:] = dict.fromkeys(document for one in live for document in one.request.context.window)
            documents = tuple(one.document for one in live if one.document is not None)
            ranked = yield Rank(documents, 2 * self._config.num_beams)
            live = self._extended(live, ranked)
        self.window.clear()
        for event in self.finished[0].events:
            self._request.emit(event)

    def _extended(self, live: list[Hypothesis], ranked: list[list[Sampled]]) -> list[Hypothesis]:
        """The hypotheses to go on with, the likeliest first. What ends here goes to the finished ones.

        Args:
            live: the likeliest first.
            ranked: the next tokens of each.
        """
        beams = self._config.num_beams
        continuations = [(one, token) for one, tokens in zip(live, ranked, strict=True) for token in tokens]
        continuations.sort(key=lambda pair: -(pair[0].logprob + pair[1].logprob))
        moments = {one: one.moment() for one in live}
        gone_on: set[Hypothesis] = set()
        extended: list[Hypothesis] = []
        for rank, (one, token) in enumerate(continuations[: 2 * beams]):
            if len(extended) == beams:
                break
            # The first that goes on from a hypothesis is that one itself, the others are forks of it.
            hypothesis = Hypothesis(self._request, moments[one]) if one in gone_on else one
            gone_on.add(one)
            hypothesis.write(token)
            if hypothesis.document is not None:
                extended.append(hypothesis)
            elif rank < beams:
                self.finished = sorted([*self.finished, hypothesis], key=self.score, reverse=True)[:beams]
        return extended

    def _may_improve(self, likeliest: Hypothesis) -> bool:
        """Whether the search goes on: what may be finished yet against what is."""
        config = self._config
        if len(self.finished) < config.num_beams:
            return True
        if config.early_stopping is True:
            return False
        written: float = len(likeliest.sent)
        if config.early_stopping == "never" and config.length_penalty > 0:
            written = self._most_tokens
        return self._score(likeliest.logprob, written) > self.score(self.finished[-1])

    def _score(self, logprob: float, written: float) -> float:
        return logprob / max(written, 1) ** self._config.length_penalty


def _most_tokens(request: Request) -> float:
    """Most tokens that a hypothesis may come to write; where it may write other documents, there is no telling."""
    config = request.config
    if config.max_link_depth and config.allow_corpus_fallback:
        return math.inf
    most = min(config.max_tokens_per_document, config.max_context_length) - request.context.root.given
    return min(config.max_new_tokens, most)
