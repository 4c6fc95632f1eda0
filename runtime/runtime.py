"""Runtime: the front door."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from ds2ds.analysis.attention_analysis import MAX_BYTES, Tokens, analyse_attention
from ds2ds.analysis.attention_map import AttentionMap
from ds2ds.documents.generation_result import GenerationResult
from ds2ds.documents.link_formats import LinkFormat
from ds2ds.engine.cache_file import load_cache, save_cache
from ds2ds.engine.engine import Engine
from ds2ds.engine.limits import MAX_QUEUE, MAX_RUNNING
from ds2ds.errors import ConfigError
from ds2ds.files import checked_path
from ds2ds.generation.batch import new_requests, run_all
from ds2ds.generation.choices import OnLink, check_on_link
from ds2ds.generation.events import Event
from ds2ds.generation.generation_config import GenerationConfig, parse_device, resolve_config, scoring
from ds2ds.generation.linked_doc_generator import LinkedDocumentGenerator
from ds2ds.generation.pairing import check_layout
from ds2ds.generation.warming import Warmed, warm
from ds2ds.model.checkpoint import load_checkpoint, parse_dtype
from ds2ds.model.ds2ds_model import DS2DSModel
from ds2ds.model.quantised import quantise_weights
from ds2ds.native import operations as native
from ds2ds.texts import RuntimeTexts


class Runtime(RuntimeTexts):
    """A model, its tokenizer and its KV arena, ready to write.

    Args:
        model: moved to `device` if one is given.
        tokenizer: None for the packaged GPT-2, or whatever `ds2ds.tokenizer.as_tokenizer` takes.
        layout_policy: what stands around a document's body, see `ds2ds.documents.layout`; None: what the model's
            config says. Where that says another than "null", no other is taken.
        device: "cpu", "cuda" or "cuda:N"; None: where the model is.
        link_format: how links are written: "markdown", "wikilinks", "python", "latex", "latex+ref", "arxiv", "null"
            (none), or a format of another package or your own (`ds2ds.documents.link_formats`); None: as the model was
            trained.
        arena_tokens: tokens that the KV arena holds; None: a default for the device. Memory never grows beyond it.
        document_store: compute a document once for all requests that bring it in, and keep it while there is room.
            Results are the same without; every request then computes all it reads.
        retention: which of the documents that no request reads goes first when room is needed: "gdsf" weighs how
            often it was used, what its prefill took and how large it is, "lru" looks at the last use alone.
        attention: what reads the arena: "flex" (FlexAttention), "plain" (compiled code on a CPU, else PyTorch),
            "triton" (our own kernels to decode, flex for the rest), or "auto": flex on a GPU, else plain.
        cuda_graphs: decode in CUDA graphs, each launched before the tokens of the one before are read. It needs a GPU
            and attention "triton"; "auto": where there are both.
        weights: "int8" rounds the model's weights to 8 bits, in place, for a quarter of the bytes to read;
            "int8_dynamic" also what is multiplied with them. None: they stay as they are.
        batch_invariant: let nothing that is computed for a request depend, in any bit, on what else is in the batch;
            prefill is a little slower. For float32 on a CPU with a C compiler. Else requests get the same up to float
            rounding.
        step_tokens: most tokens that one step prefills, of all requests together; None: a default for the device.
            Fewer keep the pace of requests that are decoding, more may prefill faster.
        max_running: most requests that run at a time; the others wait.
        max_queue: most requests that wait. Calls of this class make room by themselves; those of an AsyncRuntime wait
            for it or raise QueueFullError.

    Threads may share one: what they ask for at a time is computed together, as in `generate_batch`.

    Raises:
        ConfigError: an argument is out of range.
    """

    def __init__(
        self,
        model: DS2DSModel,
        tokenizer: Any = None,
        layout_policy: str | None = None,
        device: str | torch.device | None = None,
        *,
        link_format: str | LinkFormat | None = None,
        arena_tokens: int | None = None,
        document_store: bool = True,
        retention: str = "gdsf",
        attention: str = "auto",
        cuda_graphs: bool | str = "auto",
        weights: str | None = None,
        batch_invariant: bool = False,
        step_tokens: int | None = None,
        max_running: int = MAX_RUNNING,
        max_queue: int = MAX_QUEUE,
    ) -> None:
        if not isinstance(model, DS2DSModel):
            raise ConfigError(f"model must be a DS2DSModel, got {type(model).__name__}")
        check_layout(model.config, layout_policy)
        if device is not None:
            model = model.to(parse_device(device))
        if not isinstance(batch_invariant, bool):
            raise ConfigError(f"batch_invariant must be True or False, got {batch_invariant!r}")
        if batch_invariant:
            if model.device.type != "cpu" or model.dtype != torch.float32:
                raise ConfigError(f"batch_invariant needs float32 on a CPU, got {model.dtype} on {model.device}")
            if not native.available():
                raise ConfigError("batch_invariant needs the compiled functions of ds2ds.native, and so a C compiler")
            model.batch_invariant = True
        self.model = model if weights is None else quantise_weights(model, weights)
        self._generator = LinkedDocumentGenerator(
            model,
            tokenizer=tokenizer,
            layout_policy=layout_policy,
            link_format=link_format,
            engine=Engine(
                model,
                arena_tokens,
                document_store=document_store,
                retention=retention,
                attention=attention,
                cuda_graphs=cuda_graphs,
                step_tokens=step_tokens,
                max_running=max_running,
                max_queue=max_queue,
            ),
        )
        self.tokenizer = self._generator.tokenizer
        self.engine = self._generator.engine

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        device: str | torch.device | None = None,
        dtype: torch.dtype | str | None = None,
        *,
        tokenizer: Any = None,
        **options: Any,
    ) -> Runtime:
        """Load a checkpoint folder, or "demo": the packaged model.

        Args:
            device: None: a CUDA device if there is one, else the CPU.
            dtype: of the weights in memory, as a torch dtype or its name; None: float32 on a CPU, bfloat16 on a GPU.
            options: Runtime's other arguments.

        Raises:
            CheckpointError: the checkpoint is missing or damaged; ConfigError: no such device or dtype.
        """
        where = parse_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        model = load_checkpoint(path, where, parse_dtype(dtype, where))
        return cls(model, tokenizer, **options)

    def generate(
        self,
        prompt: str | None = None,
        prompt_tokens: Iterable[int] | None = None,
        corpus: Any = None,
        config: GenerationConfig | None = None,
        *,
        title: str | None = None,
        priority: int = 0,
        on_link: OnLink | None = None,
        **overrides: Any,
    ) -> GenerationResult:
        """Write a document, and what its links lead to.

        Args:
            prompt: how the root document starts; or
            prompt_tokens: the same as token ids.
            corpus: where targets come from: a DocumentCorpus, a path, "demo", or any object with
                `has_document(title)` and `get_document(title)` (token ids). None: all targets are written.
            config: settings; None: the defaults (max_context_length at most the model's, EOS the tokenizer's).
            title: the root's title; under an identifier layout its heading is put before the prompt.
            priority: beside other requests, higher goes first; within one priority, first come first served.
            on_link: asked about each link that would be followed, before anything is brought in: takes a LinkQuestion
                and returns Follow(), Skip(), Supply(text) or Quit(). What it raises ends the request and is raised.
            overrides: fields of GenerationConfig, which win over `config`.

        Raises:
            ConfigError: (a ValueError) a setting or argument is wrong, and named, or the prompt is longer than
                max_context_length; CorpusError: the corpus is damaged; ArenaFullError: the arena is too small.
        """
        settings = self._config(config, overrides)
        return self._generator.generate(prompt, prompt_tokens, corpus, settings, title, priority, on_link)

    def stream(
        self,
        prompt: str | None = None,
        prompt_tokens: Iterable[int] | None = None,
        corpus: Any = None,
        config: GenerationConfig | None = None,
        *,
        title: str | None = None,
        priority: int = 0,
        on_link: OnLink | None = None,
        **overrides: Any,
    ) -> Generator[Event, None, None]:
        """Like `generate`, as typed events (`ds2ds.generation.events`), the last one Done with the result.

        Arguments are checked at once. Closing the iterator cancels the request and frees what it held. `on_link` is
        called once all events up to the link, the last one LinkAsked, have been read. With num_beams above 1 nothing is
        certain before the end: all events come then, those of the best hypothesis.
        """
        settings = self._config(config, overrides)
        return self._generator.stream(prompt, prompt_tokens, corpus, settings, title, priority, on_link)

    def generate_batch(
        self,
        prompts: Sequence[str | Sequence[int]],
        corpus: Any = None,
        config: GenerationConfig | None = None,
        *,
        priority: int = 0,
        return_errors: bool = False,
        on_link: OnLink | None = None,
        **overrides: Any,
    ) -> list[Any]:
        """Write a document for each prompt (text or token ids), as many at a time as there is room for.

        Each result is what `generate` would give for that prompt alone. A seed, if given, is everyone's: equal prompts
        then give equal documents. For different ones give no seed (each request draws its own), or call `generate`
        with a seed for each. Prompts are all checked before the first one starts. There may be more than fit the queue:
        those wait here.

        Args:
            return_errors: put a request's error in its place in the list; else the first one is raised, that of a
                prompt at once, any other once all are done.
            on_link: as in `generate`; a question's `request` is the index of its prompt. The others go on meanwhile.
        """
        check_on_link(on_link)
        settings = self._config(config, overrides)
        requests = new_requests(self._generator, prompts, corpus, settings, return_errors, on_link is not None)
        return run_all(self.engine, requests, self._generator.submit, priority, return_errors, on_link)

    def score(
        self,
        prompts: Sequence[str | Sequence[int]],
        corpus: Any = None,
        config: GenerationConfig | None = None,
        *,
        priority: int = 0,
        return_errors: bool = False,
        **overrides: Any,
    ) -> list[Any]:
        """How likely each token of each prompt is, given those before it, with what its links lead to in view.

        Links are followed as when a request is prompted with it, but nothing is written: what the corpus lacks is not
        read. Each result's root holds the prompt's tokens and `token_logprobs`, of which the first is NaN, and with
        `top_logprobs` the likeliest tokens. For the rest see `generate_batch`.
        """
        settings = scoring(config, self.default_config(), overrides)
        requests = new_requests(self._generator, prompts, corpus, settings, return_errors)
        return run_all(self.engine, requests, self._generator.submit_score, priority, return_errors, None)

    def warm(
        self,
        titles: Iterable[str],
        corpus: Any = None,
        config: GenerationConfig | None = None,
        *,
        progress: Callable[[int, int], None] | None = None,
        **overrides: Any,
    ) -> Warmed:
        """Prefill documents of a corpus, so that requests find them computed.

        They are what a request with the same settings would bring in by links of its root: cut at
        max_tokens_per_document, their own links followed up to max_link_depth. They stay like any other document,
        until their room is needed. Where the arena is full of them, the rest is left out.

        Args:
            titles: the most wanted first.
            progress: told (documents done, of how many).

        Raises:
            ConfigError: the document store is off, or a setting is wrong; CorpusError: a title is not in the corpus.
        """
        settings = self._config(config, overrides)
        return warm(self._generator, titles, corpus, settings, progress)

    def warm_up(self, rows: int | None = None, *, repetition_penalty: bool = False) -> None:
        """Compile and capture ahead what a GPU needs, in a minute or more, so that no request has to wait for it.

        On a CPU there is nothing to do.

        Args:
            rows: for up to so many requests that decode at a time; None: max_running.
            repetition_penalty: for requests with one, too.
        """
        self.engine.warm_up(rows, repetition_penalty=repetition_penalty)

    def save_cache(self, path: str | Path) -> int:
        """Write all documents that are computed and shared to a safetensors file, for `load_cache`; returns how many.

        What requests were prompted with is not written.

        Raises:
            ConfigError: the document store is off; CacheError: the file cannot be written.
        """
        return save_cache(self.engine, checked_path(path))

    def load_cache(self, path: str | Path) -> int:
        """Bring in documents that `save_cache` wrote, the most valuable first, as far as room is free.

        Returns:
            How many documents of the file are in the arena now.

        Raises:
            ConfigError: the document store is off; CacheError: the file is missing or damaged, or other weights
                computed it. Nothing is brought in then.
        """
        return load_cache(self.engine, checked_path(path))

    def attention(
        self,
        result: GenerationResult,
        document: str | int | None = None,
        tokens: Tokens = None,
        *,
        per_token: bool = False,
        max_bytes: int = MAX_BYTES,
    ) -> AttentionMap:
        """How much attention tokens of a result's document gave to each document in their view, by layer and head.

        Computed anew, on demand: generation is not slowed by it. What the store still has of the documents is reused,
        what it lacks is prefilled, and the document itself stays there for the next analysis. The row of token t is
        what t itself read; the token at t was drawn from the row of t - 1.

        Args:
            result: of this model.
            document: its title, or its index in `result.get_all_documents()`; None: the root.
            tokens: indices, a range or a slice of the document's tokens; None: all that were written, or just all if
                none were.
            per_token: also what each token of each document received (`AttentionMap.weights`).
            max_bytes: most memory that the arrays may take.

        Raises:
            ConfigError: there is no such document or token, the result cannot be this model's, or the arrays would
                take more than max_bytes; ArenaFullError: the arena is too small.
        """
        return analyse_attention(self.engine, self.tokenizer, result, document, tokens, per_token, max_bytes)

    def _config(self, config: GenerationConfig | None, overrides: dict[str, Any]) -> GenerationConfig:
        return resolve_config(config, self.default_config(), overrides)
