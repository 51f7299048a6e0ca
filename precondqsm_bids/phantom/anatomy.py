"""Where the tissues of the head phantom lie.

Grey and white matter, CSF and the outline of the brain are those of the ICBM 152 template (Fonov
et al., NeuroImage 2011;54:313), which ships with nilearn at 1 mm. The template is stripped of
skull and scalp, so that everything around the brain is built from distances to it (CSF, bone,
scalp) and from ellipsoids and capsules: face, eyes, air spaces, neck with spine. The deep nuclei,
which the template's maps of grey and white matter hardly show, are ellipsoids too, at the places
and of the sizes that atlases give them (Rolls et al., NeuroImage 2020;206:116189; dentate:
Dimitrova et al., NeuroImage 2006;30:12).

Coordinates are those of the template, mm: right, anterior, superior. Arrays of the coarse maps
have the axes (z, x, y), so that a plane across z is contiguous.
"""

from functools import cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from scipy import ndimage, sparse

from precondqsm_bids.phantom.tissues import INDEX

CSF_THICKNESS, SKULL_DEPTH, SCALP_DEPTH = 2.5, 8.0, 14.0
"""CSF around the brain, and depths of the outer faces of skull and scalp over its hull, mm."""

CSF_SHARE = 0.3
"""Share of CSF in the template from which a point is CSF: in the mean of 152 brains sulci are
narrow and half full of grey matter, which by majority would fill them."""

HULL_CLOSING, HULL_SMOOTHING = 20.0, 5.0
"""Radius of the ball that closes the brain to its hull, and standard deviation of the smoothing of
the distance to it, mm: the skull does not follow the folds."""

OBJECT_SEED = 20210526
"""Of texture, air cells and small vessels: there is one head, whatever the noise."""

DOMAIN = ((-104.0, 104.0), (-146.0, 122.0), (-168.0, 118.0))
"""Extent of the coarse maps along x, y and z, mm."""


class Ellipsoid(NamedTuple):
    """An ellipsoid, turned about the z axis and then about the x axis."""

    centre: tuple[float, float, float]
    """mm."""
    semi: tuple[float, float, float]
    """Semi-axes, mm."""
    about_z: float = 0.0
    """Degrees, anticlockwise as seen from above."""
    about_x: float = 0.0
    """Degrees, the front upwards."""

    @property
    def reach(self):
        """Extent from the centre along each axis, mm."""
        return (max(self.semi),) * 3 if self.about_z or self.about_x else self.semi

    def inside(self, x, y, z):
        """Whether points are inside; coordinates in mm, broadcast together."""
        x, y, z = (a - c for a, c in zip((x, y, z), self.centre, strict=True))
        if self.about_x:
            cos, sin = np.cos(np.radians(self.about_x)), np.sin(np.radians(self.about_x))
            y, z = cos * y + sin * z, cos * z - sin * y
        if self.about_z:
            cos, sin = np.cos(np.radians(self.about_z)), np.sin(np.radians(self.about_z))
            x, y = cos * x + sin * y, cos * y - sin * x
        return sum((a / s) ** 2 for a, s in zip((x, y, z), self.semi, strict=True)) <= 1

    def shrunk(self, depth):
        """The same with every semi-axis less by ``depth`` (mm)."""
        return self._replace(semi=tuple(length - depth for length in self.semi))

    def mirrored(self):
        """The same on the other side of the head."""
        x, y, z = self.centre
        return self._replace(centre=(-x, y, z), about_z=-self.about_z)


