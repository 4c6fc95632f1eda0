"""DS2DSModel: embedding, backbone and lm head, with the full pass over a packed sequence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ds2ds.attention import full_pass
from ds2ds.attention.attend import Attend
from ds2ds.attention.rotary import Rotary, rotate
from ds2ds.documents.spans import DocSpan
from ds2ds.model.backbone import Backbone
from ds2ds.model.compiled_backbone import CompiledBackbone
from ds2ds.model.config import ModelConfig
from ds2ds.model.embedding import Embedding
from ds2ds.model.linear import linear
from ds2ds.native.invariance import batch_invariant

if TYPE_CHECKING:
    from ds2ds.documents.generation_result import GenerationResult


class LMHead(nn.Module):
    """The output projection; its weight is the embedding's where the two are tied."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight


class DS2DSModel(nn.Module):
    """A document-graph language model.

    State-dict keys are those of the training code (DESIGN 5): ``embedding.weight``, ``backbone.layers.{i}...``,
    ``backbone.skip_weights`` and ``loss_fn.weight``, the lm head.

    Attributes:
        batch_invariant: compute each row as if it were alone, see ``ds2ds.native.invariance``; off by default.
    """

    # Of tensors born in inference mode nobody can tell whether they have changed, as `fingerprint` must.
    @torch.inference_mode(False)
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.batch_invariant = False
        self.embedding = Embedding(config.vocab_size, config.model_dim)
        self.backbone = Backbone(config)
        head = self.embedding.weight if config.weight_tying else nn.Parameter(self.embedding.weight.detach().clone())
        self.loss_fn = LMHead(head)
        self.rotary = Rotary(config.head_dim, config.max_seq_len)

    @classmethod
    def from_config(cls, config: ModelConfig | None = None, **settings: Any) -> DS2DSModel:
        """A model with random weights, from a ModelConfig or from its fields as keywords."""
        if config is not None and settings:
            raise ValueError(f"give a ModelConfig or its fields, not both (got {sorted(settings)} too)")
        model = cls(config or ModelConfig.from_dict(settings)).eval()
        model.reset_parameters()
        return model

    def reset_parameters(self) -> None:
        """Normal weights with variance 1 / fan-in; skip weights 1."""
        for parameter in self.parameters():
            if parameter.dim() == 1:
                nn.init.ones_(parameter)
            else:
                nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding.weight.dtype

    @torch.inference_mode(False)
    def _apply(self, fn: Any, recurse: bool = True) -> DS2DSModel:
        super()._apply(fn, recurse)
        # The tables stay float32 whatever the weights' dtype; they only follow the device.
        self.rotary.to(self.embedding.weight.device)
        return self

    def hidden(self, tokens: Tensor, attend: Attend, compiled: CompiledBackbone | None = None) -> Tensor:
        """Token ids [rows] to final-normed hidden states [rows, model_dim].

        Args:
            compiled: its backbone in compiled code, which stands in where it can.
        """
        with batch_invariant(self.batch_invariant):
            x = self.embedding(tokens)
            done = None if compiled is None else compiled.forward(x, attend)
            return self.backbone(x, attend) if done is None else done

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., model_dim] to logits [..., vocab_size]."""
        with batch_invariant(self.batch_invariant):
            return linear(hidden.flatten(0, -2), self.loss_fn.weight).view(*hidden.shape[:-1], -1)

    def forward(self, tokens: Tensor, mask: full_pass.Mask) -> Tensor:
        """The full pass up to the lm head.

        Args:
            tokens: int64 [B, T], T up to max_seq_len.
            mask: bool, broadcastable to [B, heads, T, T], or a BlockMask as ``full_pass.full_mask`` makes it, through
                which no gradients pass.

        Returns:
            Hidden states [B, T, model_dim]; positions are 0..T-1 over the packed sequence.
        """
        batch, length = tokens.shape
        self._check_length(length)
        cos, sin = (table.unsqueeze(1) for table in self.rotary.at(slice(0, length)))

        def attend(layer: int, qk: Tensor, v: Tensor) -> Tensor:
            q, k = rotate(qk.view(batch, length, *qk.shape[1:]), cos, sin).permute(2, 0, 3, 1, 4)
            v = v.view(batch, length, *v.shape[1:]).transpose(1, 2)
            return full_pass.attend(q, k, v, mask).transpose(1, 2).flatten(0, 1)

        return self.hidden(tokens.flatten(), attend).view(batch, length, -1)

    def _check_length(self, length: int) -> None:
        if length > self.config.max_seq_len:
            raise ValueError(f"{length} tokens exceed the model's max_seq_len {self.config.max_seq_len}")

    @torch.inference_mode()
    def forward_inference(
        self, tokens: Tensor, doc_spans: Sequence[DocSpan] | Sequence[Sequence[DocSpan]] | None = None
    ) -> Tensor:
        """The full pass over packed documents with the mask of the model's ``mask_type``; no gradients, no cache.

        On a GPU FlexAttention runs with a block mask, and is compiled at the first pass of each length (to a power of
        two). The mask is kept for passes with equal spans.

        Args:
            tokens: integers [B, T].
            doc_spans: the documents of the sequence (of each row, where B > 1 a list of lists); None: each row
                is one document.

        Returns:
            Logits [B, T, vocab_size].

        Raises:
            ValueError: a shape, a span or a token id does not fit.
        """
        if not isinstance(tokens, Tensor) or tokens.is_floating_point():
            got = tokens.dtype if isinstance(tokens, Tensor) else type(tokens).__name__
            raise ValueError(f"tokens must be a tensor of integers, got {got}")
        if tokens.dim() != 2 or tokens.numel() == 0:
            raise ValueError(f"tokens must have shape [B, T], neither 0, got {list(tokens.shape)}")
        tokens = tokens.long()  # a corpus' are uint16, with which torch can do next to nothing
        batch, length = tokens.shape
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= self.config.vocab_size:
            raise ValueError(f"token ids must be in [0, {self.config.vocab_size}), got {low if low < 0 else high}")
        self._check_length(length)  # before a mask of that length is made
        rows = _rows(doc_spans, length)
        if len(rows) not in (1, batch):
            raise ValueError(f"doc_spans has {len(rows)} rows, but tokens has {batch}")
        blocks = full_pass.takes_blocks(self.device, self.dtype, self.config.head_dim)
        mask = full_pass.full_mask(self.config.mask_type, length, rows, self.device, blocks=blocks)
        return self.logits(self(tokens.to(self.device), mask))

    def generate(
        self, prompt: str | None = None, prompt_tokens: Any = None, corpus: Any = None, **settings: Any
    ) -> GenerationResult:
        """Write a document and what it links to; see ``Runtime.generate``, to which this delegates.

        Keywords are GenerationConfig's fields, and ``config``, ``tokenizer``, ``link_format`` and ``title``.
        """
        # The front door stands above the model: imported here, so that floors still import downwards only.
        from ds2ds.runtime import Runtime

        tokenizer, links = settings.pop("tokenizer", None), settings.pop("link_format", None)
        runtime = Runtime(self, tokenizer, self.config.layout_policy, link_format=links)
        return runtime.generate(prompt=prompt, prompt_tokens=prompt_tokens, corpus=corpus, **settings)


def _rows(
    doc_spans: Sequence[DocSpan] | Sequence[Sequence[DocSpan]] | None, length: int
) -> Sequence[Sequence[DocSpan]]:
    """The spans of each row, or of one that serves all; the spans themselves are yet to be checked."""
    if doc_spans is None:
        return [[DocSpan("", 0, length)]]
    if doc_spans and isinstance(doc_spans[0], DocSpan):
        return [doc_spans]  # type: ignore[list-item]
    for row in doc_spans:
        if not isinstance(row, Sequence):
            raise ValueError(f"doc_spans must be DocSpans, or a list of them for each row, got {row!r}")
    return doc_spans  # type: ignore[return-value]
