"""Run mutants of one format in this process, with limits: `python -m tests.fuzz.run FORMAT [NUMBER] [--count 2000]`.

With NUMBER only that mutant is run and its traceback shown. Without, a JSON report is printed. Limits per mutant: two
seconds of processor time, and address space of 64 MB + 4 x file beyond what reading the valid file took.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from gworld.errors import GWorldError
from tests.fuzz.mutants import mutate
from tests.fuzz.shells import Parts
from tests.fuzz.targets import TARGETS, Target, check_result

SECONDS = 2.0
EXTRA_BYTES = 64 << 20


class _TooSlow(BaseException):
    """Raised by the timer; no reader's `except Exception` catches it."""


def main() -> int:
    """Read the arguments, run, report; the exit status is 1 when a mutant failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("format", choices=sorted(TARGETS))
    parser.add_argument("number", nargs="?", type=int)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    threading.stack_size(1 << 20)  # the stacks of worker threads count as address space
    target = TARGETS[options.format]
    with tempfile.TemporaryDirectory() as folder:
        sandbox = Path(folder).resolve()
        valid = _prepare(target, sandbox)
        if options.number is not None:
            failure = run_one(target, sandbox, mutate(valid, options.number, target.shell, options.seed), show=True)
            print(failure or "this mutant is handled")
            return int(failure is not None)
        report = _run_all(target, sandbox, valid, options.count, options.seed)
    print(json.dumps(report))
    return int(bool(report["failures"]))


def _run_all(target: Target, sandbox: Path, valid: Parts, count: int, seed: int) -> dict[str, Any]:
    begin, failures, refused = time.process_time(), [], 0
    for number in range(count):
        print(number, file=sys.stderr, flush=True)  # names the mutant that kills the process
        parts = mutate(valid, number, target.shell, seed)
        outcome = run_one(target, sandbox, parts)
        refused += outcome == ""
        if outcome:
            failures.append([number, outcome])
    return {"count": count, "refused": refused, "failures": failures, "seconds": time.process_time() - begin}


def _prepare(target: Target, sandbox: Path) -> Parts:
    """Write the valid file and read it twice, so that imports and thread pools are in place; return its parts."""
    path = sandbox / "inside" / target.name
    path.parent.mkdir()
    target.write(path)
    for _ in range(2):
        check_result(target.read(path), "the valid file")
    if path.is_dir():
        return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}
    return {path.name: path.read_bytes()}


def run_one(target: Target, sandbox: Path, parts: Parts, show: bool = False) -> str | None:
    """None when the mutant was read, "" when it was refused as it should be, else what went wrong."""
    path = sandbox / "inside" / target.name
    for name, content in parts.items():
        (path / name if path.is_dir() else path).write_bytes(content)
    before = sorted(sandbox.rglob("*"))
    size = sum(map(len, parts.values()))
    outcome: str | None = None
    try:
        with _Limits(EXTRA_BYTES + 4 * size):
            result = target.read(path)
    except GWorldError as error:
        outcome = _check_text(str(error))
        if show:
            print(error)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        outcome = _describe(error, show)
    else:
        try:
            check_result(result, "what was read")
        except Exception as error:  # whatever is wrong with a result is the finding
            outcome = "accepted: " + _describe(error, show)
    if sorted(sandbox.rglob("*")) != before:
        outcome = "the reader wrote or removed files"
    return outcome


def _describe(error: BaseException, show: bool) -> str:
    if show:
        traceback.print_exception(error)
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {str(error)[:200]} at {Path(frame.filename).name}:{frame.lineno}"


def _check_text(message: str) -> str:
    """Errors are sentences: bounded, on one line."""
    if len(message) > 4000 or "\n" in message.strip():
        return f"the error text has {len(message)} characters or several lines: {message[:200]!r}"
    return ""


class _Limits:
    """Processor time and address space of the block that it guards."""

    def __init__(self, extra_bytes: int) -> None:
        self.extra = extra_bytes

    def __enter__(self) -> None:
        def stop(*_: object) -> None:
            raise _TooSlow(f"more than {SECONDS} s of processor time")

        signal.signal(signal.SIGPROF, stop)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGESIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + self.extra, resource.RLIM_INFINITY))
        signal.setitimer(signal.ITIMER_PROF, SECONDS)

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


if __name__ == "__main__":
    sys.exit(main())
