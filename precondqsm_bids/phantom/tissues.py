"""What the tissues of the head phantom are made of, with sources.

Susceptibility in ppm relative to water. That of tissue is given as its two parts, because R2'
comes from both while the field sees their sum:

- *sums*: grey and white matter, CSF, muscle, bone and nuclei after the in-silico head of the
  second reconstruction challenge (Marques et al., MRM 2021;86:526, Table 1), rounded.
- *parts*: the split is assumed, with the diamagnetic part near -0.05 ppm in white matter and
  near -0.02 ppm in grey matter, where separation methods find it (Shin et al., NeuroImage
  2021;240:118371), so that R2* at 3 T comes out where it is measured: 17 /s in cortex, 22 /s in
  white matter, 24 /s in caudate and putamen, about 40 /s in pallidum, substantia nigra, red
  nucleus and dentate.
- *T1, R2* at 3 T: grey and white matter from Wansapura et al., JMRI 1999;9:531, muscle (for all
  that lies around the skull) and the others rounded from the literature. They only set how the
  first magnitude looks and what of R2* is not R2'.
"""

from typing import NamedTuple

import numpy as np

from precondqsm_bids.numerics.constants import WATER_IN_AIR

FLIP_ANGLE = 20.0
"""Flip angle of the protocol, degrees."""


class Tissue(NamedTuple):
    """One material of the head."""

    name: str
    chi_para: float
    """Paramagnetic part of the susceptibility, ppm."""
    chi_dia: float
    """Diamagnetic part, ppm, not positive."""
    r2: float
    """R2, 1/s."""
    proton_density: float
    """Relative to water; 0 where there is no signal."""
    t1: float
    """T1, s."""
    brain: bool = False
    """Whether it is brain tissue: R2' obeys the relaxivity, and it has texture."""

    @property
    def chi(self):
        """Susceptibility, ppm."""
        return self.chi_para + self.chi_dia


TISSUES = (
    Tissue('air', 0.0, 0.0, 0.0, 0.0, 1.0),
    Tissue('GM', 0.035, -0.015, 10.0, 0.83, 1.33, True),
    Tissue('WM', 0.020, -0.050, 13.0, 0.70, 0.83, True),
    Tissue('CSF', 0.019, 0.0, 1.0, 1.00, 4.30),
    Tissue('caudate', 0.065, -0.021, 12.0, 0.82, 1.27, True),
    Tissue('putamen', 0.060, -0.022, 13.0, 0.81, 1.20, True),
    Tissue('pallidum', 0.160, -0.029, 16.0, 0.75, 0.98, True),
    Tissue('thalamus', 0.050, -0.030, 12.5, 0.79, 1.13, True),
    Tissue('red-nucleus', 0.130, -0.030, 15.0, 0.76, 0.98, True),
    Tissue('substantia-nigra', 0.140, -0.029, 16.0, 0.76, 1.05, True),
    Tissue('dentate', 0.175, -0.023, 14.0, 0.77, 1.05, True),
    Tissue('bone', 0.0, -2.10, 600.0, 0.10, 0.30),
    Tissue('soft-tissue', 0.0, 0.0, 27.0, 0.80, 1.20),
    Tissue('eye', 0.0, 0.0, 2.0, 0.99, 4.00),
    Tissue('air-cavity', -WATER_IN_AIR, 0.0, 0.0, 0.0, 1.0),
    Tissue('vein', 0.30, 0.0, 25.0, 0.80, 1.60),
    Tissue('microbleed', 0.30, 0.0, 13.0, 0.70, 0.83, True),
    Tissue('calcification', 0.0, -0.30, 13.0, 0.70, 0.83, True),
    Tissue('fat', 0.0, 0.0, 15.0, 0.90, 0.37),
    Tissue('bottle', 0.10, 0.0, 5.0, 1.00, 0.50),
)
"""The place in the tuple is the index in the label image; 0 is the air outside.

Veins: about the shift that mapping finds in the larger ones; R2' is none, blood being one bulk
susceptibility. Microbleeds and calcifications have the relaxation and density of white matter;
their susceptibilities, assumed, are of the order of those reported (Chen et al., Radiology
2014;270:496). Bone: T2* of about 1.5 ms stands as its R2. Fat (of the scanner's switch `fat`):
T1 at 3 T after Rakow-Penner et al., JMRI 2006;23:87; its susceptibility is left at that of water,
so that the chemical shift is all that the switch adds. The bottle is doped water.
"""

INDEX = {tissue.name: i for i, tissue in enumerate(TISSUES)}
"""Name of a tissue -> its index."""

NUCLEI = (
    'caudate', 'putamen', 'pallidum', 'thalamus', 'red-nucleus', 'substantia-nigra', 'dentate',
)  # fmt: skip
LESIONS = ('microbleed', 'calcification')
GREY = ('GM', *NUCLEI)
"""Grey matter in the wider sense, the deep nuclei included."""


def of_tissues(name, dtype=np.float32):
    """One property of all tissues as an array, to be indexed with an image of them.

    >>> of_tissues('chi')[INDEX['WM']].round(3)
    np.float32(-0.03)
    """
    return np.array([getattr(tissue, name) for tissue in TISSUES], dtype)


def among(names):
    """Whether each tissue is one of these, (T,) ndarray of bool."""
    return np.array([tissue.name in names for tissue in TISSUES])


def spoiled_signal(repetition_time):
    """Signal of each tissue at TE -> 0, spoiled steady state, relative to white matter.

    ``PD sin(a) (1 - E1) / (1 - cos(a) E1)``, ``E1 = exp(-TR / T1)``

    Parameters
    ----------
    repetition_time : float
        TR, s.

    Returns
    -------
    (T,) ndarray of float32

    References
    ----------
    Ernst RR, Anderson WA. Rev Sci Instrum 1966;37:93.
    """
    e1 = np.exp(-repetition_time / of_tissues('t1', float))
    angle = np.radians(FLIP_ANGLE)
    steady = np.sin(angle) * (1 - e1) / (1 - np.cos(angle) * e1)
    signal = of_tissues('proton_density', float) * steady
    return (signal / signal[INDEX['WM']]).astype(np.float32)
