"""Write ctflow/scanner/xray.json: attenuation of materials by xraydb, spectra of tubes by spekpy.

pip install xraydb spekpy && python .ci/xray_tables.py
"""

import json
from pathlib import Path

import numpy as np
import spekpy
import xraydb

STEP = 2.0  # keV
KEV = np.arange(13.0, 152.0, STEP)  # middles of spekpy's bins; filtered tubes give less than 1e-5 below
KVP = (80, 100, 120, 140)
# Mass fractions, and density in g/cm³ (ICRU 44: water, cortical bone).
MATERIALS = {
    "water": ({"H": 0.1119, "O": 0.8881}, 1.0),
    "bone": (
        {
            "H": 0.034,
            "C": 0.155,
            "N": 0.042,
            "O": 0.435,
            "Na": 0.001,
            "Mg": 0.002,
            "P": 0.103,
            "S": 0.003,
            "Ca": 0.225,
        },
        1.92,
    ),
    "iodine": ({"I": 1.0}, 4.93),
    "titanium": ({"Ti": 1.0}, 4.51),
    "steel": ({"Fe": 0.69, "Cr": 0.18, "Ni": 0.13}, 7.9),
}


def spectrum(kvp: int) -> list[float]:
    """Photons in each bin of a tungsten tube at 10° behind 6 mm of aluminium, their sum 1."""
    tube = spekpy.Spek(kvp=kvp, th=10, dk=STEP)
    tube.filter("Al", 6.0)
    kev, flux = tube.get_spectrum()
    at = dict(zip(kev.tolist(), flux.tolist(), strict=True))
    photons = np.array([at.get(energy, 0.0) for energy in KEV])
    assert photons.sum() > 0.99999 * flux.sum()
    return [float(f"{share:.4g}") for share in photons / photons.sum()]


def attenuation(parts: dict[str, float]) -> list[float]:
    """Mass attenuation with coherent scattering, cm²/g."""
    total = sum(share * xraydb.mu_elam(element, 1000 * KEV, kind="total") for element, share in parts.items())
    return [float(f"{value:.5g}") for value in total / sum(parts.values())]


if __name__ == "__main__":
    table = {
        "sources": f"xraydb {xraydb.__version__} (Elam), spekpy {spekpy.__version__}: tungsten, 10°, 6 mm Al",
        "kev": KEV.tolist(),
        "materials": {
            name: {"density_g_per_cm3": density, "cm2_per_g": attenuation(parts)}
            for name, (parts, density) in MATERIALS.items()
        },
        "photons": {str(kvp): spectrum(kvp) for kvp in KVP},
    }
    text = json.dumps(table, ensure_ascii=False, separators=(",", ":"))
    Path("ctflow/scanner/xray.json").write_text(text + "\n", encoding="utf-8")
