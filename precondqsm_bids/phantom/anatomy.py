"""Where the tissues of the head phantom lie.

Grey and white matter, CSF and the outline of the brain are those of the ICBM 152 template (Fonov
et al., NeuroImage 2011;54:313), which ships with nilearn at 1 mm. The template is stripped of
skull and scalp, so that everything around the brain is built from distances to it (CSF, bone,
scalp) and from ellipsoids and capsules: face, eyes, air spaces, neck with spine. The deep nuclei,
which the template's maps of grey and white matter hardly show, are ellipsoids too.
"""

import numpy as np

from precondqsm_bids.phantom.atlas import Planes, load_atlas, texture
from precondqsm_bids.phantom.head_parts import (
    AIRWAYS,
    BOTTLE,
    BRAINSTEM,
    BROW,
    CALCIFICATIONS,
    DENTATE,
    DENTATE_CORE,
    EYES,
    FACE,
    FACIAL_BONES,
    LARGE_VEINS,
    MASTOID,
    MICROBLEEDS,
    NECK,
    NUCLEI,
    PETROUS,
    SAGITTAL_SINUS,
    SPINAL_CANAL,
    SPINAL_CORD,
    SPINE,
    VERTEBRAL_ARCH,
    medullary_veins,
)
from precondqsm_bids.phantom.tissues import INDEX

CSF_THICKNESS, SKULL_DEPTH, SCALP_DEPTH = 2.5, 8.0, 14.0
"""CSF around the brain, and depths of the outer faces of skull and scalp over its hull, mm."""

CSF_SHARE = 0.3
"""Share of CSF in the template from which a point is CSF: in the mean of 152 brains sulci are
narrow and half full of grey matter, which by majority would fill them."""

WIDEST = 3.5
"""Radius of the vein in which the blood is fastest, mm."""

SKIN, FAT_DEPTH = 1.5, 5.0
"""Depths between which soft tissue is fat, where the head has fat, mm."""


