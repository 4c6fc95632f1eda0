"""The likeliest next tokens of documents, for a search that goes on with several of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ds2ds.documents.document import Document
from ds2ds.engine.step import unusable
from ds2ds.engine.work import Sampled
from ds2ds.errors import GenerationError
from ds2ds.model.ds2ds_model import DS2DSModel


@torch.inference_mode()
def rank(
    model: DS2DSModel, hidden: Tensor, documents: Sequence[Document], most: Sequence[int]
) -> list[list[Sampled] | GenerationError]:
    """Of each document the likeliest next tokens, at most so many, from its last row's hidden state [rows, model_dim].

    The log-probabilities are the model's own, in float32. A row that has none (NaN or +inf among the logits, or nothing
    but -inf) gives an error for its request alone.
    """
    logprobs = model.logits(hidden).float().log_softmax(-1)
    # torch.topk breaks ties as it likes: look at all tokens that are as likely as the last one it takes.
    least = logprobs.topk(min(max(most), logprobs.shape[1])).values[:, -1:]
    rows, ids = ((logprobs >= least) & (logprobs > -torch.inf)).nonzero(as_tuple=True)
    ranked: list[list[Sampled]] = [[] for _ in documents]
    for row, token, logprob in zip(rows.tolist(), ids.tolist(), logprobs[rows, ids].tolist(), strict=True):
        ranked[row].append(Sampled(token, logprob))
    lost = logprobs.isnan().any(-1).tolist()
    return [
        unusable(document) if none else sorted(tokens, key=lambda one: (-one.logprob, one.token))[:count]
        for document, tokens, count, none in zip(documents, ranked, most, lost, strict=True)
    ]
