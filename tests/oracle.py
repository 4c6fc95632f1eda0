"""The dense reference (DESIGN S6): what a model says about a graph of documents, with no cache of any kind.

Written from S1-S5 and section 5's "The model" alone, in float64. It shares no code with the runtime: of the
model it reads `state_dict()` and `config`; norms, rotary and attention are written anew, the plainest way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(eq=False)
class Document:
    """One document as plain data (S1).

    Attributes:
        grants: (position, target, end), in the order they were given: tokens position <= t < end (None: all
            from position on) read all of the target.
    """

    title: str
    tokens: list[int]
    grants: list[tuple[int, Document, int | None]] = field(default_factory=list)


@dataclass
class Computed:
    """Per layer keys, rotated at local positions, and values [n, heads, head_dim], and the weights of attention
    [heads, n, keys]: over the keys of each grant's target, in the order of the grants, then over its own."""

    keys: list[Tensor]
    values: list[Tensor]
    weights: list[Tensor]
    log_probs: Tensor


def rms_norm(x: Tensor) -> Tensor:
    return x / x.square().mean(-1, keepdim=True).sqrt()


class Oracle:
    """Log-probabilities of documents under a model (any object with `state_dict()` and `config`)."""

    def __init__(self, model: Any) -> None:
        self.weights = {name: weight.detach().to("cpu", torch.float64) for name, weight in model.state_dict().items()}
        self.layers: int = model.config.num_layers
        self.heads: int = model.config.num_heads
        quarter = model.config.model_dim // self.heads // 4
        frequencies = (1 / 1024) ** torch.linspace(0, 1, quarter, dtype=torch.float64)
        self.frequencies = torch.cat([frequencies, torch.zeros(quarter, dtype=torch.float64)])

    def log_probs(self, documents: Sequence[Document]) -> list[Tensor]:
        """For each document float64 [n, vocab_size]: row t is the distribution of the token after token t.

        Raises:
            ValueError: a document reaches itself through grants (S2: the graph is a DAG), or is empty.
        """
        done: dict[Document, Computed | None] = {}
        return [self._compute(document, done).log_probs for document in documents]

    def attention(self, document: Document) -> list[Tensor]:
        """Per layer float64 [heads, n, keys], as Computed has it."""
        return self._compute(document, {}).weights

    def _compute(self, document: Document, done: dict[Document, Computed | None]) -> Computed:
        if document not in done:
            done[document] = None
            targets = [self._compute(target, done) for _, target, _ in document.grants]
            done[document] = self._forward(document, targets)
        computed = done[document]
        if computed is None:
            raise ValueError(f"document {document.title!r} reaches itself through grants")
        return computed

    def _forward(self, document: Document, targets: list[Computed]) -> Computed:
        if not document.tokens:
            raise ValueError(f"document {document.title!r} is empty")
        own = torch.arange(len(document.tokens))
        # S2, S3: per grant, which tokens see it and at which position they stand towards it. A later grant's
        # target lies to the left of all earlier ones that are in view at that token.
        seen, positions, delta = [], [], torch.zeros_like(own)
        for position, target, end in document.grants:
            seen.append((own >= position) & (own < (len(own) if end is None else end)))
            delta = delta + seen[-1] * len(target.tokens)
            positions.append(own + delta)
        # The document itself comes last, with a causal mask.
        visible = [
            mask[:, None].expand(-1, len(g.tokens)) for mask, (_, g, _) in zip(seen, document.grants, strict=True)
        ]
        visible.append(own[:, None] >= own[None, :])
        positions.append(own)

        x = self.weights["embedding.weight"][document.tokens]
        half = self.layers // 2
        pushed: list[Tensor] = []
        keys: list[Tensor] = []
        values: list[Tensor] = []
        attention: list[Tensor] = []
        for layer in range(self.layers):
            if layer >= half and pushed:
                x = x + self.weights["backbone.skip_weights"][layer - half] * pushed.pop()
            prefix = f"backbone.layers.{layer}."
            normed = rms_norm(x)
            q, k, v = (
                (normed @ matrix.T).unflatten(-1, (self.heads, -1)) for matrix in self.weights[prefix + "attn.Wqkv"]
            )
            q = rms_norm(q)
            keys.append(self._rotate(rms_norm(k), own))
            values.append(v)
            all_keys = [target.keys[layer] for target in targets] + [keys[-1]]
            all_values = [target.values[layer] for target in targets] + [v]
            scores = [
                torch.einsum("thd,shd->hts", self._rotate(q, at), part).masked_fill(~mask, -torch.inf)
                for at, part, mask in zip(positions, all_keys, visible, strict=True)
            ]
            weights = (torch.cat(scores, -1) / q.shape[-1] ** 0.5).softmax(-1)
            attention.append(weights)
            read = torch.einsum("hts,shd->thd", weights, torch.cat(all_values)).flatten(1)
            x = x + read @ self.weights[prefix + "attn.Wout.weight"].T
            up, gate = (rms_norm(x) @ self.weights[prefix + "mlp.Wup_gate.weight"].T).chunk(2, -1)
            x = x + (up * gate * gate.sigmoid()) @ self.weights[prefix + "mlp.Wdown.weight"].T
            if layer < half:
                pushed.append(x)
        logits = rms_norm(x) @ self.weights["loss_fn.weight"].T
        return Computed(keys, values, attention, logits.log_softmax(-1))

    def _rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        """x [n, heads, head_dim] at positions [n]."""
        angles = (positions[:, None] * self.frequencies)[:, None, :]
        x1, x2 = x.chunk(2, -1)
        return torch.cat([x1 * angles.cos() + x2 * angles.sin(), -x1 * angles.sin() + x2 * angles.cos()], -1)
