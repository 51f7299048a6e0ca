"""Slices of the maps of one run: which maps a figure has, in which window, and the figure itself.

A map comes into a figure by a row here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

from precondqsm_bids.numerics.dipole import bounding_box
from precondqsm_bids.numerics.roi_values import label_boxes, surrounding_label
from precondqsm_bids.outputs.canvas import Sheet, enlarge, grey, outline
from precondqsm_bids.outputs.maps import MAPS
from precondqsm_bids.outputs.windows import (
    Limits,
    Window,
    both_ends,
    from_zero,
    of_phase,
    symmetric,
    up_to_the_most,
    usual,
)

Maps = Mapping[str, np.ndarray]

WIDTH, GAP, MOST_HEIGHT, WIDEST = 1080, 6, 840, 380
"""Of a sheet, between its slices, and of a column, pixels."""

ACROSS, DOWN = 8, 3
"""Axial slices of a mosaic."""

SMALL = 1 / 3
"""Part of the window of its neighbours below which a map is shown in a window of its own too."""

OUTLINES = {'shape_mask': (255, 154, 46), 'roi_mask': (63, 208, 255)}
"""Mask and the colour of its outline."""

AXES = (2, 1, 0)
"""Axes that axial, coronal and sagittal planes are across."""

LETTERS = {2: 'LRAP', 1: 'LRSI', 0: 'PASI'}
"""Directions at the left, right, upper and lower border of a plane across an axis."""


# -- what is shown ------------------------------------------------------------------------------


class Panel(NamedTuple):
    """One map in a figure."""

    name: str
    """Of a map in the table of maps, or one of ``EXTRA``."""
    window: Window | Limits
    of: tuple[str, ...] = ()
    """Maps whose values inside the region set the window; the map itself if none is named."""
    second: bool = False
    """Whether it is shown again in a window of its own where it is small in that of the others."""
    everywhere: bool = False
    """Whether it is shown outside the region too."""
    within: str = ''
    """Mask outside of which it is not known, if that is less than the region."""


EXTRA = {
    'difference': ('preconditioned − conventional', 'ppm'),
    'first_magnitude': ('magnitude, first echo', 'arbitrary'),
    'last_magnitude': ('magnitude, last echo', 'arbitrary'),
    'first_phase': ('phase, first echo', 'rad'),
    'last_phase': ('phase, last echo', 'rad'),
}
"""What a figure shows beside maps of the table: title and unit."""

_CHI, _FIELDS = ('precond_chi',), ('total_field', 'flattened_field', 'local_field')
_ECHOES = ('first_magnitude', 'last_magnitude')

PANELS = {
    'comparison': (
        Panel('conventional_chi', symmetric, _CHI),
        Panel('consensus_chi', symmetric, _CHI, within='consensus_mask'),
        Panel('precond_chi', symmetric),
        Panel('difference', symmetric, _CHI, second=True),
    ),
    'prior': (
        Panel('prior_chi', symmetric, _CHI),
        Panel('residual_chi', symmetric, _CHI, second=True),
    ),
    'trust': (
        Panel('precond_chi', symmetric),
        Panel('chi_sd', from_zero),
        Panel('support', (0.0, 1.0)),
    ),
    'fields': (
        Panel('total_field', both_ends, _FIELDS),
        Panel('flattened_field', both_ends, _FIELDS),
        Panel('local_field', both_ends, _FIELDS, second=True),
    ),
    'echoes': (
        Panel('first_magnitude', from_zero, _ECHOES, everywhere=True),
        Panel('last_magnitude', from_zero, _ECHOES, everywhere=True),
        Panel('first_phase', (-np.pi, np.pi), everywhere=True),
        Panel('last_phase', (-np.pi, np.pi), everywhere=True),
    ),
    'quality': (
        Panel('field_sd', usual),
        Panel('misfit', (0.0, 3.0)),
        Panel('usable_echoes', up_to_the_most),
    ),
    'echofit': (Panel('magnitude', from_zero), Panel('r2star', from_zero)),
}
"""``desc`` of a figure of three planes -> its maps, those that a run has."""

MOSAICS = {
    'conventionalmosaic': Panel('conventional_chi', symmetric, _CHI),
    'precondmosaic': Panel('precond_chi', symmetric),
    'priormosaic': Panel('prior_chi', symmetric, _CHI),
    'residualmosaic': Panel('residual_chi', symmetric, _CHI),
    'consensusmosaic': Panel('consensus_chi', symmetric, _CHI, within='consensus_mask'),
    'conventionalriskmosaic': Panel('conventional_risk_chi', symmetric, _CHI),
    'masks': Panel('magnitude', from_zero, everywhere=True),
}
"""``desc`` of a mosaic of slices -> its map; those of susceptibility are shown in one place."""

DRAWN = (
    'precond_chi', 'prior_chi', 'residual_chi', 'total_field', 'flattened_field', 'local_field',
    'magnitude', 'shape_mask', 'roi_mask', 'chi_sd', 'support',
)  # fmt: skip
"""Maps that `draw_maps` needs."""

_ROWS = (*PANELS.values(), tuple(MOSAICS.values()))
DRAWN_IF_KNOWN = tuple(
    name
    for name in dict.fromkeys(
        name for row in _ROWS for panel in row for name in (panel.name, panel.within)
    )
    if name in MAPS and name not in DRAWN
)
"""Maps that it draws where they are there."""


class EchoPlanes(NamedTuple):
    """Phase of some echoes in an axial plane that field and offset do not explain, (X, Y, E)."""

    titles: tuple[str, ...]
    found: np.ndarray
    """rad."""
    left: np.ndarray
    """The same without what was taken off each echo, rad."""


class Slices(NamedTuple):
    """Voxel indices of the planes in a volume that is stored towards right, front, top."""

    sagittal: int
    coronal: int
    axial: int


def choose_slices(chi: np.ndarray, mask: np.ndarray, labels: np.ndarray | None = None) -> Slices:
    """The planes to show: through the label that differs most, or with the strongest sources.

    All are (X, Y, Z) with axes towards right, anterior, superior: susceptibility (ppm), region of
    interest, segmentation.
    """
    if not mask.any():
        return Slices(*(n // 2 for n in chi.shape))
    strength = np.abs(chi - np.median(chi[mask])) * mask
    if labels is not None and (labels > 0).any():
        boxes = label_boxes(labels)
        medium = surrounding_label(labels, boxes)
        means = {
            i: np.mean(strength[box], where=labels[box] == i, dtype=float)
            for i, box in boxes.items()
            if i != medium
        }
        chosen = max(means, key=means.__getitem__)
        box = boxes[chosen]
        # Of a label on both sides, the middle of one of them.
        parts, count = ndimage.label(labels[box] == chosen)
        sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:]
        centre = ndimage.center_of_mass(parts == 1 + np.argmax(sizes))
        return Slices(*(round(c + side.start) for c, side in zip(centre, box, strict=True)))
    return Slices(*(_strongest(strength, mask, axis) for axis in range(3)))


def _strongest(strength: np.ndarray, mask: np.ndarray, axis: int) -> int:
    others = tuple(i for i in range(3) if i != axis)
    # Five slices together, so that one noisy slice does not decide.
    profile = ndimage.uniform_filter1d(strength.sum(axis=others), 5)
    inside = np.flatnonzero(mask.any(axis=others))
    quarter = len(inside) // 4
    middle = inside[quarter : len(inside) - quarter]
    return int(middle[np.argmax(profile[middle])])


class Shown(NamedTuple):
    """A map as it is shown: its voxels, title, grey scale and unit."""

    volume: np.ndarray
    title: str
    limits: Limits
    unit: str
    region: np.ndarray | None
    """Where it is shown; None for everywhere."""
    outlines: Maps = MappingProxyType({})
    """Masks, by names of ``OUTLINES``, whose outlines are drawn on it."""
    factor: float = 1.0
    """From the unit of voxels and limits to that which is shown."""

    @property
    def ends(self) -> tuple[str, str]:
        """What stands at the ends of the grey scale."""
        low, high = (_short(self.factor * end) for end in self.limits)
        return low, high if self.unit in ('1', 'arbitrary') else f'{high} {self.unit}'


def _short(value: float) -> str:
    """Three digits without an exponent where there are few, with a true minus sign.

    >>> _short(-0.00123), _short(28412.0)
    ('−0.00123', '28412')
    """
    text = f'{value:.0f}' if 1e3 <= abs(value) < 1e7 else f'{value:.3g}'
    return text.replace('-', '−')


def draw_maps(
    maps: Maps,
    voxel_size: np.ndarray,
    labels: np.ndarray | None = None,
    hz_per_ppm: float = 1.0,
    echoes: Callable[[int], EchoPlanes] | None = None,
) -> Iterator[tuple[str, Image.Image]]:
    """Figures of the slices of a run: ``desc`` of each, and the figure.

    The maps, (X, Y, Z), are those of ``DRAWN`` (of a run that was stopped before there is a
    susceptibility map, those it has) and, where they are known, of ``DRAWN_IF_KNOWN``
    and ``EXTRA``; fields in ppm, shown in Hz as they are written, axes towards right, anterior,
    superior. Voxels are in mm, labels a segmentation; ``echoes`` makes the phase of the echoes in
    an axial plane, of its index.
    """
    maps = dict(maps)
    if 'conventional_chi' in maps:
        maps['difference'] = maps['precond_chi'] - maps['conventional_chi']
    mask, shape = maps['roi_mask'] > 0, maps['shape_mask'] > 0
    slices = choose_slices(maps.get('precond_chi', maps['prior_chi']), mask, labels)
    around = {everywhere: _View(region, voxel_size, slices)
              for everywhere, region in ((False, mask), (True, shape | mask))}  # fmt: skip
    gather = _Gather(maps, mask, hz_per_ppm)
    axial = np.flatnonzero(mask.any(axis=(0, 1)))
    for desc, panels in PANELS.items():
        shown = [one for panel in panels if panel.name in maps for one in gather.shown(panel)]
        view = around[panels[0].everywhere]
        if shown:  # a single map has room for its planes side by side
            yield desc, view.columns(shown) if shown[1:] else view.mosaic(shown[0], axial[:0])
    for desc, panel in MOSAICS.items():
        if panel.name in maps:
            one = gather.shown(panel)[0]
            if desc == 'masks':
                title = f'{one.title}; orange: object, blue: region of interest'
                one = one._replace(
                    title=title, outlines={name: maps[name] > 0 for name in OUTLINES}
                )
            yield desc, around[panel.everywhere].mosaic(one, axial)
    if echoes is not None:
        planes = echoes(slices.axial)
        yield (
            'echoslices',
            around[False].rows(_of_echoes(planes, mask[:, :, slices.axial]), planes.titles),
        )


def _of_echoes(planes: EchoPlanes, inside: np.ndarray) -> list[Shown]:
    """Rows of the phase of echoes: as found where something was taken off, what is left, and that
    in a window of its own where it is small."""
    wide, own = (of_phase([values[inside]]) for values in (planes.found, planes.left))
    rows = [(planes.found, 'phase that is not linear in the echo time, as found', wide)]
    left = 'left without constant and gradient of each echo'
    if np.allclose(planes.found, planes.left, atol=1e-4):
        rows.clear()
        left = 'phase that is not linear in the echo time; nothing was taken off'
    rows.append((planes.left, left, wide))
    if own[1] < SMALL * wide[1]:
        rows.append((planes.left, f'{left}, own window', own))
    region = np.broadcast_to(inside[..., None], planes.left.shape)
    return [Shown(values, title, window, 'rad', region) for values, title, window in rows]


class _Gather:
    """The maps of a run, and their values inside the region."""

    def __init__(self, maps: Maps, mask: np.ndarray, hz_per_ppm: float):
        self.maps, self.mask, self.hz_per_ppm = maps, mask, hz_per_ppm
        self._inside: dict[str, np.ndarray] = {}
        self._limits: dict[tuple[Window, tuple[str, ...]], Limits] = {}
        box = bounding_box(mask)
        self._box = (*box[::-1],), np.ascontiguousarray(mask[box].T)

    def inside(self, name: str) -> np.ndarray:
        """Values of a map inside the region, in an order that is the same for all."""
        if name not in self._inside:
            box, mask = self._box  # along the memory of files
            self._inside[name] = np.asarray(self.maps[name].T[box][mask], np.float32)
        return self._inside[name]

    def limits(self, window: Window, names: tuple[str, ...]) -> Limits:
        """Limits of a window of some maps; several panels have those of one map."""
        key = window, names
        if key not in self._limits:
            self._limits[key] = window([self.inside(name) for name in names])
        return self._limits[key]

    def shown(self, panel: Panel) -> list[Shown]:
        """A map in its window and, where it is small in it and should be, in its own."""
        row = MAPS.get(panel.name)
        title, unit = (row.words, row.file_unit) if row else EXTRA[panel.name]
        factor = self.hz_per_ppm if row and row.file_unit != row.unit else 1.0
        limits = panel.window
        if callable(limits):
            known = tuple(name for name in panel.of if name in self.maps) or (panel.name,)
            limits = self.limits(limits, known)
        wide = [limits]
        if panel.second and callable(panel.window):
            own = self.limits(panel.window, (panel.name,))
            if own[1] - own[0] < SMALL * (limits[1] - limits[0]):
                wide.append(own)
        titles = (title, f'{title}, own window')
        region = None if panel.everywhere else self.mask
        if panel.within:
            region = self.mask & (self.maps[panel.within] > 0)
        return [
            Shown(self.maps[panel.name], name, window, unit or '', region, factor=factor)
            for name, window in zip(titles, wide, strict=False)
        ]


class _View:
    """Planes of a volume in a frame around the object, in millimetres."""

    def __init__(self, region: np.ndarray, zooms: np.ndarray, slices: Slices):
        self.slices = slices
        extents = [np.flatnonzero(region.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
        if extents[0].size:
            low, high = (np.array([e[end] for e in extents]) for end in (0, -1))
            high = high + 1
        else:
            low, high = np.zeros(3, int), np.array(region.shape)
        margin = np.ceil(0.06 * (high - low)).astype(int)  # room for the letters
        self.low = np.maximum(low - margin, 0)
        self.high = np.minimum(high + margin, region.shape)
        self.size = (self.high - self.low) * zooms

    def plane(self, volume: np.ndarray, axis: int, index: int) -> np.ndarray:
        """A plane as it is looked at: the first row is up, the first column left."""
        window: list[slice | int] = [slice(a, b) for a, b in zip(self.low, self.high, strict=True)]
        window[axis] = index
        return volume[tuple(window)].T[::-1]

    def pixels(self, axis: int, scale: float) -> tuple[int, int]:
        """Columns and rows of a plane across an axis, at a number of pixels to the millimetre."""
        columns, rows = (self.size[i] for i in range(3) if i != axis)
        return max(1, round(columns * scale)), max(1, round(rows * scale))

    def put(
        self,
        sheet: Sheet,
        one: Shown,
        corner: tuple[int, int],
        axis: int,
        index: int,
        scale: float,
    ) -> tuple[int, int, int, int]:
        """Put a plane on a sheet; its box."""
        size = self.pixels(axis, scale)
        levels = grey(self.plane(one.volume, axis, index), one.limits)
        if one.region is not None:
            levels = levels * self.plane(one.region, axis, index)
        picture = enlarge(levels, size)
        if one.outlines:
            picture = np.repeat(picture[..., None], 3, axis=2)
            for name, mask in one.outlines.items():
                picture[outline(self.plane(mask, axis, index), size)] = OUTLINES[name]
        sheet.paste(picture, *corner)
        return (*corner, *size)

    def three(
        self, sheet: Sheet, one: Shown, corners: Sequence[tuple[int, int]], scale: float
    ) -> None:
        """Axial, coronal and sagittal plane, with directions and where they cut each other."""
        at = (np.array(self.slices) + 0.5 - self.low) / (self.high - self.low)
        for axis, corner in zip(AXES, corners, strict=True):
            box = self.put(sheet, one, corner, axis, self.slices[axis], scale)
            column, row = (at[i] for i in range(3) if i != axis)
            sheet.ticks(box, column, 1 - row)
            sheet.letters(box, LETTERS[axis], column, 1 - row)

    def columns(self, shown: Sequence[Shown]) -> Image.Image:
        """Three planes of each map, one map a column."""
        x, y, z = self.size
        width = min(WIDEST, (WIDTH - GAP) // len(shown) - GAP)
        scale = min(width / max(x, y), MOST_HEIGHT / (y + 2 * z))
        heights = [self.pixels(axis, scale)[1] for axis in AXES]
        tops = [28 + sum(heights[:i]) + i * GAP for i in range(3)]
        sheet = Sheet(len(shown) * (width + GAP) + GAP, tops[2] + heights[2] + 34)
        for i, one in enumerate(shown):
            left = GAP + i * (width + GAP)
            corners = [
                (left + (width - self.pixels(axis, scale)[0]) // 2, top)
                for axis, top in zip(AXES, tops, strict=True)
            ]
            self.three(sheet, one, corners, scale)
            sheet.title(left + width / 2, 14, one.title, width)
            sheet.scale(left + width / 2, sheet.image.height - 17, one.ends, width // 3)
        return sheet.image

    def rows(self, shown: Sequence[Shown], titles: Sequence[str]) -> Image.Image:
        """A row of axial planes of each map (X, Y, E), whose columns have titles."""
        width = min(WIDEST, (WIDTH - GAP) // len(titles) - GAP)
        scale = min(width / self.size[0], MOST_HEIGHT / self.size[1] / len(shown))
        columns, rows = self.pixels(2, scale)
        step = 28 + rows + 34
        sheet = Sheet(len(titles) * (width + GAP) + GAP, 28 + len(shown) * step)
        middle = sheet.image.width / 2
        for i, title in enumerate(titles):
            sheet.title(GAP + i * (width + GAP) + width / 2, 14, title, width)
        for j, one in enumerate(shown):
            top = 28 + j * step
            sheet.title(middle, top + 14, one.title, sheet.image.width)
            for i in range(len(titles)):
                left = GAP + i * (width + GAP) + (width - columns) // 2
                box = self.put(sheet, one, (left, top + 28), 2, i, scale)
                if i == 0:
                    sheet.letters(box, LETTERS[2], 0, 0)
            sheet.scale(middle, top + 28 + rows + 17, one.ends, 180)
        return sheet.image

    def mosaic(self, one: Shown, axial: np.ndarray) -> Image.Image:
        """Three planes of a map, and below them slices from the top to the foot.

        ``axial`` are the indices of those that hold a part of the region.
        """
        x, y, z = self.size
        scale = min((WIDTH - 4 * GAP) / (2 * x + y), 0.48 * MOST_HEIGHT / max(y, z))
        widths, heights = zip(*(self.pixels(axis, scale) for axis in AXES), strict=True)
        space = (WIDTH - sum(widths)) // 4
        corners = [((i + 1) * space + sum(widths[:i]), 28) for i in range(3)]
        chosen = axial[::-1]
        if len(chosen) > ACROSS * DOWN:  # without the ends, which touch the border alone
            places = np.linspace(0, len(chosen) - 1, ACROSS * DOWN + 2)[1:-1]
            chosen = chosen[np.rint(places).astype(int)]
        step, below = (WIDTH - GAP) // ACROSS, 28 + max(heights) + GAP
        small = min((step - GAP) / x, 0.24 * MOST_HEIGHT / y)
        columns, rows = self.pixels(2, small)
        height = below + -(-len(chosen) // ACROSS) * (rows + GAP) + 34
        sheet = Sheet(WIDTH, height, coloured=bool(one.outlines))
        self.three(sheet, one, corners, scale)
        for i, index in enumerate(chosen):
            left = GAP + i % ACROSS * step + (step - GAP - columns) // 2
            corner = left, below + i // ACROSS * (rows + GAP)
            self.put(sheet, one, corner, 2, int(index), small)
            sheet.text(corner[0] + 4, corner[1] + 4, str(index), 'lt')
        sheet.title(WIDTH / 2, 14, one.title, WIDTH)
        sheet.scale(WIDTH / 2, height - 17, one.ends, 240)
        return sheet.image
