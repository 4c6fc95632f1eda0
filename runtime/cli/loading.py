"""The backend behind the commands: a checkpoint in a Runtime, with the documents that a file has ready."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ds2ds.runtime import Runtime


def load_runtime(
    model: str, device: str | None, dtype: str | None, cache: Path | None = None, **options: Any
) -> Runtime:
    """Load what a command's options name.

    Args:
        cache: a file of `ds2ds cache warm`; None: nothing is prefilled.
        options: Runtime's other arguments.

    Raises:
        Ds2dsError: the checkpoint or the file is missing or damaged, or an option is wrong.
    """
    from ds2ds.runtime import Runtime  # torch comes with it

    runtime = Runtime.from_pretrained(model, device, dtype, **options)
    if cache is not None:
        runtime.load_cache(cache)
    return runtime
