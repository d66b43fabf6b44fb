"""Accept MONAI's MetaTensors as plain tensors if their axes are those of the operator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ctflow.errors import GeometryError

_TOWARDS = (("R", "L"), ("A", "P"), ("S", "I"))
_LPS_TO_RAS = torch.diag(torch.tensor([-1.0, -1.0, 1.0], dtype=torch.float64))


def plain_tensor(x: Any, operator: Any) -> Tensor:
    """Return the tensor without its subclass, (*batch, ...), still part of its autograd graph.

    The affine of a MetaTensor, mm, gives the directions of its last axes, which MONAI orders (X, Y, Z) by
    default. An identity affine carries no information and is ignored.

    Args:
        x: any tensor.
        operator: operator to apply; its `volume`, if it has one, gives the directions of (Z, Y, X).

    Raises:
        GeometryError: the axes of the MetaTensor run in other directions, or have another spacing.
    """
    if not hasattr(x, "as_tensor"):
        return x  # type: ignore[no-any-return]
    volume = _volume(operator)
    affine = torch.as_tensor(x.affine, dtype=torch.float64, device="cpu")
    if volume is not None and not torch.equal(affine, torch.eye(len(affine), dtype=torch.float64)):
        axes = len(affine) - 1
        ours = _LPS_TO_RAS @ torch.tensor(volume.affine, dtype=torch.float64)[:3, :3]
        _refuse_other_axes(affine[:axes, :axes], ours[:axes, 3 - axes :])
    return x.as_tensor()  # type: ignore[no-any-return]


def _volume(operator: Any) -> Any:
    """Grid of the operator's images; for a composition that of its innermost part."""
    for part in ("volume", "right", "first", "operator"):
        inner = getattr(operator, part, None)
        if inner is not None:
            volume = inner if part == "volume" else _volume(inner)
            return volume if volume is not None and volume.shape == operator.domain_shape else None
    return None


def _refuse_other_axes(theirs: Tensor, ours: Tensor) -> None:
    spacings = [columns.norm(dim=0) for columns in (theirs, ours)]
    # One per cent: spacings are written with few digits, and a tilted gantry tilts the axes a little.
    if _codes(theirs) != _codes(ours) or bool((spacings[0] / spacings[1] - 1).abs().max() > 0.01):
        came, wanted = (" × ".join(f"{mm:.4g}" for mm in spacing.tolist()) for spacing in spacings)
        raise GeometryError(
            f"the MetaTensor's axes run towards {_codes(theirs)} at {came} mm, and the operator's (Z, Y, X) "
            f"towards {_codes(ours)} at {wanted} mm; apply "
            f'monai.transforms.Orientation(axcodes="{_codes(ours)}") and Spacing first, or give '
            "x.as_tensor() if the axes are in order and the affine is not"
        )


def _codes(columns: Tensor) -> str:
    """ "SPL" for axes that run towards superior, posterior, left."""
    rows = columns.abs().argmax(dim=0).tolist()
    return "".join(_TOWARDS[row][int(columns[row, axis] < 0)] for axis, row in enumerate(rows))
