"""Parts of the head phantom that the template does not have.

Coordinates are those of the template, mm: right, anterior, superior. The deep nuclei are at the
places and of the sizes that atlases give them (Rolls et al., NeuroImage 2020;206:116189; dentate:
Dimitrova et al., NeuroImage 2006;30:12).
"""

import numpy as np

from precondqsm_bids.phantom.shapes import Capsule, Ellipsoid, both_sides, polyline

OBJECT_SEED = 20210526
"""Of texture, air cells and small vessels: there is one head, whatever the noise."""

PALLIDUM = both_sides(Ellipsoid((19.5, -4, -1), (4.8, 10, 6), 20))
NUCLEI = (
    (
        'caudate',
        both_sides(
            Ellipsoid((12.8, 13.5, 4), (5.4, 10.5, 9.5)),
            Ellipsoid((15.5, 0, 17.5), (3.5, 13, 4.5), 15, -12),
            Ellipsoid((21, -18, 18), (2.5, 11, 2.8), 20, -10),
        ),
    ),
    ('putamen', both_sides(Ellipsoid((26.5, 2, 1), (5.8, 17, 11), 10))),
    ('pallidum', PALLIDUM),
    ('thalamus', both_sides(Ellipsoid((12, -18, 7), (8.5, 14.5, 8.8), 25))),
    ('red-nucleus', both_sides(Ellipsoid((5, -20.5, -9), (3.4, 3.6, 4.6)))),
    ('substantia-nigra', both_sides(Ellipsoid((10, -17.5, -12), (6.5, 3.0, 5.0), -35, 30))),
)
DENTATE = both_sides(Ellipsoid((16, -57, -35), (9, 8, 6.5), -25, 0))
DENTATE_CORE = both_sides(Ellipsoid((14.5, -55, -35), (6.3, 5.4, 4.0), -25, 0))
"""The dentate is a shell around white matter, open towards the midline."""

BRAINSTEM = (
    Ellipsoid((0, -26, -32), (17, 14, 18), 0, -15),
    Ellipsoid((0, -38, -54), (10, 9, 16), 0, -15),
)
"""Where the template's maps of grey and white matter are a tie: white."""

FACE = (
    Ellipsoid((0, 28, -52), (64, 64, 70)),
    Ellipsoid((0, 92, -48), (15, 16, 24), 0, -15),
    Ellipsoid((0, 72, -2), (46, 22, 26)),
)
NECK = (
    Capsule((0, -38, -60), (0, -30, -104), 56.0),
    Ellipsoid((0, -30, -104), (58, 60, 58)),
)
BROW = Ellipsoid((0, 72, -2), (40, 17, 21))
EYES = both_sides(Ellipsoid((32, 70, -30), (12, 12, 12)))
AIRWAYS = (
    *both_sides(
        Ellipsoid((11, 82, 3), (9, 4.5, 10)),  # frontal sinus
        Ellipsoid((7.5, 58, -31), (5.5, 17, 9)),  # ethmoid cells
        Ellipsoid((6.5, 64, -56), (5, 28, 14)),  # nasal cavity, beside the septum
        Ellipsoid((8, 21, -39), (7.5, 11, 9)),  # sphenoid sinus
        Ellipsoid((26, 57, -60), (13, 16, 14)),  # maxillary sinus
        Capsule((92, -20, -46), (50, -22, -43), 3.5),  # ear canal
        Ellipsoid((46, -24, -42), (5, 5, 6)),  # middle ear
    ),
    Ellipsoid((0, 26, -62), (9, 10, 14)),  # nasopharynx
    Capsule((0, 22, -66), (0, 12, -150), 8.0),  # pharynx and trachea
)
MASTOID = both_sides(Ellipsoid((54, -42, -46), (9, 13, 13)))
"""Air in cells between walls of bone."""

PETROUS = both_sides(Ellipsoid((48, -30, -42), (26, 18, 13)))
FACIAL_BONES = (
    *both_sides(
        Ellipsoid((26, 57, -60), (15.5, 18.5, 16.5)),  # around the maxillary sinus
        Ellipsoid((9, 22, -39), (13, 16, 13)),  # sphenoid
    ),
    Ellipsoid((0, 60, -32), (15, 20, 11)),  # ethmoid
)
SPINE = Capsule((0, -24, -80), (0, -24, -150), 12.0)
SPINAL_CANAL = Capsule((0, -46, -62), (0, -46, -150), 9.0)
SPINAL_CORD = Capsule((0, -46, -60), (0, -46, -150), 5.0)
VERTEBRAL_ARCH = Capsule((0, -46, -80), (0, -46, -150), 14.0)

