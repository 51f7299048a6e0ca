"""The figures of the report: what there is, and those that are not cross-sections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from precondqsm_bids.outputs.files import whole

STYLE: dict[Any, Any] = {
    'font.size': 9,
    'axes.titlesize': 10,
    'svg.hashsalt': 'precondqsm_bids',  # same bytes on every run
}
COLOURS = {
    'conventional': '#c44e52',
    'conventional_risk': '#e3a5a7',
    'consensus': '#5a9a5a',
    'prior': '#8c8c8c',
    'precond': '#1f6fb4',
    'reference': '#111111',
}


ROI_ARMS = {
    'conventional': 'conventional',
    'conventional_risk': 'conventional, least expected error',
    'consensus': 'consensus',
    'prior': 'prior',
    'precond': 'preconditioned',
}
"""Maps whose values per label are shown: first part of their columns, and heading."""


class FigureText(NamedTuple):
    """A figure of the report: its file, its heading and what to look for in it."""

    desc: str
    suffix: str
    extension: str
    title: str
    caption: str

    @property
    def of_maps(self) -> bool:
        """Whether it has cross-sections of the maps (`slices.draw_maps`)."""
        return self.extension == 'png'

    @property
    def name(self) -> str:
        """End of the file's name, after the entities of the run."""
        return f'desc-{self.desc}_{self.suffix}.{self.extension}'


_SLICES = (
    'Slices: through the centre of the label that differs most from its surroundings, or, without '
    'labels, the coronal and axial slices with the largest sum of absolute susceptibility '
    '(relative to the median) in the middle half of the region. The dotted lines mark where the '
    'two planes intersect. The left of the image is the left of the object.'
)

FIGURES = (
    FigureText(
        'comparison', 'Chimap', 'png',
        'Conventional and preconditioned susceptibility',
        'The same grey scale for all, also for the map by the choice of the QSM consensus, if it '
        'was computed (black where it is not known); the difference (preconditioned minus '
        'conventional) has its own. Look for diagonal streaks from strong objects, ringing at the '
        'border of the region, horizontal bands, and strong objects that are paler in the '
        'conventional map: the preconditioned map should have less of each. ' + _SLICES,
    ),
    FigureText(
        'prior', 'Chimap', 'png',
        'Prior and residual',
        "The prior is the first estimate: R2' by theory or, fitted, what the field makes of the "
        'contrasts; the summary above says which. The residual is what the inversion of the '
        'flattened field adds: it should be small, with structure only where the prior is wrong. '
        'A negative residual in an object says that the prior was too high there.',
    ),
    FigureText(
        'trust', 'Chimap', 'png',
        'What to believe of the map',
        'The preconditioned susceptibility, its standard deviation (noise and misfit of the field '
        'and error of the prior together: two of them should hold the truth in 19 of 20 voxels), '
        'and the part of the value that the field decided rather than the contrast. Where support '
        'is below one half the value is that of the prior: what looks like structure there is '
        'structure of R2* and magnitude.',
    ),
    FigureText(
        'fields', 'fieldmap', 'png',
        'Fields',
        'The total field as measured, the flattened field (minus the field calculated from the '
        'prior and from the shape), and the local field that is inverted, each on its own scale. '
        'Abrupt steps in the total field are unwrapping errors. Flattening should remove the '
        'dipole patterns around objects; what it leaves must be smooth, a shim for example, and '
        'should be gone in the local field.',
    ),
    FigureText(
        'lcurve', 'Chimap', 'svg',
        'Choice of the regularisation weight',
        'Left: size of the regularisation term against the data term for every weight; the marker '
        'is the weight that was used. Right: curvature of that curve against the logarithm of the '
        'weight; the corner is where the curve bends downwards most, because signal is lost '
        'from there on. A flat curvature, or a bend at the end of the range, means that the '
        'corner is not to be trusted. With a good prior the '
        'preconditioned corner lies at a lower weight.',
    ),
    FigureText(
        'rois', 'values', 'svg',
        'Values in the labelled regions',
        'Mean susceptibility per label relative to the label that surrounds the others (where '
        'there is one), with the standard deviation inside the label. The black marks are the '
        'reference values from the bulk field of long cylinders, independent of every inversion.',
    ),
    FigureText(
        'echofit', 'R2starmap', 'png',
        'Magnitude and R2*',
        'Root of the sum of squares over the echoes, and R2*, which a single echo does not tell. '
        'Where R2* is high and the magnitude '
        'has faded before the second echo, neither field nor prior is reliable. The dephasing by '
        'the field gradient across the voxel is taken out of R2*; beside air some may be left.',
    ),
    FigureText(
        'quality', 'fieldmap', 'png',
        'Quality of the field',
        'Standard deviation of the field (the scale ends at five times its median, or at 0.01 '
        'ppm); the misfit, which is 1 where one field and one R2* describe the echoes and the '
        'noise is that of the median voxel, and above 1.7 where they do not (up to 3); and '
        'the number of echoes above the noise. Bright misfit belongs to the walls of strong '
        'sources; over whole regions it is flow, fat, ghosts, or phase that is not that of one '
        'field. The misfit of a single echo is not known.',
    ),
    FigureText(
        'masks', 'mask', 'png',
        'Masks',
        'Outline of the shape (object against air, orange) and of the region of interest (cyan, '
        'dashed) on the magnitude. Both must follow the object; a leak into air or a missing part '
        'spoils the calculated background field.',
    ),
)  # fmt: skip


