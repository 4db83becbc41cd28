"""Checkpoints of other projects are recognised and refused by name; nothing in them runs."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path

import pytest

from gworld.errors import InputError
from gworld.formats.legacy import looks_like_checkpoint, refuse_checkpoint
from gworld.formats.ply import write_ply
from gworld.formats.splat import write_splat
from tests.fuzz.targets import small_table


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("zipped", [True, False])
def test_torch_checkpoints_are_recognised_by_content(tmp_path: Path, zipped: bool) -> None:
    torch = pytest.importorskip("torch")
    state = {"splats": {"means": torch.zeros(4000, 3)}, "step": 1, "trap": Trap(tmp_path / "ran")}
    for name in ("point_cloud.bin", "model.ckpt", "step-000029999.CKPT", "ckpt_29999_rank0.pt"):
        torch.save(state, tmp_path / name, _use_new_zipfile_serialization=zipped)
        assert looks_like_checkpoint(tmp_path / name)
        with pytest.raises(InputError, match=r"opening it could run code.*export a PLY"):
            refuse_checkpoint(tmp_path / name)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickles_are_recognised_by_content(tmp_path: Path, protocol: int) -> None:
    for value in ({"means": [1.0]}, [Trap(tmp_path / "ran")], (1, 2)):
        (tmp_path / "scene.dat").write_bytes(pickle.dumps(value, protocol))
        assert looks_like_checkpoint(tmp_path / "scene.dat")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("step-000029999.ckpt", ["nerfstudio checkpoint", "ns-export gaussian-splat --load-config", "--output-dir"]),
        ("ckpt_29999_rank0.pt", ["gsplat", "export_splats", "ns-export"]),
        ("model.pth", ["gsplat", "export_splats"]),
        ("scene.pkl", ["pickled checkpoint", "export_splats", "ns-export"]),
    ],
)
def test_the_refusal_names_the_way_out(tmp_path: Path, name: str, words: list[str]) -> None:
    (tmp_path / name).write_bytes(b"anything")
    assert looks_like_checkpoint(tmp_path / name)
    with pytest.raises(InputError) as caught:
        refuse_checkpoint(tmp_path / name)
    assert all(word in str(caught.value) for word in [name, *words])


def test_other_files_are_no_checkpoints(tmp_path: Path) -> None:
    write_ply(small_table(), tmp_path / "a.ply")
    write_splat(small_table(), tmp_path / "a.splat")
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("meta.json", "{}")
    (tmp_path / "a.sog").write_bytes(stream.getvalue())
    (tmp_path / "empty").write_bytes(b"")
    for name in ("a.ply", "a.splat", "a.sog", "empty", ".", "missing"):
        assert not looks_like_checkpoint(tmp_path / name)


def test_a_missing_checkpoint_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        refuse_checkpoint(tmp_path / "no.ckpt")
