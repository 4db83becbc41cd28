"""Parquet in and out by pyarrow: numeric columns as arrays, every count checked before it is believed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gworld.errors import InputError, MissingBackendError
from gworld.files import check_memory, existing_file

MAX_ROWS = 1 << 27
EXPANSION = 2000
"""How many times its own size a Parquet file may promise: runs of equal values pack about as well as this."""


def parquet_library() -> Any:
    """`pyarrow.parquet`; raises `MissingBackendError` where it is not installed."""
    try:
        import pyarrow.parquet as library
    except ImportError as error:
        raise MissingBackendError(
            f"episodes need the package pyarrow ({error}). Run `pip install 'gworld[data]'`."
        ) from error
    return library


def read_columns(path: str | Path, names: Sequence[str] | None = None, optional: Sequence[str] = ()) -> dict[str, Any]:
    """Columns of a Parquet file as arrays [T] or [T, A] of numbers (a null is NaN), or lists of texts.

    All columns are read when `names` is None, else these and those of `optional` that are there. Raises `InputError`
    for a file that is damaged, promises more than it can hold, or lacks a column.
    """
    with _explained(path):
        file = parquet_library().ParquetFile(existing_file(path), memory_map=False, pre_buffer=False)
        try:
            present = list(file.schema_arrow.names)
            wanted = present if names is None else [*names, *(name for name in optional if name in present)]
            missing = [name for name in wanted if name not in present]
            if missing:
                raise InputError(f"`{path}` has no column {missing[0]!r}; it has {', '.join(present[:20])}.")
            _check_size(file.metadata, Path(path))
            table = file.read(columns=wanted, use_threads=False)
            table.validate(full=True)
        finally:
            file.close()
        if table.num_rows != file.metadata.num_rows:
            raise InputError(f"`{path}` promises {file.metadata.num_rows} rows and holds {table.num_rows}.")
        return {name: _array(table.column(name), name, path) for name in wanted}


def count_rows(path: str | Path) -> int:
    """Rows that a Parquet file's footer promises."""
    with _explained(path):
        return int(parquet_library().read_metadata(existing_file(path)).num_rows)


def write_columns(path: Path, columns: Mapping[str, np.ndarray]) -> None:
    """Write arrays [T] or [T, A] (a list of fixed size per row) to a Parquet file, footer and all."""
    library = parquet_library()
    import pyarrow

    arrays = {name: _arrow(pyarrow, values) for name, values in columns.items()}
    with open(path, "wb") as stream:
        library.write_table(pyarrow.table(arrays), stream, compression="zstd")


def _arrow(pyarrow: Any, values: np.ndarray) -> Any:
    if values.ndim == 1:
        return pyarrow.array(values)
    flat = pyarrow.array(np.ascontiguousarray(values).reshape(-1))
    return pyarrow.FixedSizeListArray.from_arrays(flat, values.shape[1])


def _check_size(metadata: Any, path: Path) -> None:
    promised = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    size = path.stat().st_size
    rows = metadata.num_rows
    if not 0 <= rows <= MAX_ROWS or not 0 <= promised <= EXPANSION * size or rows > EXPANSION * 8 * size:
        raise InputError(
            f"`{path}` has {size} bytes and promises {rows} rows of {promised} bytes in all; it is damaged or a trap."
        )
    check_memory(2 * promised, f"reading `{path}`")


def _array(column: Any, name: str, path: str | Path) -> Any:
    """A column as numbers [T] or [T, A], or as a list of texts."""
    import pyarrow.types as kinds

    kind = column.type
    if kinds.is_string(kind) or kinds.is_large_string(kind):
        return column.to_pylist()
    width = None
    values = column.combine_chunks()
    if kinds.is_list(kind) or kinds.is_large_list(kind) or kinds.is_fixed_size_list(kind):
        if kinds.is_string(kind.value_type) or kinds.is_nested(kind.value_type):
            return values.to_pylist()
        if values.null_count:
            raise InputError(f"`{path}`: column {name!r} lacks {values.null_count} of its {len(values)} rows.")
        rows, values = len(values), values.flatten()
        width = len(values) // rows if rows else 0
        if width * rows != len(values) or (not kinds.is_fixed_size_list(kind) and _uneven(column, width)):
            raise InputError(f"`{path}`: the rows of column {name!r} differ in length; one length is needed.")
    if not (kinds.is_integer(values.type) or kinds.is_floating(values.type) or kinds.is_boolean(values.type)):
        raise InputError(f"`{path}`: column {name!r} is of type {values.type}; numbers are needed.")
    numbers = values.to_numpy(zero_copy_only=False)
    if numbers.dtype == object:
        raise InputError(f"`{path}`: column {name!r} has empty cells; a truth value in each row is needed.")
    return numbers if width is None else numbers.reshape(-1, width)


def _uneven(column: Any, width: int) -> bool:
    import pyarrow.compute as compute

    return bool(compute.any(compute.not_equal(compute.list_value_length(column), width)).as_py())


@contextlib.contextmanager
def _explained(path: str | Path) -> Iterator[None]:
    parquet_library()
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, ValueError, TypeError, KeyError, MemoryError) as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise InputError(f"`{path}` cannot be read as Parquet: {reason}. Copy or export it again.") from error


def column_names(path: str | Path) -> list[str]:
    """Names of the columns of a Parquet file."""
    with _explained(path):
        return list(parquet_library().read_schema(existing_file(path)).names)