class Capsule(NamedTuple):
    """All points nearer than a radius to a line."""

    start: tuple[float, float, float]
    end: tuple[float, float, float]
    radius: float
    """mm."""

    @property
    def centre(self):
        """Middle of the line, mm."""
        return tuple((a + b) / 2 for a, b in zip(self.start, self.end, strict=True))

    @property
    def reach(self):
        """Extent from the centre along each axis, mm."""
        return tuple(
            abs(a - b) / 2 + self.radius for a, b in zip(self.start, self.end, strict=True)
        )

    def inside(self, x, y, z):
        """Whether points are inside; coordinates in mm, broadcast together."""
        start = np.array(self.start)
        line = np.array(self.end) - start
        x, y, z = x - start[0], y - start[1], z - start[2]
        along = (x * line[0] + y * line[1] + z * line[2]) / (line @ line)
        along = np.clip(along, 0, 1)
        distance = sum((a - along * b) ** 2 for a, b in zip((x, y, z), line, strict=True))
        return distance <= self.radius**2

    def shrunk(self, depth):
        """The same with a radius less by ``depth`` (mm)."""
        return self._replace(radius=self.radius - depth)

    def mirrored(self):
        """The same on the other side of the head."""
        ends = ((-x, y, z) for x, y, z in (self.start, self.end))
        return Capsule(*ends, self.radius)


def both_sides(*shapes):
    """The shapes and their mirror images."""
    return (*shapes, *(shape.mirrored() for shape in shapes))


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


def _polyline(radius, *points):
    return tuple(Capsule(a, b, radius) for a, b in pairwise(points))


LARGE_VEINS = (
    *both_sides(
        *_polyline(0.9, (3, 20, 8), (3, 4, 14), (2, -12, 15), (1.5, -30, 13), (0, -42, 8)),
        *_polyline(0.9, (22, 4, -18), (17, -14, -14), (14, -28, -6), (0, -42, 6)),
        *_polyline(1.0, (30, -30, 66), (18, -26, 72), (3, -18, 76)),
    ),
    *_polyline(1.8, (0, -42, 8), (0, -58, 4), (0, -78, -6)),
)
"""Internal cerebral, basal and cortical veins; great vein and straight sinus."""

SAGITTAL_SINUS = _polyline(
    3.5, (0, 74, 10), (0, 62, 38), (0, 42, 58), (0, 20, 71), (0, -3, 78), (0, -28, 82),
    (0, -53, 77), (0, -77, 62), (0, -93, 38), (0, -106, 10),
)  # fmt: skip
"""Superior sagittal sinus, where the head has flow: from front to back under the skull."""

WIDEST = 3.5
"""Radius of the vein in which the blood is fastest, mm."""

SKIN, FAT_DEPTH = 1.5, 5.0
"""Depths between which soft tissue is fat, where the head has fat, mm."""

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


class Map(NamedTuple):
    """A coarse map, with axes (z, x, y), to be interpolated."""

    values: np.ndarray
    origin: tuple[float, float, float]
    """Coordinates (x, y, z) of its first point, mm."""
    spacing: float
    """mm."""


class Atlas(NamedTuple):
    """The coarse maps that the head is made from."""

    gm: Map
    """Grey matter of the template, 0 to 1."""
    wm: Map
    """White matter of the template, 0 to 1."""
    brain: Map
    """Outline of the brain: inside where it is 0.5 or more."""
    from_brain: Map
    """Distance to the brain, mm, 0 inside."""
    from_hull: Map
    """Distance to the hull of the brain, mm, negative inside."""


@cache
def load_atlas():
    """Load the template and measure the distances; kept for the next head.

    Returns
    -------
    Atlas

    Raises
    ------
    FileNotFoundError
        nilearn no longer ships the template.
    """
    gm, wm, t1 = (_template(name) for name in ('gm', 'wm', 't1'))
    solid = ndimage.binary_fill_holes(t1.values > 0)
    brain = t1._replace(values=ndimage.gaussian_filter(solid.astype(np.float32), 0.7))
    coarse = _resampled(brain, 2.0) >= 0.5
    outside = _distance(~coarse)
    closed = outside <= HULL_CLOSING
    hull = (_distance(closed) > HULL_CLOSING) | coarse
    signed = _distance(~hull) - _distance(hull)
    origin = tuple(low for low, _ in DOMAIN)
    from_brain, from_hull = (
        Map(ndimage.gaussian_filter(distance, smoothing / 2.0), origin, 2.0)
        for distance, smoothing in ((outside, 2.0), (signed, HULL_SMOOTHING))
    )
    scaled = (m._replace(values=m.values.astype(np.float32) / 255) for m in (gm, wm))
    return Atlas(*scaled, brain, from_brain, from_hull)