def save(figure: Figure, path: Path) -> None:
    """Write a figure whole or not at all, with the same bytes on every run."""
    kind = path.suffix[1:]
    metadata = {'Date': None} if kind == 'svg' else {}
    with whole(path) as temporary:
        figure.savefig(temporary, format=kind, dpi=110, metadata=metadata)


def draw_l_curves(curves: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draw L-curves by the name of their arm (``precond``, ``conventional``)."""
    # Of fixed margins: to fit them, matplotlib lays out every tick of the logarithmic axes.
    figure = Figure(figsize=(9, 3.8))
    left, right = figure.subplots(
        1, 2, gridspec_kw={'left': 0.09, 'right': 0.99, 'bottom': 0.13, 'top': 0.9}
    )
    for name, curve in curves.items():
        weights = np.asarray(curve.get('reg_weights', ()), dtype=float)
        label = {'precond': 'preconditioned'}.get(name, name)
        chosen = float(curve['reg_weight'])
        label = f'{label}, λ = {chosen:.3g}'
        if weights.size < 2:
            right.axvline(chosen, color=COLOURS[name], linestyle='--', label=f'{label} (given)')
            continue
        x, y = np.asarray(curve['consistency'], float), np.asarray(curve['regularization'], float)
        order = np.argsort(weights)
        corner = [
            np.exp(np.interp(np.log(chosen), np.log(weights[order]), np.log(v[order])))
            for v in (x, y)
        ]
        left.loglog(x, y, '.-', color=COLOURS[name], label=label, markersize=3, linewidth=1)
        left.plot(*corner, 'o', color=COLOURS[name], markersize=9, fillstyle='none')
        curvature = np.asarray(curve['curvature'], float)
        n = min(len(curvature), len(weights))
        trimmed = (len(weights) - n) // 2
        right.semilogx(
            weights[trimmed : trimmed + n], curvature[:n], color=COLOURS[name], linewidth=1
        )
        right.axvline(chosen, color=COLOURS[name], linestyle='--', linewidth=1)
    left.set(xlabel='data term  ‖D χ − f‖', ylabel='regularisation term  ‖∇χ‖', title='L-curve')
    right.set(xlabel='regularisation weight λ', ylabel='curvature', title='Curvature')
    right.set_xscale('log')
    low, high = left.get_xlim()
    if curves and high < 300 * low:  # two decades or less: powers of ten alone would label nothing
        left.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        left.xaxis.set_major_formatter(StrMethodFormatter('{x:g}'))
    left.xaxis.set_minor_formatter(NullFormatter())
    for axes in (left, right):
        axes.spines[['top', 'right']].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.5)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False)
    if not curves:
        figure.suptitle('No L-curve was computed')
    return figure


def draw_roi_values(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Bars per label and map, black marks where a cylinder has a reference value."""
    relative = bool(rows) and 'precond_chi_minus_medium' in rows[0]
    key = 'minus_medium' if relative else 'mean'
    if relative:
        # The medium itself is zero by construction.
        rows = [row for row in rows if row['precond_chi_minus_medium'] != 0]
    arms = [
        arm for arm in ROI_ARMS if any(row.get(f'{arm}_chi_{key}') is not None for row in rows)
    ]
    figure = Figure(figsize=(max(6.0, 1.6 + 1.1 * len(rows)), 4), layout='constrained')
    axes = figure.subplots()
    positions = np.arange(len(rows))
    width = 0.8 / max(1, len(arms))
    for i, arm in enumerate(arms):
        axes.bar(
            positions + (i - (len(arms) - 1) / 2) * width,
            _column(rows, f'{arm}_chi_{key}'),
            0.92 * width,
            yerr=_column(rows, f'{arm}_chi_sd'),
            color=COLOURS[arm],
            error_kw={'elinewidth': 0.8, 'ecolor': '#555555'},
            label=ROI_ARMS[arm],
        )
    reference = _column(rows, 'cylinder_reference')
    if relative and np.isfinite(reference).any():
        axes.hlines(
            reference,
            positions - 0.45,
            positions + 0.45,
            color=COLOURS['reference'],
            linewidth=1.8,
            label='reference (bulk field)',
        )
    axes.axhline(0, color='#888888', linewidth=0.6)
    names = [str(row['name']) for row in rows]
    axes.set_xticks(positions, names, rotation=0 if len(rows) <= 8 else 60)
    axes.set_ylabel('susceptibility − surroundings (ppm)' if relative else 'susceptibility (ppm)')
    axes.spines[['top', 'right']].set_visible(False)
    if arms:
        axes.legend(frameon=False, ncols=2)
    return figure


def _column(rows: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    return np.array([np.nan if row.get(key) is None else row[key] for row in rows], dtype=float)
