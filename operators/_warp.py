"""Line integrals by a kernel of Warp, on the GPU and on the CPU, with an exact transpose, along any rays."""

from __future__ import annotations

from typing import Any

import torch
import warp as wp
from torch import Tensor

from ctflow.errors import BackendError
from ctflow.geometry import Beam, VolumeGeometry
from ctflow.operators._indexed_rays import index_rays
from ctflow.operators._warp_kernels import project


class WarpProjector:
    """Line integrals of slices or volumes, with the same weights for the whole batch, on the tensor's device.

    Warp works in the memory of the tensors, on torch's current stream. Forward is exactly repeatable. The
    adjoint is the exact transpose; rays add to the voxels that they share by atomic operations, in no fixed
    order on CUDA: two runs differ by rounding there, and not on the CPU.

    Shapes: (batch, Y, X) in 1/mm <-> (batch, views, bins) with a flat beam, otherwise
        (batch, Z, Y, X) <-> (batch, rows, views, bins); float32 or float64, on CUDA or the CPU.

    Args:
        volume: grid of any spacing.
        beam: fitted beam.

    References:
        Joseph, IEEE Trans. Med. Imaging 1 (1982).
    """

    def __init__(self, volume: VolumeGeometry, beam: Beam) -> None:
        rays, self._flat = index_rays(volume, beam.rays()), beam.flat
        skip = int(self._flat)
        self.image_shape, self.data_shape = volume.shape[skip:], beam.data_shape(volume)[skip:]
        middle_row, follows = (rays.rows - 1) / 2, 0.0
        if self._flat:  # the slices of a batch lie side by side, each with a row and a source in its plane
            rays.source[:, 0], rays.middle[..., 0], rays.step[:] = 0, 0, (1, 0, 0)
            middle_row, follows = 0.0, 1.0
        self._host = [torch.from_numpy(table) for table in (rays.source, rays.middle, rays.step)]
        self._tables: dict[torch.device, list[Any]] = {}
        self._kind = wp.float64(middle_row), wp.float64(follows), wp.vec3d(*rays.spacing), rays.parallel

    def forward(self, x: Tensor) -> Tensor:
        """Line integrals of every image, dimensionless."""
        x = _known(x)
        y = x.new_empty((len(x), *self.data_shape))
        self._follow(x, y, back=False)
        return y

    def adjoint(self, y: Tensor) -> Tensor:
        """The transpose of `forward`."""
        y = _known(y)
        x = y.new_zeros((len(y), *self.image_shape))
        self._follow(x, y, back=True)
        return x

    def _follow(self, x: Tensor, y: Tensor, back: bool) -> None:
        tables, device = self._on(x.device), wp.device_from_torch(x.device)
        stream = wp.stream_from_torch(x.device) if x.is_cuda else None
        # A whole volume at a time: Warp counts bytes from one volume to the next in 32 bits.
        for image, data in [(x, y)] if self._flat else zip(x, y, strict=True):
            arrays = wp.from_torch(image), wp.from_torch(data)
            wp.launch(
                project, data.shape, [*arrays, *tables, *self._kind, back], device=device, stream=stream
            )

    def _on(self, device: torch.device) -> list[Any]:
        # By device: threads may compute on several at a time.
        if device not in self._tables:
            tables = (table.to(device) for table in self._host)
            self._tables[device] = [wp.from_torch(table, wp.vec3d) for table in tables]
        return self._tables[device]


def _known(x: Tensor) -> Tensor:
    if x.device.type not in ("cpu", "cuda") or x.dtype not in (torch.float32, torch.float64):
        raise BackendError(
            f"the warp backend computes float32 and float64 on CUDA or the CPU and was given {x.dtype} on "
            f"{x.device}; pass x.float(), or choose another backend"
        )
    return x.detach().contiguous()
