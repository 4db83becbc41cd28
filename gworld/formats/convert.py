"""Between the numpy table of the file tools and the torch `Gaussians` of everything else; memory is shared."""

from __future__ import annotations

import numpy as np
import torch

from gworld.formats.table import SplatTable
from gworld.scene.gaussians import Gaussians


def gaussians_from_table(table: SplatTable) -> Gaussians:
    """Torch view of a table, in the table's axes; link poses and names stay with the table (or the world)."""
    columns = (table.means, table.quats_wxyz, table.log_scales, table.opacity_logits, table.sh, table.links)
    return Gaussians(*(torch.from_numpy(np.ascontiguousarray(column)) for column in columns))


def table_from_gaussians(gaussians: Gaussians) -> SplatTable:
    """Float32 numpy table of Gaussians; axes are gworld's own (RFU), soft links keep only their owner."""
    return SplatTable(
        means=_float_column(gaussians.means),
        quats_wxyz=_float_column(gaussians.quats_wxyz),
        log_scales=_float_column(gaussians.log_scales),
        opacity_logits=_float_column(gaussians.opacity_logits),
        sh=_float_column(gaussians.sh),
        links=gaussians.links.detach().to("cpu", torch.int32).numpy(),
        axes="RFU",
    )


def _float_column(values: torch.Tensor) -> np.ndarray:
    return values.detach().to("cpu", torch.float32).numpy()
