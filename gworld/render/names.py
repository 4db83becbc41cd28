"""Names of renderers, for command lines: they are read before anything heavy is loaded."""

from __future__ import annotations

from typing import Literal

BackendName = Literal["auto", "native-cuda", "gsplat", "native-cpu", "reference"]
