"""Cross-sections of the maps of one run, as figures.

All figures are drawn straight with matplotlib, without pyplot, so that no display and no global
state is involved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from scipy import ndimage

from precondqsm_bids.numerics.roi_values import surrounding_label

DRAWN = (
    'precond_chi', 'prior_chi', 'residual_chi', 'total_field', 'flattened_field', 'local_field',
    'magnitude', 'shape_mask', 'roi_mask', 'chi_sd', 'support',
)  # fmt: skip
"""Maps that `draw_maps` needs."""

DRAWN_IF_KNOWN = (
    'conventional_chi', 'consensus_chi', 'consensus_mask', 'r2star', 'field_sd', 'misfit',
    'usable_echoes',
)  # fmt: skip
"""Maps that it draws where they are there."""

Maps = Mapping[str, np.ndarray]
Limits = tuple[float, float]


class Slices(NamedTuple):
    """Voxel indices of the two planes in a volume that is stored towards right, front, top."""

    coronal: int
    axial: int


def choose_slices(chi: np.ndarray, mask: np.ndarray, labels: np.ndarray | None = None) -> Slices:
    """The planes to show; see ``_SLICES`` for the rule in words.

    All are (X, Y, Z) with axes towards right, anterior, superior: susceptibility (ppm), region of
    interest, segmentation.
    """
    if not mask.any():
        return Slices(chi.shape[1] // 2, chi.shape[2] // 2)
    strength = np.abs(chi - np.median(chi[mask])) * mask
    if labels is not None and (labels > 0).any():
        medium = surrounding_label(labels)
        indices = [i for i in np.unique(labels) if i > 0 and i != medium]
        means = ndimage.mean(strength, labels, indices)
        centre = ndimage.center_of_mass(labels == indices[int(np.argmax(means))])
        return Slices(round(centre[1]), round(centre[2]))
    return Slices(*(_strongest(strength, mask, axis) for axis in (1, 2)))


def _strongest(strength: np.ndarray, mask: np.ndarray, axis: int) -> int:
    others = tuple(i for i in range(3) if i != axis)
    # Five slices together, so that one noisy slice does not decide.
    profile = ndimage.uniform_filter1d(strength.sum(axis=others), 5)
    inside = np.flatnonzero(mask.any(axis=others))
    quarter = len(inside) // 4
    middle = inside[quarter : len(inside) - quarter]
    return int(middle[np.argmax(profile[middle])])


class Panel(NamedTuple):
    """The two planes of a map in a figure, and its grey scale."""

    title: str
    planes: list[np.ndarray]
    limits: Limits
    unit: str


def draw_maps(
    maps: Maps, voxel_size: np.ndarray, labels: np.ndarray | None = None
) -> Iterator[tuple[str, Figure]]:
    """Coronal and axial planes of the maps of a run: name of each figure, and the figure.

    The maps, (X, Y, Z), are those of ``DRAWN`` and, where they are known, of ``DRAWN_IF_KNOWN``;
    fields in ppm, axes towards right, anterior, superior. Voxels are in mm, labels a segmentation.
    """
    mask, shape = maps['roi_mask'] > 0, maps['shape_mask'] > 0
    view = _View(shape | mask, voxel_size, choose_slices(maps['precond_chi'], mask, labels))
    regions = view.planes(mask)

    def panel(title: str, name: str, limits: Limits | Callable, unit: str = 'ppm') -> Panel:
        planes = _masked(view.planes(maps[name]), regions)
        return Panel(title, planes, limits(maps[name][mask]) if callable(limits) else limits, unit)

    precond = panel('preconditioned', 'precond_chi', _symmetric)
    panels = [precond]
    if 'conventional_chi' in maps:
        conventional = panel('conventional', 'conventional_chi', precond.limits)
        limits = _symmetric(maps['precond_chi'][mask] - maps['conventional_chi'][mask])
        pairs = zip(precond.planes, conventional.planes, strict=True)
        difference = Panel('difference', [a - b for a, b in pairs], limits, 'ppm')
        panels = [conventional, precond, difference]
    if 'consensus_chi' in maps:
        known = view.planes(maps['consensus_mask'] > 0)
        planes = _masked(view.planes(maps['consensus_chi']), known)
        consensus = Panel('consensus', planes, precond.limits, 'ppm')
        panels.insert(int('conventional_chi' in maps), consensus)  # left of the preconditioned
    yield 'comparison', view.draw(panels)
    prior = panel('prior', 'prior_chi', precond.limits)
    yield 'prior', view.draw([prior, panel('residual', 'residual_chi', _symmetric)])
    trusted = [
        precond,
        panel('standard deviation', 'chi_sd', _from_zero),
        panel('support by the field', 'support', (0.0, 1.0), 'fraction'),
    ]
    yield 'trust', view.draw(trusted)
    fields = [
        panel('total field', 'total_field', _percentiles),
        panel('flattened field', 'flattened_field', _percentiles),
        panel('local field', 'local_field', partial(_symmetric, percentile=99)),
    ]
    yield 'fields', view.draw(fields)
    bright = maps['magnitude']
    limits = _from_zero(bright[shape])
    panels = [Panel('magnitude', view.planes(bright), limits, 'arbitrary unit')]
    yield 'masks', view.draw(panels, contours=(view.planes(shape), regions))
    if 'r2star' in maps:
        panels.append(panel('R2*', 'r2star', _from_zero, '1/s'))
    yield 'echofit', view.draw(panels)
    quality = [
        panel(title, name, limits, unit)
        for name, (title, limits, unit) in QUALITY.items()
        if name in maps
    ]
    if quality:
        yield 'quality', view.draw(quality)


def _masked(planes: Sequence[np.ndarray], regions: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [np.where(own, plane, np.nan) for plane, own in zip(planes, regions, strict=True)]


class _View:
    """Two planes of a volume in a frame around the object, in millimetres."""

    def __init__(self, region: np.ndarray, zooms: np.ndarray, slices: Slices):
        self.zooms, self.slices = zooms, slices
        extents = [np.flatnonzero(region.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
        if extents[0].size:
            low, high = (np.array([e[end] for e in extents]) for end in (0, -1))
            high = high + 1
        else:
            low, high = np.zeros(3, int), np.array(region.shape)
        margin = np.ceil(0.07 * (high - low)).astype(int)  # room for the letters
        low, high = np.maximum(low - margin, 0), np.minimum(high + margin, region.shape)
        self.low, self.window = low, tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        self.size = (high - low) * zooms

    def planes(self, volume: np.ndarray) -> list[np.ndarray]:
        x, y, z = self.window
        return [volume[x, self.slices.coronal, z].T, volume[x, y, self.slices.axial].T]

    def draw(
        self,
        panels: Sequence[Panel],
        contours: tuple[list[np.ndarray], list[np.ndarray]] | None = None,
    ) -> Figure:
        width = 3.1
        heights = width * self.size[[2, 1]] / self.size[0]
        # Very tall or flat objects would make a page of their own.
        heights = heights * min(1.0, 9 / heights.sum())
        figure = Figure(figsize=(width * len(panels) + 0.4, heights.sum() + 1.3))
        grid = figure.subplots(
            2, len(panels), squeeze=False,
            gridspec_kw={
                'height_ratios': heights, 'hspace': 0.03, 'wspace': 0.05, 'left': 0.01,
                'right': 0.99, 'top': 1 - 0.45 / figure.get_figheight(),
                'bottom': 0.85 / figure.get_figheight(),
            },
        )  # fmt: skip
        cross = (np.array([self.slices.coronal, self.slices.axial]) - self.low[1:] + 0.5) * (
            self.zooms[1:]
        )
        for column, panel in enumerate(panels):
            for row, plane in enumerate(panel.planes):
                axes = grid[row, column]
                extent = (0, self.size[0], 0, self.size[2 - row])
                shown = axes.imshow(
                    plane, cmap=_GREY, vmin=panel.limits[0], vmax=panel.limits[1],
                    extent=extent, origin='lower', interpolation='nearest', aspect='equal',
                )  # fmt: skip
                axes.axhline(cross[1 - row], color='white', linestyle=':', linewidth=0.7)
                axes.set(xticks=[], yticks=[], facecolor='black')
                if contours:
                    _outline(axes, [planes[row] for planes in contours], extent)
                if column == 0:
                    _letters(axes, ('S', 'I') if row == 0 else ('A', 'P'))
            grid[0, column].set_title(panel.title)
            box = grid[1, column].get_position()
            bar = figure.add_axes(
                (box.x0 + 0.12 * box.width, box.y0 - 0.2 / figure.get_figheight(),
                 0.76 * box.width, 0.12 / figure.get_figheight())
            )  # fmt: skip
            figure.colorbar(
                shown, cax=bar, orientation='horizontal', label=panel.unit, ticks=MaxNLocator(4)
            )
        return figure


_GREY = mpl.colormaps['gray'].with_extremes(bad='black')


def _outline(axes: Axes, planes: Sequence[np.ndarray], extent: tuple[float, ...]) -> None:
    for plane, colour, style in zip(planes, ('#ff9a2e', '#3fd0ff'), ('-', '--'), strict=True):
        if plane.any() and not plane.all():
            axes.contour(
                plane.astype(float), levels=[0.5], colors=colour, linestyles=style,
                linewidths=1, extent=extent, origin='lower',
            )  # fmt: skip


def _letters(axes: Axes, vertical: tuple[str, str]) -> None:
    style: dict[str, Any] = {
        'color': '#ffd75e',
        'fontsize': 8,
        'transform': axes.transAxes,
        'path_effects': [withStroke(linewidth=2, foreground='black')],
    }
    axes.text(0.02, 0.5, 'L', va='center', ha='left', **style)
    axes.text(0.98, 0.5, 'R', va='center', ha='right', **style)
    axes.text(0.5, 0.985, vertical[0], va='top', ha='center', **style)
    axes.text(0.5, 0.015, vertical[1], va='bottom', ha='center', **style)


def _finite(values: np.ndarray) -> np.ndarray:
    finite = values[np.isfinite(values)]
    return finite if finite.size else np.zeros(1)


def _round_up(value: float) -> float:
    """To two digits, and never zero."""
    if value <= 0:
        return 1e-6
    unit = 10.0 ** (np.floor(np.log10(value)) - 1)
    return float(np.ceil(value / unit) * unit)


def _symmetric(values: np.ndarray, percentile: float = 99.5) -> Limits:
    limit = _round_up(float(np.percentile(np.abs(_finite(values)), percentile)))
    return -limit, limit


def _from_zero(values: np.ndarray) -> Limits:
    return 0.0, _round_up(float(np.percentile(_finite(values), 99.5)))


def _percentiles(values: np.ndarray) -> Limits:
    low, high = np.percentile(_finite(values), [1, 99])
    return float(low), float(max(high, low + 1e-6))


def _usual(values: np.ndarray) -> Limits:
    """From zero to five times the median, or to 0.01."""
    return 0.0, _round_up(max(5 * float(np.median(_finite(values))), 0.01))


def _up_to_the_most(values: np.ndarray) -> Limits:
    return 0.0, max(float(_finite(values).max()), 1.0)


QUALITY: dict[str, tuple[str, Limits | Callable, str]] = {
    'field_sd': ('standard deviation of the field', _usual, 'ppm'),
    'misfit': ('misfit', (0.0, 3.0), 'residual over noise'),
    'usable_echoes': ('usable echoes', _up_to_the_most, 'echoes'),
}
"""Maps that say how good the field is: title, grey scale, unit."""
