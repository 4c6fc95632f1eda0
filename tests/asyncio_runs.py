"""A test in an event loop, with a runtime of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from scripted import is_clean, small_runtime

from ds2ds import AsyncRuntime


def run(main: Callable[[AsyncRuntime], Coroutine[Any, Any, Any]], **options: Any) -> None:
    """Run a test in an event loop with a new runtime; afterwards nothing may be in use, and no task left."""
    runtime = small_runtime(arena_tokens=options.pop("arena_tokens", 40_000), **options)

    async def closed_after() -> None:
        async with AsyncRuntime(runtime) as made:
            await asyncio.wait_for(main(made), 60)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(closed_after())
    assert is_clean(runtime)
