"""Task: one call of a user's function, to be made on the callbacks thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple


class Task(NamedTuple):
    """One call to be made. `droppable` marks an unmatched message, which a full queue may drop."""

    function: Callable[..., object]
    arguments: tuple[Any, ...]
    droppable: bool = False
