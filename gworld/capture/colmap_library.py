"""pycolmap, loaded once and tamed: it brings signal handlers that belong to the program, not to a library."""

from __future__ import annotations

import signal
import sys
import threading
from typing import Any


def load_pycolmap() -> Any:
    """The module; on its first import the process keeps its own answer to SIGTERM.

    pycolmap's log library answers SIGTERM with a stack trace and an abort, so that nothing is cleaned up. Python's
    handlers can be put back from the main thread only; elsewhere they are left as they are.
    """
    fresh = "pycolmap" not in sys.modules
    import pycolmap

    if fresh and threading.current_thread() is threading.main_thread():
        handler = signal.getsignal(signal.SIGTERM)
        if handler is not None:
            signal.signal(signal.SIGTERM, handler)
    return pycolmap
