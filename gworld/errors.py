"""One error family: every message names the file, the fact, the need and the way out."""

from __future__ import annotations


class GWorldError(Exception):
    """Base of every error gworld raises on purpose; `exit_code` is what the command line returns."""

    exit_code = 1


class UsageError(GWorldError):
    """The request itself is wrong: an unknown option, a missing argument, an output that exists."""

    exit_code = 2


class InputError(GWorldError):
    """A file or recording cannot be used as it is."""

    exit_code = 3


class MissingBackendError(GWorldError):
    """A backend, a device or an optional package is not available here."""

    exit_code = 4


class ResourceError(GWorldError):
    """Memory or disk would run out."""

    exit_code = 5
