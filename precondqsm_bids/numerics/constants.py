"""Physical constants, each once, with unit and source."""

from math import pi

GAMMA_BAR = 42.57638543e6
"""Proton gyromagnetic ratio over 2 pi in water, Hz/T.

The *shielded* proton (H2O sphere, 25 degC), CODATA 2022; the free proton would be 42.577478e6.
"""

GAMMA = 2 * pi * GAMMA_BAR
"""Proton gyromagnetic ratio in water, rad/s/T."""

WATER_CHI = -9.05
"""Volume susceptibility of water at body temperature, ppm (SI). Schenck, Med Phys 1996;23:815."""

AIR_CHI = 0.36
"""Volume susceptibility of air at room temperature, ppm (SI). Schenck, Med Phys 1996;23:815."""

WATER_IN_AIR = WATER_CHI - AIR_CHI
"""Susceptibility of water, and of an object of unknown material, relative to air, ppm."""

FAT_SHIFT = -3.4
"""Chemical shift of fat's largest line relative to water, ppm. Ren J et al., J Lipid Res
2008;49:2055."""


def hz_per_ppm(field_strength: float) -> float:
    """Frequency offset of a field of 1 ppm, in Hz, at ``field_strength`` tesla.

    >>> round(hz_per_ppm(3.0), 2)
    127.73
    """
    return GAMMA_BAR * field_strength * 1e-6
