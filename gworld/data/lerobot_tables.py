"""The Parquet tables of a LeRobot v3.0 data set, with the column types and metadata that `lerobot` itself writes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gworld.data.lerobot_stats import Stats
from gworld.data.parquet import parquet_library


def data_table(columns: Mapping[str, np.ndarray]) -> Any:
    """Rows of one episode as an Arrow table: lists of fixed size, and the `huggingface` description of each column."""
    import pyarrow

    arrays: dict[str, Any] = {}
    described: dict[str, Any] = {}
    for name, values in columns.items():
        kind = str(values.dtype)
        values = values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values  # as `lerobot` has it
        if values.ndim == 1:
            arrays[name] = pyarrow.array(values)
            described[name] = {"dtype": kind, "_type": "Value"}
        else:
            flat = pyarrow.array(np.ascontiguousarray(values).reshape(-1))
            arrays[name] = pyarrow.FixedSizeListArray.from_arrays(flat, values.shape[1])
            described[name] = {"feature": {"dtype": kind, "_type": "Value"}, "length": values.shape[1], "_type": "List"}
    table = pyarrow.table(arrays)
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": described}})})


def write_episodes(root: Path, entries: Sequence[Mapping[str, Any]], stats: Sequence[Mapping[str, Stats]]) -> None:
    """`meta/episodes`: a row per episode with its places and the statistics of each feature."""
    import pyarrow

    columns: dict[str, Any] = {}
    for key in entries[0]:
        values = [entry[key] for entry in entries]
        kind = pyarrow.list_(pyarrow.field("element", pyarrow.string())) if key == "tasks" else None
        columns[key] = pyarrow.array(values, kind)
    for feature in stats[0]:
        for key in stats[0][feature]:
            values = [np.asarray(part[feature][key]) for part in stats]
            kind = pyarrow.int64() if values[0].dtype.kind in "iu" else pyarrow.float64()
            for _ in range(values[0].ndim):
                kind = pyarrow.list_(pyarrow.field("element", kind))
            columns[f"stats/{feature}/{key}"] = pyarrow.array([value.tolist() for value in values], kind)
    for key in ("chunk_index", "file_index"):
        columns[f"meta/episodes/{key}"] = pyarrow.array([0] * len(entries), pyarrow.int64())
    _write(root / "meta" / "episodes" / "chunk-000" / "file-000.parquet", pyarrow.table(columns))


def write_tasks(root: Path, tasks: Mapping[str, int]) -> None:
    """`meta/tasks.parquet`: the task's words are the index of a pandas table, which its metadata says."""
    import pyarrow

    index = "__index_level_0__"
    table = pyarrow.table(
        {
            "task_index": pyarrow.array(list(tasks.values()), pyarrow.int64()),
            index: pyarrow.array(list(tasks), pyarrow.large_string()),
        }
    )

    def column(name: str | None, field: str, pandas: str, numpy: str, metadata: Any = None) -> dict[str, Any]:
        kinds = {"pandas_type": pandas, "numpy_type": numpy}
        return {"name": name, "field_name": field, **kinds, "metadata": metadata}

    words = column(None, index, "unicode", "object")
    heads = {"name": None, "field_name": None, "pandas_type": "unicode", "numpy_type": "object"}
    pandas = {
        "index_columns": [index],
        "column_indexes": [heads | {"metadata": {"encoding": "UTF-8"}}],
        "columns": [column("task_index", "task_index", "int64", "int64"), words],
        "creator": {"library": "pyarrow", "version": pyarrow.__version__},
        "pandas_version": "2.0.0",
    }
    _write(root / "meta" / "tasks.parquet", table.replace_schema_metadata({"pandas": json.dumps(pandas)}))


def _write(path: Path, table: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as stream:
        parquet_library().write_table(table, stream, compression="snappy")
