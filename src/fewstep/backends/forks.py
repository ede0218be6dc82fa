"""Fork: a child of a process that holds ONNX Runtime ends, and does not wait for threads that only its parent has.

ONNX Runtime waits for its threads where a session is destroyed, and for one of its own where a process exits, be it that it was
only imported; fork copies none of them. So a child keeps its parent's sessions to its end, and ends before that part of exit.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any
from weakref import WeakSet

__all__ = ["survive_forks"]

_sessions: WeakSet[Any] = WeakSet()


def survive_forks(session: Any) -> None:
    """Note a session of ONNX Runtime that children of this process inherit."""
    _sessions.add(session)


def _in_child() -> None:
    for session in _sessions:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(session._sess))  # never destroyed
    libc = ctypes.CDLL(None)
    if hasattr(libc, "on_exit"):  # glibc, for which ONNX Runtime's packages are built. What is noted last is called first
        libc.on_exit(ctypes.cast(libc._exit, ctypes.c_void_p), None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
