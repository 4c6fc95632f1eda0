"""The packaged model on the packaged corpus: real links, real documents, held to the dense oracle."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import oracle
import pytest
import torch

from ds2ds import DocumentCorpus, GenerationResult, Runtime

ON = {"max_new_tokens": 60, "logprobs": True, "seed": 2}


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    return Runtime.from_pretrained("demo", device="cpu")


@pytest.fixture(scope="module")
def corpus() -> Iterator[DocumentCorpus]:
    with DocumentCorpus("demo") as opened:
        yield opened


def expected_logprobs(runtime: Runtime, result: GenerationResult) -> dict[str, np.ndarray]:
    """Each document's log-probabilities of its own next tokens, from the oracle, [len(tokens) - 1]."""
    documents: dict[str, oracle.Document] = {}
    for document in [*result.auxiliary_documents, result.root_document]:
        grants = [(grant.position, documents[grant.title], grant.end) for grant in document.grants]
        documents[document.title] = oracle.Document(document.title, list(document.tokens or ()), grants)
    scores = oracle.Oracle(runtime.model).log_probs([*documents.values()])
    return {
        title: table[:-1].gather(1, torch.tensor(document.tokens[1:])[:, None])[:, 0].numpy()
        for (title, document), table in zip(documents.items(), scores, strict=True)
    }


@pytest.mark.parametrize(
    ("prompt", "settings"),
    [
        ("# Incremental linker\n\n", {"temperature": 0.7, "top_k": 50}),
        ("# Packet scheduler\n\n", {"temperature": 0.0}),
        ("A [linker](linker) and an [unheard-of thing](unheard-of thing) ", {"temperature": 0.7, "top_p": 0.9}),
        (
            "# Parallel collector\n\n<storage> See [GC](garbage collection)",
            {"temperature": 0.0, "max_link_depth": 2, "max_tokens_per_document": 48},
        ),
    ],
)
def test_log_probabilities_are_the_oracles(
    runtime: Runtime, corpus: DocumentCorpus, prompt: str, settings: dict[str, float]
) -> None:
    result = runtime.generate(prompt, corpus=corpus, **ON, **settings)
    assert any(document.source == "corpus" for document in result.auxiliary_documents)
    compared = 0
    expected_of = expected_logprobs(runtime, result)
    for document in result.get_all_documents():
        expected = expected_of[document.title]
        assert document.token_logprobs is not None
        written = ~np.isnan(document.token_logprobs)
        np.testing.assert_allclose(document.token_logprobs[written], expected[written[1:]], atol=1e-4)
        compared += int(written.sum())
    assert compared >= 10
    runtime.engine.check_integrity()


def test_corpus_documents_come_as_the_corpus_has_them(runtime: Runtime, corpus: DocumentCorpus) -> None:
    result = runtime.generate("A [linker](linker) joins", corpus=corpus, max_new_tokens=3, seed=1)
    (linker,) = result.auxiliary_documents
    body = corpus.get_document("linker")
    assert body is not None and linker.source == "corpus"
    heading = [50256, *runtime.tokenizer.encode("# linker\n\n")]
    assert linker.tokens == [*heading, *body.tolist(), 50256]


def test_each_token_is_computed_once(runtime: Runtime, corpus: DocumentCorpus) -> None:
    result = runtime.generate("# Incremental linker\n\n", corpus=corpus, temperature=0.7, top_k=50, seed=2)
    root = result.root_document
    assert len(result.auxiliary_documents) >= 5 and all(d.source == "corpus" for d in result.auxiliary_documents)
    # The root's last token is never read; nor is a document whose link closed at the very end.
    last = len(root.tokens or ()) - 1
    read = {grant.title for grant in root.grants if grant.position < last}
    expected = last + sum(len(d.tokens or ()) for d in result.auxiliary_documents if d.title in read)
    trace = result.trace  # earlier tests may have had some of them computed
    assert trace.tokens_prefilled + trace.tokens_reused + trace.tokens_decoded == expected


def test_a_batch_gives_what_each_prompt_gives_alone(runtime: Runtime, corpus: DocumentCorpus) -> None:
    prompts = ["# Stack machine\n\n", "# Queue\n\n", "A [linker](linker) joins"]
    settings = {"temperature": 0.7, "top_k": 50, "max_new_tokens": 30, "seed": 5}
    together = runtime.generate_batch(prompts, corpus=corpus, **settings)
    for prompt, batched in zip(prompts, together, strict=True):
        alone = runtime.generate(prompt, corpus=corpus, **settings)
        assert [d.tokens for d in batched.get_all_documents()] == [d.tokens for d in alone.get_all_documents()]
