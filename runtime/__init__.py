"""ds2ds: fast decoding for document-graph language models.

Names are imported when they are first used, so that opening a corpus does not load torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ds2ds.analysis.attention_map import AttentionMap as AttentionMap
    from ds2ds.async_runtime import AsyncRuntime as AsyncRuntime
    from ds2ds.backend import AsyncBackend as AsyncBackend
    from ds2ds.backend import Backend as Backend
    from ds2ds.backend import BackendLimits as BackendLimits
    from ds2ds.backend import BackendUsage as BackendUsage
    from ds2ds.corpus.document_corpus import DocumentCorpus as DocumentCorpus
    from ds2ds.corpus.graph_index import GraphIndex as GraphIndex
    from ds2ds.corpus.resolving.resolving_corpus import ResolvingCorpus as ResolvingCorpus
    from ds2ds.corpus.shards import PretokShardedBackend as PretokShardedBackend
    from ds2ds.documents.document_context import DocumentContext as DocumentContext
    from ds2ds.documents.generation_result import GeneratedDocument as GeneratedDocument
    from ds2ds.documents.generation_result import GenerationResult as GenerationResult
    from ds2ds.documents.generation_result import Grant as Grant
    from ds2ds.documents.generation_result import Trace as Trace
    from ds2ds.documents.link_detector import DetectedLink as DetectedLink
    from ds2ds.documents.link_detector import LinkDetector as LinkDetector
    from ds2ds.documents.spans import DocSpan as DocSpan
    from ds2ds.documents.spans import SpanGrant as SpanGrant
    from ds2ds.documents.title_match import Match as Match
    from ds2ds.documents.title_utils import create_filename as create_filename
    from ds2ds.documents.title_utils import generate_title_hash as generate_title_hash
    from ds2ds.documents.title_utils import normalize_title as normalize_title
    from ds2ds.documents.title_utils import strip_hash as strip_hash
    from ds2ds.documents.title_utils import verify_title_hash as verify_title_hash
    from ds2ds.event_stream import EventStream as EventStream
    from ds2ds.generation.choices import Follow as Follow
    from ds2ds.generation.choices import LinkQuestion as LinkQuestion
    from ds2ds.generation.choices import Quit as Quit
    from ds2ds.generation.choices import Skip as Skip
    from ds2ds.generation.choices import Supply as Supply
    from ds2ds.generation.events import DocumentClosed as DocumentClosed
    from ds2ds.generation.events import DocumentOpened as DocumentOpened
    from ds2ds.generation.events import Done as Done
    from ds2ds.generation.events import LinkAsked as LinkAsked
    from ds2ds.generation.events import LinkClosed as LinkClosed
    from ds2ds.generation.events import TokenWritten as TokenWritten
    from ds2ds.generation.generation_config import GenerationConfig as GenerationConfig
    from ds2ds.generation.linked_doc_generator import LinkedDocumentGenerator as LinkedDocumentGenerator
    from ds2ds.generation.prompt_processor import PromptLinkProcessor as PromptLinkProcessor
    from ds2ds.generation.sampling import greedy_sample as greedy_sample
    from ds2ds.generation.sampling import sample_token as sample_token
    from ds2ds.generation.single_doc_generator import SingleDocumentGenerator as SingleDocumentGenerator
    from ds2ds.generation.warming import Warmed as Warmed
    from ds2ds.model.config import ModelConfig as ModelConfig
    from ds2ds.model.ds2ds_model import DS2DSModel as DS2DSModel
    from ds2ds.pictures.link_graph_page import link_graph_html as link_graph_html
    from ds2ds.pictures.link_graph_svg import link_graph_svg as link_graph_svg
    from ds2ds.runtime import Runtime as Runtime
    from ds2ds.tokenizer import Tokenizer as Tokenizer

_MODULES = {
    "analysis.attention_map": ("AttentionMap",),
    "async_runtime": ("AsyncRuntime",),
    "backend": ("AsyncBackend", "Backend", "BackendLimits", "BackendUsage"),
    "corpus.document_corpus": ("DocumentCorpus",),
    "corpus.graph_index": ("GraphIndex",),
    "corpus.resolving.resolving_corpus": ("ResolvingCorpus",),
    "corpus.shards": ("PretokShardedBackend",),
    "documents.document_context": ("DocumentContext",),
    "documents.generation_result": ("GeneratedDocument", "GenerationResult", "Grant", "Trace"),
    "documents.link_detector": ("DetectedLink", "LinkDetector"),
    "documents.spans": ("DocSpan", "SpanGrant"),
    "documents.title_match": ("Match",),
    "documents.title_utils": (
        "create_filename",
        "generate_title_hash",
        "normalize_title",
        "strip_hash",
        "verify_title_hash",
    ),
    "errors": (
        "ArenaFullError",
        "CacheError",
        "CheckpointError",
        "ConfigError",
        "CorpusError",
        "Ds2dsError",
        "GenerationError",
        "QueueFullError",
        "RuntimeClosedError",
        "WorkerError",
    ),
    "event_stream": ("EventStream",),
    "generation.choices": ("Follow", "LinkQuestion", "Quit", "Skip", "Supply"),
    "generation.events": ("DocumentClosed", "DocumentOpened", "Done", "LinkAsked", "LinkClosed", "TokenWritten"),
    "generation.generation_config": ("GenerationConfig",),
    "generation.linked_doc_generator": ("LinkedDocumentGenerator",),
    "generation.prompt_processor": ("PromptLinkProcessor",),
    "generation.sampling": ("greedy_sample", "sample_token"),
    "generation.single_doc_generator": ("SingleDocumentGenerator",),
    "generation.warming": ("Warmed",),
    "model.config": ("ModelConfig",),
    "model.ds2ds_model": ("DS2DSModel",),
    "pictures.link_graph_page": ("link_graph_html",),
    "pictures.link_graph_svg": ("link_graph_svg",),
    "runtime": ("Runtime",),
    "tokenizer": ("Tokenizer",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_HOME)
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
