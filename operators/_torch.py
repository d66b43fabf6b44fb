"""Line integrals by tensor operations alone, on any device where torch has float64, along any rays.

Joseph's method as a gather: for some rays at a time, the voxels that they meet and their weights are
computed; forward sums these voxels, the adjoint adds to the same voxels with the same weights. The batch is
the innermost axis, so that each weight is computed once for all of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, pad

from ctflow.errors import BackendError
from ctflow.geometry import Beam, VolumeGeometry
from ctflow.operators._indexed_rays import index_rays

_PLANE_BYTES = 96  # per ray and plane: four voxels, their weights, and intermediate values
_MARGIN = (1, 2)  # zeros before and behind every axis: interpolation just outside reads one or two of them


class TorchProjector:
    """Line integrals of slices or volumes, with the same weights for the whole batch, on the tensor's device.

    The adjoint is the exact transpose. On CUDA the order in which the adjoint adds is not fixed: two runs
    differ by rounding (torch.use_deterministic_algorithms fixes it). Forward is exactly repeatable.

    Shapes: (batch, Y, X) in 1/mm <-> (batch, views, bins) with a flat beam, otherwise
        (batch, Z, Y, X) <-> (batch, rows, views, bins); float32 or float64.

    Args:
        volume: grid of any spacing.
        beam: fitted beam.
        max_bytes: approximate memory beyond the arrays and a copy of each.

    References:
        Joseph, IEEE Trans. Med. Imaging 1 (1982).
    """

    def __init__(self, volume: VolumeGeometry, beam: Beam, max_bytes: int = 2**28) -> None:
        rays, skip = index_rays(volume, beam.rays()), int(beam.flat)  # a flat beam knows no z
        self.image_shape, self.data_shape = volume.shape[skip:], beam.data_shape(volume)[skip:]
        self._padded = tuple(n + sum(_MARGIN) for n in self.image_shape)
        self._max_bytes, self._rows, self._parallel = max_bytes, rays.rows, rays.parallel
        arrays = (rays.source, rays.middle, rays.step)
        tables = [torch.from_numpy(array[..., skip:].copy()) for array in arrays]
        self._tables = {torch.device("cpu"): tables}
        self._spacing = torch.tensor(rays.spacing[skip:], dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        """Line integrals of every image, dimensionless."""
        image = _batch_last(pad(_known(x), _MARGIN * len(self.image_shape)))
        data = image.new_zeros(math.prod(self.data_shape), len(x))
        for rays, voxels, weights in self._walks(image):
            data[rays] += embedding_bag(voxels, image, per_sample_weights=weights, mode="sum")
        return data.T.reshape(len(x), *self.data_shape)

    def adjoint(self, y: Tensor) -> Tensor:
        """The transpose of `forward`."""
        data = _batch_last(_known(y))
        image = data.new_zeros(math.prod(self._padded), len(y))
        for rays, voxels, weights in self._walks(data):
            image.index_add_(0, voxels.flatten(), (weights[..., None] * data[rays, None]).flatten(0, 1))
        inside = (slice(_MARGIN[0], -_MARGIN[1]),) * len(self.image_shape)
        return image.T.reshape(len(y), *self._padded)[(slice(None), *inside)].contiguous()

    def _walks(self, like: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Rays, with a voxel in every plane and its weight in mm: (n,), (n, planes), (n, planes)."""
        tables, number = self._on(like.device), math.prod(self.data_shape)
        each = max(self.image_shape) * (_PLANE_BYTES + like[0].numel() * like.element_size())
        chunk = max(1, self._max_bytes // each)
        for first in range(0, number, chunk):
            rays = torch.arange(first, min(first + chunk, number), device=like.device)
            start, ahead = self._lines(rays, tables)
            steepest = ahead.abs().argmax(1)
            for axis in range(len(self.image_shape)):
                some = (steepest == axis).nonzero()[:, 0]
                if len(some):
                    corners = self._corners(axis, start[some], ahead[some], like.dtype)
                    yield from ((rays[some], *corner) for corner in corners)

    def _on(self, device: torch.device) -> list[Tensor]:
        # By device: threads may compute on several at a time.
        if device not in self._tables:
            self._tables[device] = [table.to(device) for table in self._tables[torch.device("cpu")]]
        return self._tables[device]

    def _lines(self, rays: Tensor, tables: list[Tensor]) -> tuple[Tensor, Tensor]:
        """A point of every ray and its direction, in voxel indices: each (n, dimensions), float64."""
        source, middle, step = tables
        views, bins, _ = middle.shape
        row, view, k = rays // (views * bins), rays // bins % views, rays % bins
        rise = (row - (self._rows - 1) / 2).double()
        point = middle[view, k] + rise[:, None] * step[view]
        return (point, source[view]) if self._parallel else (source[view], point - source[view])

    def _corners(
        self, axis: int, start: Tensor, ahead: Tensor, dtype: torch.dtype
    ) -> list[tuple[Tensor, Tensor]]:
        """Padded voxels around rays in the planes of one axis, and their weights: each (n, planes)."""
        slope = ahead / ahead[:, axis, None]
        offset = start - start[:, axis, None] * slope
        length = (slope * self._spacing.to(slope)).norm(dim=1)
        plane = torch.arange(self.image_shape[axis], device=start.device)
        corners = [((plane + _MARGIN[0]) * self._stride(axis), length[:, None].to(dtype))]
        for other in (d for d in range(len(self.image_shape)) if d != axis):
            at = offset[:, other, None] + plane * slope[:, other, None]
            # What lies beyond the image is in its margin, which is zero.
            at.clamp_(-_MARGIN[0], self.image_shape[other])
            low = at.floor()
            share, step = (at - low).to(dtype), self._stride(other)
            place = (low.long() + _MARGIN[0]) * step
            corners = [
                (voxels + place + tap * step, weights * (share if tap else 1 - share))
                for voxels, weights in corners
                for tap in (0, 1)
            ]
        return corners

    def _stride(self, axis: int) -> int:
        return math.prod(self._padded[axis + 1 :])


def _known(x: Tensor) -> Tensor:
    if x.dtype not in (torch.float32, torch.float64):
        raise BackendError(
            f"the torch backend computes in float32 and float64 and was given {x.dtype}; pass x.float()"
        )
    return x.detach()


def _batch_last(x: Tensor) -> Tensor:
    """Move the batch to the end, (everything else, batch), so that a weight serves neighbours in memory."""
    return x.flatten(1).T.contiguous()