def _template(name):
    from importlib.util import find_spec
    from pathlib import Path

    import nibabel as nib

    # found, not imported: nilearn loads scikit-learn and more, and the file is all that is needed
    folder = Path(find_spec('nilearn').origin).parent / 'datasets' / 'data'
    path = folder / f'mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz'
    if not path.exists():
        raise FileNotFoundError(
            f'{path} is missing: the head phantom is made from the template that nilearn ships; '
            'install the version of nilearn that niworkflows asks for'
        )
    image = nib.load(path)
    values = np.asanyarray(image.dataobj).transpose(2, 0, 1)
    return Map(np.ascontiguousarray(values), tuple(image.affine[:3, 3]), float(image.affine[0, 0]))


def _distance(mask):
    """Distance to the nearest point where the mask is false, mm, on the grid of 2 mm."""
    return ndimage.distance_transform_edt(mask, sampling=2.0).astype(np.float32)


def _resampled(source, spacing):
    """A map on the whole domain at another spacing (mm), 0 where it is not defined."""
    x, y, z = (np.arange(low, high + spacing / 2, spacing) for low, high in DOMAIN)
    planes = Planes(source, x, y)
    return np.stack([planes.at(height) for height in z])


@cache
def texture(number, size):
    """A smooth random map of mean 0 and standard deviation 1.

    Parameters
    ----------
    number : int
        Which one: another number is another texture.
    size : float
        Standard deviation of the smoothing, mm.

    Returns
    -------
    Map
    """
    rng = np.random.default_rng([OBJECT_SEED, number])
    shape = [int((high - low) / 2) + 1 for low, high in (DOMAIN[2], DOMAIN[0], DOMAIN[1])]
    values = ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), size / 2.0)
    return Map(values / values.std(), tuple(low for low, _ in DOMAIN), 2.0)


def linear_weights(points, origin, spacing, number):
    """Matrix of linear interpolation along one axis; 0 beyond the ends.

    Parameters
    ----------
    points : (N,) ndarray
        Where to, mm.
    origin, spacing : float
        Of the samples, mm.
    number : int
        Of samples, M.

    Returns
    -------
    (N, M) sparse array of float32

    Examples
    --------
    >>> linear_weights(np.array([0.5, 9.0]), 0.0, 2.0, 2).toarray()
    array([[0.75, 0.25],
           [0.  , 0.  ]], dtype=float32)
    """
    position = (np.asarray(points) - origin) / spacing
    inside = (position >= 0) & (position <= number - 1)
    rows = np.flatnonzero(inside)
    position = position[inside]
    left = np.minimum(position.astype(int), number - 2)
    right = (position - left).astype(np.float32)
    values = np.concatenate([1 - right, right])
    columns = np.concatenate([left, left + 1])
    shape = len(points), number
    return sparse.csr_array((values, (np.tile(rows, 2), columns)), shape=shape)


class Planes:
    """Linear interpolation of a map to the planes of a finer grid.

    Parameters
    ----------
    source : Map
        What to interpolate.
    x, y : ndarray
        Coordinates of the points of the planes, mm.
    beyond : float
        Value where the map is not defined.
    """

    def __init__(self, source, x, y, beyond=0.0):
        self._source, self._beyond = source, np.float32(beyond)
        n_z, n_x, n_y = source.values.shape
        self._n_z = n_z
        self._to_x = linear_weights(x, source.origin[0], source.spacing, n_x)
        self._to_y = linear_weights(y, source.origin[1], source.spacing, n_y)
        self._defined = np.outer(self._to_x.sum(axis=1) > 0, self._to_y.sum(axis=1) > 0)

    def at(self, z):
        """The plane at height ``z`` (mm), (X, Y) ndarray of float32."""
        values, origin, spacing = self._source
        along = linear_weights(np.array([z]), origin[2], spacing, self._n_z)
        if not along.nnz:
            return np.full(self._defined.shape, self._beyond)
        plane = np.zeros(values.shape[1:], np.float32)
        for k, weight in zip(along.indices, along.data, strict=True):
            plane += weight * values[k]
        fine = (self._to_y @ (self._to_x @ plane).T).T
        if self._beyond:
            fine[~self._defined] = self._beyond
        return fine


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