class Anatomy:
    """The tissues on the planes of a fine grid.

    Parameters
    ----------
    x, y : ndarray
        Coordinates of the points of the planes, mm.
    hard : bool
        Whether veins, microbleeds and calcifications are there.
    fat, flow, bottle : bool
        Whether there is fat under the skin, large veins (with the sagittal sinus), and a bottle
        beside the head.
    """

    def __init__(self, x, y, hard=False, *, fat=False, flow=False, bottle=False):
        self.x, self.y = x, y
        self._fat, self._bottle = fat, bottle
        self._flowing = (*SAGITTAL_SINUS, *LARGE_VEINS) if flow else ()
        atlas = load_atlas()
        self._maps = {
            # far from the head where distances are not known: the grid may reach further
            name: Planes(source, x, y, 1e3 if name.startswith('from') else 0.0)
            for name, source in atlas._asdict().items()
        }
        self._cells = Planes(texture(5, 2.0), x, y)
        self._veins = (*LARGE_VEINS, *medullary_veins()) if hard else self._flowing
        self._bleeds, self._calcified = (MICROBLEEDS, CALCIFICATIONS) if hard else ((), ())

    def plane(self, z):
        """Tissues of a plane.

        Parameters
        ----------
        z : float
            Its height, mm.

        Returns
        -------
        tissue : (X, Y) ndarray of int8
            Indices of `precondqsm_bids.phantom.tissues.TISSUES`.
        brain : (X, Y) ndarray of bool
            Inside the outline of the brain.
        """
        maps = {name: planes.at(z) for name, planes in self._maps.items()}
        brain = maps['brain'] >= 0.5
        tissue = self._around(z, maps['from_brain'], maps['from_hull'])
        self._fill_brain(tissue, brain, maps['gm'], maps['wm'], z)
        self._add_hidden(tissue, brain, z)
        if self._fat:
            layer = self._within(maps['from_hull'], SKIN, z)
            layer &= ~self._within(maps['from_hull'], FAT_DEPTH, z)
            tissue[layer & (tissue == INDEX['soft-tissue'])] = INDEX['fat']
        (x, y), radius, (low, high) = BOTTLE
        if self._bottle and low <= z <= high:
            inside = np.hypot(self.x[:, None] - x, self.y[None] - y) <= radius
            tissue[inside] = INDEX['bottle']
        return tissue, brain

    def _within(self, hull, depth, z):
        """Where a plane lies deeper than ``depth`` (mm) under the surface of the head."""
        inside = hull < SCALP_DEPTH - depth
        self.mark(inside, [shape.shrunk(depth) for shape in (*FACE, *NECK)], z)
        return inside

    def velocity(self, tissue, z):
        """Velocity of the blood in a plane, (3, X, Y) ndarray, relative to the fastest.

        In proportion to the radius of the vein, and along it.
        """
        velocity = np.zeros((3, *tissue.shape), np.float32)
        for vein in self._flowing:
            if abs(z - vein.centre[2]) > vein.reach[2]:
                continue
            inside = np.zeros(tissue.shape, bool)
            self.mark(inside, (vein,), z)
            line = np.subtract(vein.end, vein.start)
            along = line / np.linalg.norm(line) * vein.radius / WIDEST
            velocity[:, inside & (tissue == INDEX['vein'])] = along[:, None]
        return velocity

    def _around(self, z, near, hull):
        """Head without brain: scalp, face, neck, bone, air, CSF."""
        soft = hull < SCALP_DEPTH
        self.mark(soft, (*FACE, *NECK), z)
        tissue = np.where(soft, INDEX['soft-tissue'], INDEX['air']).astype(np.int8)
        bone = hull < SKULL_DEPTH
        self.mark(bone, (BROW, *PETROUS, *FACIAL_BONES, SPINE, VERTEBRAL_ARCH), z)
        tissue[bone & soft] = INDEX['bone']
        self.mark(tissue, EYES, z, INDEX['eye'])
        air = np.zeros(soft.shape, bool)
        self.mark(air, MASTOID, z)
        if air.any():
            air &= self._cells.at(z) > -0.2
        self.mark(air, AIRWAYS, z)
        # a wall of bone stays between air and the CSF around the brain
        tissue[air & soft & (near > CSF_THICKNESS + 1.5)] = INDEX['air-cavity']
        fluid = near <= CSF_THICKNESS
        self.mark(fluid, (SPINAL_CANAL,), z)
        tissue[fluid] = INDEX['CSF']
        if self._flowing:
            self.mark(tissue, SAGITTAL_SINUS, z, INDEX['vein'])
        self.mark(tissue, (SPINAL_CORD,), z, INDEX['WM'])
        return tissue

    def _fill_brain(self, tissue, brain, gm, wm, z):
        if not brain.any():
            return
        csf = np.clip(1 - gm - wm, 0, 1)
        stem = np.zeros(brain.shape, bool)
        self.mark(stem, BRAINSTEM, z)
        inner = np.where((gm > wm) & ~stem, INDEX['GM'], INDEX['WM'])
        inner[csf > np.where(stem, 0.5, CSF_SHARE)] = INDEX['CSF']
        tissue[brain] = inner[brain]
        solid = brain & (inner != INDEX['CSF'])
        for name, shapes in (*NUCLEI, ('dentate', DENTATE), ('WM', DENTATE_CORE)):
            nucleus = np.zeros(brain.shape, bool)
            self.mark(nucleus, shapes, z)
            tissue[nucleus & solid] = INDEX[name]

    def _add_hidden(self, tissue, brain, z):
        if not brain.any():
            return
        for name, shapes in (
            ('vein', self._veins),
            ('microbleed', self._bleeds),
            ('calcification', self._calcified),
        ):
            here = np.zeros(brain.shape, bool)
            self.mark(here, shapes, z)
            tissue[here & brain] = INDEX[name]

    def mark(self, image, shapes, z, value=True):
        """Set a plane to ``value`` inside any of the shapes.

        Parameters
        ----------
        image : (X, Y) ndarray
            Changed in place.
        shapes : iterable of Ellipsoid or Capsule
            Shapes.
        z : float
            Height of the plane, mm.
        value : scalar
            What to write; a number is added where the image holds floats.
        """
        for shape in shapes:
            (cx, cy, cz), (rx, ry, rz) = shape.centre, shape.reach
            if abs(z - cz) > rz:
                continue
            i = slice(*np.searchsorted(self.x, (cx - rx, cx + rx)))
            j = slice(*np.searchsorted(self.y, (cy - ry, cy + ry)))
            inside = shape.inside(self.x[i, None], self.y[None, j], z)
            if image.dtype.kind == 'f':
                image[i, j] += value * inside
            else:
                image[i, j][inside] = value
