"""Documents that write what a test wants: the tokens are given, everything else is computed as always.

Random weights write no links. Here the function that draws tokens is replaced by one that looks the next token up
under the document's title; its log-probability is still the model's own.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import oracle
import pytest
import torch

from ds2ds import Runtime
from ds2ds.documents.document import Document
from ds2ds.engine.work import Sampled, Sampling
from ds2ds.generation.running import Running
from ds2ds.model.ds2ds_model import DS2DSModel

EOS = 0
MERGED = (b"](", b").", b"), ", b" [", b")[", b" the", b"[x](B)[y](C)")


class ByteTokenizer:
    """EOS is 0, byte b is b + 1; then come a few tokens in which the marks of links merge with their surroundings."""

    name = "bytes"
    vocab_size = 257 + len(MERGED)
    eos_token_id = EOS

    def encode(self, text: str) -> list[int]:
        data, ids = text.encode(), []
        while data:
            merged = [i for i, piece in enumerate(MERGED) if data.startswith(piece)]
            longest = max(merged, key=lambda i: len(MERGED[i]), default=None)
            ids.append(data[0] + 1 if longest is None else 257 + longest)
            data = data[len(self.token_bytes(ids[-1])) :]
        return ids

    def token_bytes(self, token: int) -> bytes:
        return b"" if token == EOS else bytes([token - 1]) if token < 257 else MERGED[token - 257]

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(map(self.token_bytes, ids)).decode(errors="replace")


TOKENIZER = ByteTokenizer()
encode, decode = TOKENIZER.encode, TOKENIZER.decode


@functools.cache
def small_model(seed: int = 0, max_seq_len: int = 512, layout_policy: str = "null") -> DS2DSModel:
    """2 layers x 32 with random weights, float32. Shared between tests: do not change it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DS2DSModel.from_config(
            vocab_size=TOKENIZER.vocab_size,
            num_layers=2,
            model_dim=32,
            num_heads=2,
            max_seq_len=max_seq_len,
            weight_tying=False,
            layout_policy=layout_policy,
        )


@dataclass
class Texts:
    """A corpus in memory: title to text. Counts how often each document was fetched."""

    texts: Mapping[str, str]
    fetched: dict[str, int] = field(default_factory=dict)

    def has_document(self, title: str) -> bool:
        return title in self.texts

    def get_document(self, title: str) -> np.ndarray | None:
        if title not in self.texts:
            return None
        self.fetched[title] = self.fetched.get(title, 0) + 1
        return np.array(encode(self.texts[title]), dtype=np.uint16)


class Folding(Texts):
    """It knows its titles in any case."""

    def resolve(self, title: str) -> str | None:
        return next((known for known in self.texts if known.lower() == title.lower()), None)


def follow(monkeypatch: pytest.MonkeyPatch, script: Mapping[str, str | Sequence[int]]) -> None:
    """Let each document write its entry of the script (text or token ids), then EOS; "" is the untitled root's.

    A document that the script does not know is a KeyError, out of `Engine.step`.
    """
    tokens = {title: encode(text) if isinstance(text, str) else list(text) for title, text in script.items()}

    @torch.inference_mode()
    def scripted(
        model: DS2DSModel, hidden: torch.Tensor, documents: Sequence[Document], settings: Sequence[Sampling]
    ) -> list[Sampled]:
        logprobs = model.logits(hidden).log_softmax(-1)
        drawn = []
        for row, document in enumerate(documents):
            written = len(document.tokens) - document.given
            token = [*tokens[document.title], *[EOS] * 1000][written]
            drawn.append(Sampled(token, float(logprobs[row, token])))
        return drawn

    monkeypatch.setattr("ds2ds.engine.results.sample", scripted)


@contextmanager
def counting(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The number of rows of each forward pass."""
    rows: list[int] = []
    compute = DS2DSModel.hidden

    def hidden(self: DS2DSModel, tokens: torch.Tensor, *rest: Any) -> torch.Tensor:
        rows.append(len(tokens))
        return compute(self, tokens, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(DS2DSModel, "hidden", hidden)
        yield rows


def same_documents(ours: Iterable[Any], theirs: Iterable[Any], tolerance: float = 1e-4) -> None:
    """Fail unless two lists of GeneratedDocuments are the same, log-probabilities to rounding."""
    ours, theirs = list(ours), list(theirs)
    assert [document.title for document in ours] == [document.title for document in theirs]
    for one, other in zip(ours, theirs, strict=True):
        first, second = one.to_dict(), other.to_dict()
        scores = [np.array(d.pop("token_logprobs") or [], dtype=float) for d in (first, second)]
        assert first == second
        np.testing.assert_allclose(*scores, atol=tolerance)


def same_results(ours: Any, theirs: Any) -> None:
    """Fail unless two results have the same documents."""
    same_documents(ours.get_all_documents(), theirs.get_all_documents())


def small_runtime(layout_policy: str = "null", arena_tokens: int = 4096, seed: int = 0, **options: Any) -> Runtime:
    return Runtime(small_model(seed), TOKENIZER, layout_policy, arena_tokens=arena_tokens, **options)


def finish(runtime: Runtime, *running: Running) -> None:
    """Step until these are done; the books balance after each step."""
    while not all(one.job.done for one in running):
        runtime.engine.step()
        runtime.engine.check_integrity()


def is_clean(runtime: Runtime) -> bool:
    """Nothing runs, waits or is in use; the books balance. What the store keeps for later is no one's."""
    engine = runtime.engine
    engine.check_integrity()
    return not (engine.running or engine.parked or engine.queue or engine.store.documents())


def run(prompt: str, corpus: Any = None, *, layout: str = "null", title: str | None = None, **options: Any) -> Any:
    """Generate, within limits that are out of the way unless given; then check all that holds of any result."""
    runtime = small_runtime(layout)
    options = {"max_new_tokens": 300, "max_tokens_per_document": 300, "seed": 0, "logprobs": True, **options}
    result = runtime.generate(prompt, corpus=corpus, title=title, **options)
    assert is_clean(runtime)
    agrees_with_oracle(result)
    return result


def agrees_with_oracle(result: Any) -> None:
    """Fail unless every predicted token's log-probability is that of the dense reference (S6)."""
    documents: dict[str, oracle.Document] = {}
    for document in (*result.auxiliary_documents, result.root_document):
        grants = [(grant.position, documents[grant.title], grant.end) for grant in document.grants]
        documents[document.title] = oracle.Document(document.title, list(document.tokens), grants)
    for document, scores in zip(documents, oracle.Oracle(small_model()).log_probs([*documents.values()]), strict=True):
        found = result.get_document_by_title(document)
        for index in np.flatnonzero(~np.isnan(found.token_logprobs)):
            assert abs(scores[index - 1, found.tokens[index]] - found.token_logprobs[index]) < 1e-4, (document, index)


def grants(document: Any) -> list[tuple[int, str, int | None]]:
    return [(grant.position, grant.title, grant.end) for grant in document.grants]
