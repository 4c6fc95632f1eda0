"""An engine's prefilled documents, to a file and back."""

from __future__ import annotations

from pathlib import Path

from ds2ds.cache.store_file import load_store, save_store
from ds2ds.engine.engine import Engine
from ds2ds.model.weights_identity import digest, fingerprint


def save_cache(engine: Engine, path: Path) -> int:
    """See `Runtime.save_cache`."""
    engine.require_store("save_cache")
    with engine.lock:
        engine.store.use_weights(fingerprint(engine.model))
        return save_store(engine.store, path, digest(engine.model))


def load_cache(engine: Engine, path: Path) -> int:
    """See `Runtime.load_cache`."""
    engine.require_store("load_cache")
    with engine.lock:
        engine.store.use_weights(fingerprint(engine.model))
        return load_store(engine.store, path, digest(engine.model), engine.model.config.vocab_size)
