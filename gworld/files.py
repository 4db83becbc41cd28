"""Safe file handling: atomic writes, joins that cannot leave a folder, size caps, run locks.

Nothing here trusts a file: names from archives and manifests go through `safe_join`, sizes from headers through
`check_count`, and results appear under their final name only when they are complete on disk.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any

from gworld.errors import InputError, ResourceError, UsageError

MAX_JSON_BYTES = 256 << 20
LONGEST_NAME = 255
"""Bytes that file systems take for the name of a file."""
_TEMPORARY = re.compile(r"^\.(?P<name>.+)\.[0-9a-f]{8}\.(?P<kind>tmp|old)$")
_CGROUP = Path("/sys/fs/cgroup")
_UNWRITABLE = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOENT, errno.ENAMETOOLONG,
)  # fmt: skip


def find_asset(name: str) -> Path | None:
    """A file or folder that comes with gworld (`dynamics/push`), in the package or beside it in a checkout; or None."""
    package = Path(__file__).resolve().parent
    return next((found for root in (package, package.parent) if (found := root / "assets" / name).exists()), None)


def need_asset(name: str) -> Path:
    """The same; raises `InputError` where the installation lacks it."""
    found = find_asset(name)
    if found is None:
        raise InputError(f"this installation has no `assets/{name}`. Install gworld again, or run it from a checkout.")
    return found


@contextlib.contextmanager
def atomic_write(path: str | Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary neighbour of `path` that replaces it, complete and flushed to disk, when the block ends well.

    If the block raises, or the process dies, whatever stood at `path` before is untouched.
    Raises `ResourceError` when the disk is full and `UsageError` when the folder cannot be written.
    """
    target = Path(path)
    temporary = _neighbour(target, "tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(target)
        _sync_folder(target.parent)
    except OSError as error:
        raise _explain(error, target) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | Path, *, own: Sequence[str], overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path` when the block ends well; half-written folders never appear.

    `own` are the name patterns of what the caller writes. Raises `UsageError` when `path` exists and `overwrite` is
    False, and always when it holds anything that matches none of them: nobody's photos are replaced by ours.
    """
    target = Path(path)
    refuse_existing(target, overwrite=overwrite)
    _refuse_foreign(target, own)
    temporary = _neighbour(target, "tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _sync_file(file)
        _sync_folder(temporary)
        replace_folder(temporary, target)
    except OSError as error:
        raise _explain(error, target) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def replace_folder(source: Path, target: Path) -> None:
    """Rename `source` to `target`; an old `target` is moved aside first, removed last, and put back on failure."""
    aside = _neighbour(target, "old")
    if target.is_dir() and not target.is_symlink():
        target.replace(aside)
    elif target.exists():
        target.unlink()
    try:
        source.replace(target)
    except OSError:
        if aside.exists():
            aside.replace(target)
        raise
    _sync_folder(target.parent)
    shutil.rmtree(aside, ignore_errors=True)


def sweep_temporaries(folder: str | Path) -> int:
    """Remove what killed writers left in `folder` and return how many entries went.

    A folder that was moved aside and not yet replaced when its writer died is put back.
    """
    count = 0
    for entry in Path(folder).iterdir():
        found = _TEMPORARY.match(entry.name)
        if found is None:
            continue
        if found["kind"] == "old" and not (home := entry.with_name(found["name"])).exists():
            entry.replace(home)
        elif entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
        count += 1
    return count


def safe_join(root: str | Path, name: str) -> Path:
    """`root / name`, if that stays inside `root`.

    Raises `InputError` for absolute names, drive letters, `..`, backslashes, NUL bytes, links that lead outside, and
    names longer than file systems take.
    """
    pure = PurePosixPath(name)
    if any(len(part.encode("utf-8", "surrogatepass")) > LONGEST_NAME for part in pure.parts):
        raise InputError(f"the name {name[:40]!r}... has {len(name)} characters; at most {LONGEST_NAME} are possible.")
    bad = not name or "\0" in name or "\\" in name or pure.is_absolute() or ".." in pure.parts
    if bad or PureWindowsPath(name).drive:
        raise InputError(f"the name {name!r} leads outside its folder; plain relative names are needed.")
    base = Path(root).resolve()
    joined = (base / pure).resolve()
    if joined != base and base not in joined.parents:
        raise InputError(f"the name {name!r} leads outside its folder through a link; plain files are needed.")
    return base / pure


def existing_file(path: str | Path) -> Path:
    """`path` as a Path if it is a readable regular file; raises `InputError` otherwise."""
    file = Path(path)
    try:
        if not file.is_file():
            fact = "is a folder" if file.is_dir() else "is not a regular file" if file.exists() else "does not exist"
            raise InputError(f"`{file}` {fact}; a file is needed. Check the path.")
        with open(file, "rb"):
            return file
    except (OSError, ValueError) as error:
        raise InputError(f"`{file}` cannot be opened: {error}. Check the path and its permissions.") from error


def refuse_existing(path: str | Path, *, overwrite: bool) -> None:
    """Raise `UsageError` when `path` exists and may not be replaced."""
    try:
        present = Path(path).exists() or Path(path).is_symlink()
    except OSError as error:
        raise UsageError(f"`{path}` cannot be looked at: {error.strerror}. Choose another path.") from error
    if present and not overwrite:
        raise UsageError(f"`{path}` exists already. Choose another name or add `--overwrite`.")


def check_count(count: int, bytes_each: float, available: int, source: str, what: str) -> None:
    """Raise `InputError` when a header promises more than its file can hold, before anything is allocated."""
    if count < 0 or count * bytes_each > available:
        raise InputError(
            f"`{source}`: the header promises {count} {what}, which need {count * bytes_each:.0f} bytes, but "
            f"{available} are there. The file is damaged or cut off; copy or export it again."
        )


def check_memory(needed: int, purpose: str) -> None:
    """Raise `ResourceError` when `needed` bytes are more than what the machine has free."""
    free = available_memory()
    if free is not None and needed > free:
        raise ResourceError(
            f"{purpose} needs {needed / 2**20:.0f} MB of memory but {free / 2**20:.0f} MB are free. "
            "Close other programs, or use a smaller input."
        )


def available_memory() -> int | None:
    """Bytes of memory that can be taken without swapping, or None where the system does not tell."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            fields = dict(line.split(":", 1) for line in lines)
        free = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError, IndexError):
        return None
    with contextlib.suppress(OSError, ValueError):  # a container's limit, where there is one ("max" is none)
        limit, used = (int((_CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        free = min(free, max(0, limit - used))
    return free


def read_json(path: str | Path, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """Parse a JSON file of bounded size; raises `InputError` with file and position when it cannot be parsed."""
    file = existing_file(path)
    if file.stat().st_size > max_bytes:
        raise InputError(f"`{file}` has {file.stat().st_size} bytes; at most {max_bytes} are read as JSON.")
    return parse_json(file.read_bytes(), str(file))


def parse_json(data: bytes, source: str) -> Any:
    """Parse JSON bytes without NaN or Infinity; raises `InputError` naming `source`."""

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not a number of JSON")

    try:
        return json.loads(data.decode("utf-8"), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        reason = str(error) or type(error).__name__
        raise InputError(f"`{source}` is not valid JSON: {reason}. Export it again.") from error


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON atomically, indented, refusing NaN and Infinity."""
    with atomic_write(path, "w") as stream:
        json.dump(value, stream, indent=2, allow_nan=False)
        stream.write("\n")


@contextlib.contextmanager
def folder_lock(folder: str | Path) -> Iterator[None]:
    """Hold the one lock of a run folder; raises `UsageError` naming the process that holds it already.

    The lock is the kernel's (flock), so a killed process never leaves a stale one.
    """
    import fcntl

    Path(folder).mkdir(parents=True, exist_ok=True)
    with open(Path(folder) / ".lock", "a+", encoding="ascii") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise UsageError(f"`{folder}` cannot be locked: {error.strerror}. Choose another disk.") from error
            stream.seek(0)
            owner = stream.read(32).strip() or "unknown"
            raise UsageError(
                f"`{folder}` is in use by process {owner}. Wait for it, or choose another `--out`."
            ) from error
        stream.truncate(0)
        stream.write(str(os.getpid()))
        stream.flush()
        yield


def _sync_file(path: Path) -> None:
    with open(path, "rb") as stream:
        os.fsync(stream.fileno())


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # not every file system lets a folder be opened
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _neighbour(target: Path, kind: str) -> Path:
    """A hidden name beside `target` that `sweep_temporaries` knows; long names are cut, for files end at 255 bytes."""
    name = target.name if len(target.name.encode()) < 235 else target.name[:50]
    return target.with_name(f".{name}.{uuid.uuid4().hex[:8]}.{kind}")


def _refuse_foreign(target: Path, own: Sequence[str]) -> None:
    if not target.is_dir():
        return
    for entry in target.iterdir():
        if not any(fnmatch.fnmatch(entry.name, pattern) for pattern in own):
            raise UsageError(
                f"`{target}` holds `{entry.name}`, which gworld did not write there; it is not replaced. "
                "Choose another folder."
            )


def _explain(error: OSError, target: Path) -> Exception:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceError(f"the disk is full while writing `{target}`. Free some space, or choose another folder.")
    if error.errno in _UNWRITABLE:
        return UsageError(f"`{target}` cannot be written: {error.strerror}. Choose another path.")
    return error
