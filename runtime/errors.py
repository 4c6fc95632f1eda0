"""The errors that bad input raises. Each message names what is wrong and what would be right."""


class Ds2dsError(Exception):
    """Base of every error that ds2ds raises on purpose."""


class ConfigError(Ds2dsError, ValueError):
    """A setting or argument is out of range."""


class CorpusError(Ds2dsError):
    """A corpus on disk is missing, damaged or of another format."""


class CheckpointError(Ds2dsError):
    """A checkpoint is missing, damaged or does not fit its configuration."""


class CacheError(Ds2dsError):
    """A file of prefilled documents is missing, damaged, or was made with other weights."""


class ArenaFullError(Ds2dsError):
    """The KV arena has no room for a document, even after everything that may go has gone."""


class GenerationError(Ds2dsError):
    """A request cannot go on, for instance because the model gives NaN."""


class QueueFullError(Ds2dsError):
    """As many requests wait as may."""


class RuntimeClosedError(Ds2dsError):
    """An AsyncRuntime was used after it was closed, or closed while the request ran."""


class WorkerError(Ds2dsError):
    """What computes for an AsyncRuntime failed, and with it every request; the cause is its `__cause__`."""
