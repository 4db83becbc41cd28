"""Training checkpoints of other projects: recognised, and refused by name.

They are pickles, and a pickle runs code when it is opened; gworld opens none. The refusal says how to export a PLY.
"""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from gworld.errors import InputError
from gworld.files import existing_file

SUFFIXES = (".ckpt", ".pt", ".pth", ".pkl", ".pickle")

_PROTOCOLS = tuple(bytes([number]) for number in (2, 3, 4, 5))
_FIRST_OPCODES = tuple(bytes([code]) for code in b"\x8a\x8b\x8c\x95\x88\x89}]()cKJMGNXTU")

_NERFSTUDIO = (
    "For a nerfstudio splatfacto run, export a PLY with "
    "`ns-export gaussian-splat --load-config RUN/config.yml --output-dir FOLDER`"
)
_GSPLAT = (
    "For gsplat, export a PLY where it was trained with "
    "`gsplat.export_splats(means, scales, quats, opacities, sh0, shN, format='ply', save_to='scene.ply')`"
)


def looks_like_checkpoint(path: str | Path) -> bool:
    """Whether a file is a pickled checkpoint, judged by its name and its first and last bytes; nothing is unpickled."""
    file = Path(path)
    if file.suffix.lower() in SUFFIXES:
        return True
    if not file.is_file():
        return False
    with open(file, "rb") as stream:
        head = stream.read(4096)
        stream.seek(max(0, file.stat().st_size - 65536))
        tail = stream.read(65536)
    if head.startswith(b"PK\x03\x04"):  # torch.save since 1.6: a zip with the pickle as a member
        return b"data.pkl" in head or b"data.pkl" in tail
    # Pickle protocols 2 to 5 announce themselves; then comes an opcode that can begin a value.
    return head[:1] == b"\x80" and head[1:2] in _PROTOCOLS and head[2:3] in _FIRST_OPCODES


def refuse_checkpoint(path: str | Path) -> NoReturn:
    """Raise `InputError` saying what the file is, why it is not opened, and how to export a PLY instead."""
    file = existing_file(path)
    if file.suffix.lower() == ".ckpt" or "nerfstudio" in str(file).lower():
        kind, remedy = "a nerfstudio checkpoint", _NERFSTUDIO
    elif file.suffix.lower() in (".pt", ".pth"):
        kind, remedy = "a gsplat or PyTorch checkpoint", f"{_GSPLAT}. {_NERFSTUDIO}"
    else:
        kind, remedy = "a pickled checkpoint", f"{_GSPLAT}. {_NERFSTUDIO}"
    raise InputError(f"`{file}` looks like {kind}; opening it could run code, so a PLY is needed instead. {remedy}.")
