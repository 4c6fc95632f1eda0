"""Whether model, tokenizer, layout and corpus are of one making; what is not is refused before a token is computed.

What cannot be seen: a wrong `num_heads`. The weights have the same shapes under any, and give other numbers.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from ds2ds.attention.masks import BIDIRECTIONAL
from ds2ds.corpus.document_corpus import DocumentCorpus, Sampled
from ds2ds.documents.layout import Layout, heading_title
from ds2ds.documents.title_utils import title_key
from ds2ds.errors import ConfigError, CorpusError
from ds2ds.model.config import ModelConfig
from ds2ds.tokenizer import Tokenizer
from ds2ds.tokenizer.gpt2 import VOCAB_SIZE

UNNAMED = "custom"
"""What a tokenizer is called that has no name; it is taken at its word."""

LAID_OUT = 0.9
"""From this share of the sampled documents on, bodies count as laid out already..."""
ENOUGH = 8
"""...if so many were sampled."""


def check_layout(config: ModelConfig, layout_policy: str | None) -> None:
    """Whether a layout is the one of the checkpoint. (Its "null" may mean that nobody said: it goes with any.)

    Raises:
        ConfigError: it is another.
    """
    if config.layout_policy not in ("null", layout_policy) and layout_policy is not None:
        raise ConfigError(
            f"layout_policy is {layout_policy!r}, but the model was trained with {config.layout_policy!r}: leave it "
            "out, or name that one"
        )


def check_tokenizer(config: ModelConfig, tokenizer: Tokenizer) -> None:
    """Whether a tokenizer is the one of the checkpoint, as far as both have names.

    Raises:
        ConfigError: it is another.
    """
    # Below GPT-2's size the name "gpt2" is only what the field says where nobody filled it in.
    claimed = config.tokenizer if config.tokenizer != "gpt2" or config.vocab_size >= VOCAB_SIZE else UNNAMED
    if UNNAMED not in (claimed, tokenizer.name) and claimed != tokenizer.name:
        raise ConfigError(
            f"the model was trained with tokenizer {claimed!r}, the runtime has {tokenizer.name!r}: pass that one as "
            "tokenizer, or mend `tokenizer` in the checkpoint's config.json"
        )


def check_encodes(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Whether the model knows all that a tokenizer makes of a text. (Token ids can be given without one.)

    Raises:
        ConfigError: the tokenizer has more ids.
    """
    if tokenizer.vocab_size is not None and tokenizer.vocab_size > vocab_size:
        raise ConfigError(
            f"tokenizer {tokenizer.name!r} has {tokenizer.vocab_size:,} ids, but the model's vocabulary is "
            f"{vocab_size:,}: pass the model's own tokenizer, or prompt_tokens"
        )


def check_decodes(config: ModelConfig) -> None:
    """Whether the model can write token by token.

    Raises:
        ConfigError: its mask lets a token read those after it.
    """
    if config.mask_type in BIDIRECTIONAL:
        raise ConfigError(
            f"a model with mask_type {config.mask_type!r} reads tokens that come later and cannot write one by one; "
            "DS2DSModel.forward_inference runs it"
        )


def check_separator(layout: Layout, vocab_size: int) -> None:
    """Whether there is an EOS for a document to start with.

    Raises:
        ConfigError: the settings say that the model has none.
    """
    if layout.eos_token_id >= vocab_size:
        raise ConfigError(
            f"eos_token_id must be in the model's vocabulary of {vocab_size} for a document that starts with it (of "
            f"layout_policy 'bos_eos' or 'identifier_prefix_bos_eos', or without a prompt), got {layout.eos_token_id}: "
            "ignore_eos writes on after it"
        )


def check_corpus(corpus: Any, layout: Layout, vocab_size: int, tokenizer: Tokenizer) -> None:
    """Whether a corpus goes with all that; of a DocumentCorpus, a sample of its documents is looked at.

    Warns (UserWarning, once for each layout and corpus opened) where nearly all bodies start with the heading, or have
    the end marks, that the layout puts around them: a model trained on exactly that corpus and layout has seen them
    doubled, any other has not.

    Raises:
        ConfigError: the corpus says that another tokenizer made it; CorpusError: it holds ids outside the model's
            vocabulary.
    """
    made_with = getattr(getattr(corpus, "metadata", None), "tokenizer", None)
    if made_with is not None and tokenizer.name not in (made_with, UNNAMED):
        raise ConfigError(
            f"the corpus was made with tokenizer {made_with!r}, the runtime has {tokenizer.name!r}: the same ids mean "
            "other texts; make the corpus anew, or pass its tokenizer with a model trained on it"
        )
    if not isinstance(corpus, DocumentCorpus):
        return
    sample = corpus.sample
    for document in sample:
        check_ids(document.title, [document.largest], vocab_size)
    checked = (layout.policy, layout.eos_token_id, tokenizer.name)
    if len(sample) >= ENOUGH and checked not in corpus.layouts_checked:
        corpus.layouts_checked.add(checked)
        _warn_of_layout(corpus, sample, layout, tokenizer)


def check_ids(title: str, tokens: Sequence[int], vocab_size: int) -> None:
    """Raise CorpusError if a document is to hold ids outside the model's vocabulary."""
    if not tokens or (min(tokens) >= 0 and max(tokens) < vocab_size):
        return
    wrong = next(token for token in tokens if not 0 <= token < vocab_size)
    raise CorpusError(
        f"document {title!r} would hold token id {wrong}, outside the model's vocabulary of "
        f"{vocab_size}: corpus, tokenizer and eos_token_id must be of this model"
    )


def _warn_of_layout(corpus: DocumentCorpus, sample: Sequence[Sampled], layout: Layout, tokenizer: Tokenizer) -> None:
    eos = layout.eos_token_id
    headed = [one for one in sample if layout.has_heading and _has_heading(one, eos, tokenizer)]
    marked = [one for one in sample if layout.has_marks and eos in (one.head[0], one.last)]
    for found, what in ((headed, "start with their own heading"), (marked, f"start or end with EOS ({eos})")):
        if len(found) >= LAID_OUT * len(sample):
            warnings.warn(
                f"{len(found)} of {len(sample)} sampled documents of {corpus.path} {what}, {found[0].title!r} for one, "
                f"and layout_policy {layout.policy!r} adds the same: the model reads it twice. A corpus holds bodies "
                "alone (`ds2ds corpus build` writes them so), unless the model was trained with it doubled",
                stacklevel=2,
            )
            return


def _has_heading(document: Sampled, eos: int, tokenizer: Tokenizer) -> bool:
    found = heading_title(tokenizer.decode([token for token in document.head if token != eos]))
    return found is not None and title_key(found) == title_key(document.title)
