"""Lack of memory, told apart from other failures."""

from __future__ import annotations


def lacks_memory(error: BaseException) -> bool:
    """Torch's or Python's own lack of memory."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