LARGE_VEINS = (
    *both_sides(
        *polyline(0.9, (3, 20, 8), (3, 4, 14), (2, -12, 15), (1.5, -30, 13), (0, -42, 8)),
        *polyline(0.9, (22, 4, -18), (17, -14, -14), (14, -28, -6), (0, -42, 6)),
        *polyline(1.0, (30, -30, 66), (18, -26, 72), (3, -18, 76)),
    ),
    *polyline(1.8, (0, -42, 8), (0, -58, 4), (0, -78, -6)),
)
"""Internal cerebral, basal and cortical veins; great vein and straight sinus."""

SAGITTAL_SINUS = polyline(
    3.5, (0, 74, 10), (0, 62, 38), (0, 42, 58), (0, 20, 71), (0, -3, 78), (0, -28, 82),
    (0, -53, 77), (0, -77, 62), (0, -93, 38), (0, -106, 10),
)  # fmt: skip
"""Superior sagittal sinus, where the head has flow: from front to back under the skull."""

BOTTLE = ((72.0, 84.0), 14.0, (-25.0, 55.0))
"""Axis (x, y), radius and extent along z of the bottle beside the head, mm: 10 mm off the face."""

MICROBLEEDS = (
    Ellipsoid((38, -8, 26), (2.5, 2.5, 2.5)),
    Ellipsoid((-34, -42, 28), (2.0, 2.0, 2.0)),
    Ellipsoid((-28, 30, 18), (3.0, 3.0, 3.0)),
    Ellipsoid((40, -58, 6), (2.2, 2.2, 2.2)),
    Ellipsoid((-46, -18, -18), (2.5, 2.5, 2.5)),
    Ellipsoid((24, 36, -8), (2.0, 2.0, 2.0)),
    Ellipsoid((-18, -62, -44), (2.5, 2.5, 2.5)),
)
CALCIFICATIONS = (
    Ellipsoid((0, -34, 3), (2.6, 3.0, 2.6)),  # pineal gland
    Ellipsoid((-36, 6, 30), (2.5, 2.5, 2.5)),
    Ellipsoid((30, -66, 22), (3.0, 3.0, 3.0)),
    Ellipsoid((44, 14, -14), (2.2, 2.2, 2.2)),
    Ellipsoid((-26, -30, 46), (2.5, 2.5, 2.5)),
)
ONLY_R2 = (
    (Ellipsoid((28, 22, 24), (7, 9, 6)), 8.0),
    (Ellipsoid((-30, -52, 22), (6, 9, 7)), -5.0),
    (Ellipsoid((-26, 12, 32), (6, 6, 6)), 8.0),
    (Ellipsoid((36, -36, -6), (5, 9, 5)), -5.0),
)
"""Where R2 differs, 1/s, and susceptibility does not."""
ONLY_CHI = (
    (Ellipsoid((-28, -16, 36), (7, 9, 6)), 0.05),
    (Ellipsoid((30, -48, 30), (6, 8, 7)), -0.05),
    (Ellipsoid((24, 4, 40), (6, 7, 5)), 0.05),
    (Ellipsoid((-36, -34, -4), (5, 9, 5)), -0.05),
)
"""Where susceptibility differs, ppm, and R2* does not."""


def medullary_veins():
    """Small veins of the white matter, straight lines away from the ventricles.

    Returns
    -------
    tuple of Capsule
        40 of 0.4 to 0.7 mm radius.
    """
    rng = np.random.default_rng([OBJECT_SEED, 9])
    veins = []
    for _ in range(40):
        turn, lift = rng.uniform(0, 2 * np.pi), rng.uniform(0.1, 1.2)
        out = np.array([np.cos(turn) * np.cos(lift), np.sin(turn) * np.cos(lift), np.sin(lift)])
        start = np.array([0.0, -12, 16]) + out * [24, 38, 12]
        end = start + rng.uniform(10, 22) * out
        veins.append(Capsule(tuple(start), tuple(end), rng.uniform(0.4, 0.7)))
    return tuple(veins)
