"""Positions of voxels and rays: plain values in mm and radians, no tensors.

Inside a slice x grows with the column and y grows against the row (row 0 is at the top). A view at angle
θ of a parallel beam measures along s = x cos θ + y sin θ; a fan or cone source stands at
(source_axis sin θ, -source_axis cos θ) and its detector row runs along (cos θ, sin θ). `Beam.rays` gives the
same for every beam as arrays. Each file defines one kind of beam, which protocols call by the file's name.
"""

from ctflow.geometry._astra_dictionaries import from_astra, to_astra
from ctflow.geometry._beam import Beam
from ctflow.geometry._circular import CircularBeam
from ctflow.geometry._flying_spot import FlyingSpot
from ctflow.geometry._grid import VolumeGeometry
from ctflow.geometry._rays import Rays
from ctflow.geometry.cone_beam import ConeBeam
from ctflow.geometry.fan_beam import FanBeam
from ctflow.geometry.helical_beam import HelicalBeam
from ctflow.geometry.parallel_beam import ParallelBeam
from ctflow.geometry.parallel_beam_3d import ParallelBeam3D
from ctflow.geometry.vector_beam import VectorBeam

__all__ = [
    "Beam",
    "CircularBeam",
    "ConeBeam",
    "FanBeam",
    "FlyingSpot",
    "HelicalBeam",
    "ParallelBeam",
    "ParallelBeam3D",
    "Rays",
    "VectorBeam",
    "VolumeGeometry",
    "from_astra",
    "to_astra",
]
