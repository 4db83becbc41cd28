"""Robots' logs as CSV: what is written comes back, and each bad line is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gworld.capture.logfile import read_hand_log
from gworld.errors import InputError

HEADER = "time,x,y,z,qw,qx,qy,qz\n"


def test_columns_in_any_order_and_more(tmp_path: Path) -> None:
    file = tmp_path / "log.csv"
    file.write_text("note,x,y,z,time,qx,qy,qz,qw\na,1,2,3,0.5,0,0,0.7071068,0.7071068\nb,1,2,4,0.6,0,0,0,1\n\n")
    log = read_hand_log(file)
    assert log.times.tolist() == [0.5, 0.6]
    turned = torch.tensor([[0.0, -1, 0, 1], [1, 0, 0, 2], [0, 0, 1, 3], [0, 0, 0, 1]], dtype=torch.float64)
    torch.testing.assert_close(log.base_from_hand[0], turned, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("time,x,y\n", "lacks the columns"),
        (HEADER, "0 poses"),
        (HEADER + "0,0,0,0,1,0,0,0\n1,0,0,zero,1,0,0,0\n", "line 3"),
        (HEADER + "0,0,0,0,1,0,0\n", "line 2"),
        (HEADER + "0,0,0,0,1,1,0,0\n", "unit quaternion"),
        (HEADER + "0,0,nan,0,1,0,0,0\n", "finite"),
        (HEADER + "1,0,0,0,1,0,0,0\n0,0,0,0,1,0,0,0\n", "rise"),
    ],
)
def test_bad_logs_are_one_sentence(tmp_path: Path, text: str, fact: str) -> None:
    (tmp_path / "log.csv").write_text(text)
    with pytest.raises(InputError, match=fact):
        read_hand_log(tmp_path / "log.csv")


def test_a_binary_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_bytes(bytes(range(256)))
    with pytest.raises(InputError):
        read_hand_log(tmp_path / "log.csv")
