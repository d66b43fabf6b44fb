"""Make the files of this folder with RTK itself: `pip install itk-rtk==2.7.0.post1`; `python make.py .`"""

import random
import sys

import itk
from itk import RTK

Image = itk.Image[itk.F, 3]
ELLIPSOIDS = (
    ((12.0, -9.0, 20.0), (30.0, 22.0, 26.0), 0.019),
    ((-20.0, 14.0, -16.0), (14.0, 11.0, 9.0), 0.011),
)
BINS, ROWS, SPACING = 11, 7, (13.0, 15.0)


def project(geometry, name, shift):
    """Write the line integrals of the ellipsoids, and the geometry, by RTK's own filters and writers."""
    source = RTK.ConstantImageSource[Image].New()
    middle = (-SPACING[0] * (BINS - 1) / 2, -SPACING[1] * (ROWS - 1) / 2)
    source.SetOrigin([middle[0] + shift[0], middle[1] + shift[1], 0.0])
    source.SetSpacing([*SPACING, 1.0])
    source.SetSize([BINS, ROWS, len(geometry.GetGantryAngles())])
    source.SetConstant(0.0)
    image = source.GetOutput()
    for centre, axes, density in ELLIPSOIDS:
        rays = RTK.RayEllipsoidIntersectionImageFilter[Image, Image].New()
        rays.SetInput(image)
        rays.SetGeometry(geometry)
        rays.SetCenter(centre)
        rays.SetAxis(axes)
        rays.SetDensity(density)
        rays.Update()
        image = rays.GetOutput()
        image.DisconnectPipeline()
    itk.imwrite(image, f"{sys.argv[1]}/{name}.mha")
    writer = RTK.ThreeDCircularProjectionGeometryXMLFileWriter.New()
    writer.SetFilename(f"{sys.argv[1]}/{name}.xml")
    writer.SetObject(geometry)
    writer.WriteFile()


def circle(radius=0.0, source=0.0, offset=0.0):
    """Six views of a circle with a detector that is shifted, and a source beside the axis."""
    geometry = RTK.ThreeDCircularProjectionGeometry.New()
    geometry.SetRadiusCylindricalDetector(radius)
    for k in range(6):
        geometry.AddProjection(600.0, 1000.0, 17.0 + 60 * k, 3.5, offset, 0.0, 0.0, source, 0.0)
    return geometry


def robotic():
    """Six views in which everything differs: distances, offsets and all three angles."""
    generator, geometry = random.Random(5), RTK.ThreeDCircularProjectionGeometry.New()

    def around(size):
        return round(generator.uniform(-size, size), 3)

    for k in range(6):
        distances = 600.0 + around(20), 1000.0 + around(30)
        angle, offsets, turned = 70.0 * k + around(5), (around(9), around(9)), (around(12), around(25))
        geometry.AddProjection(*distances, angle, *offsets, *turned, around(7), around(7))
    return geometry


if __name__ == "__main__":
    project(circle(source=1.25), "circular", (2.0, 0.0))
    project(circle(radius=1000.0), "cylinder", (2.0, 0.0))
    project(circle(radius=800.0, source=6.0, offset=6.0), "cylinder-off", (2.0, 0.0))
    project(robotic(), "robotic", (4.0, -6.0))
