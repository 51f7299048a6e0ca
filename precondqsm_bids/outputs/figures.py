"""Figures of one run, and the page per participant that a person judges the maps by.

The figures are drawn straight with matplotlib, without pyplot, so that no display and no global
state is involved. The page is assembled with our own jinja2 template and not with
``niworkflows.reports``: that one indexes the whole output with pybids, knows no tables and no
word for a figure that is missing, and its template loads style sheets from the network, which
leaves the page bare on a node without one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import matplotlib as mpl
import nibabel as nb
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    SimpleInterface,
    TraitedSpec,
    isdefined,
    traits,
)
from scipy import ndimage

from precondqsm_bids import __version__
from precondqsm_bids.interfaces.bids import describe_prior, json_ready, run_prefix
from precondqsm_bids.interfaces.files import write_atomic
from precondqsm_bids.interfaces.roi_values import read_table
from precondqsm_bids.interfaces.volumes import b0_along
from precondqsm_bids.numerics.field_quality import MOST_FIELD_SD, MOST_MISFIT, MOST_UNUSABLE
from precondqsm_bids.numerics.r2prime_prior import relaxivity
from precondqsm_bids.numerics.roi_values import surrounding_label

BRAIN_RELAXIVITY = (110.0, 274.0)
"""R2' per susceptibility that is published for brain tissue at 3 T, 1/s per ppm: the range; 137 is
that of Shin et al., NeuroImage 2021;240:118371."""

STYLE = {
    'font.size': 9,
    'axes.titlesize': 10,
    'svg.hashsalt': 'precondqsm_bids',  # same bytes on every run
}
COLOURS = {
    'conventional': '#c44e52',
    'prior': '#8c8c8c',
    'precond': '#1f6fb4',
    'reference': '#111111',
}


class FigureText(NamedTuple):
    """Name of a figure on disk, its heading and what to look for in it."""

    name: str
    title: str
    caption: str


_SLICES = (
    'Slices: through the centre of the label that differs most from its surroundings, or, without '
    'labels, the coronal and axial slices with the largest sum of absolute susceptibility '
    '(relative to the median) in the middle half of the region. The dotted lines mark where the '
    'two planes intersect. The left of the image is the left of the object.'
)

FIGURES = (
    FigureText(
        'desc-comparison_Chimap.png',
        'Conventional and preconditioned susceptibility',
        'The same grey scale for both; the difference (preconditioned minus conventional) has its '
        'own. Look for diagonal streaks from strong objects, ringing at the border of the region, '
        'horizontal bands, and strong objects that are paler in the conventional map: the '
        'preconditioned map should have less of each. ' + _SLICES,
    ),
    FigureText(
        'desc-prior_Chimap.png',
        'Prior and residual',
        "The prior is the first estimate: R2' by theory or, fitted, what the field makes of the "
        'contrasts; the summary above says which. The residual is what the inversion of the '
        'flattened field adds: it should be small, with structure only where the prior is wrong. '
        'A negative residual in an object says that the prior was too high there.',
    ),
    FigureText(
        'desc-fields_fieldmap.png',
        'Fields',
        'The total field as measured, the flattened field (minus the field calculated from the '
        'prior and from the shape), and the local field that is inverted, each on its own scale. '
        'Abrupt steps in the total field are unwrapping errors. Flattening should remove the '
        'dipole patterns around objects; what it leaves must be smooth, a shim for example, and '
        'should be gone in the local field.',
    ),
    FigureText(
        'desc-lcurve_Chimap.svg',
        'Choice of the regularisation weight',
        'Left: size of the regularisation term against the data term for every weight; the marker '
        'is the weight that was used. Right: curvature of that curve against the logarithm of the '
        'weight; the corner is where the curve bends downwards most, because signal is lost '
        'from there on. A flat curvature, or a bend at the end of the range, means that the '
        'corner is not to be trusted. With a good prior the '
        'preconditioned corner lies at a lower weight.',
    ),
    FigureText(
        'desc-rois_values.svg',
        'Values in the labelled regions',
        'Mean susceptibility per label relative to the label that surrounds the others (where '
        'there is one), with the standard deviation inside the label. The black marks are the '
        'reference values from the bulk field of long cylinders, independent of every inversion.',
    ),
    FigureText(
        'desc-echofit_R2starmap.png',
        'Magnitude and R2*',
        'Root of the sum of squares over the echoes, and R2*, which a single echo does not tell. '
        'Where R2* is high and the magnitude '
        'has faded before the second echo, neither field nor prior is reliable. The dephasing by '
        'the field gradient across the voxel is taken out of R2*; beside air some may be left.',
    ),
    FigureText(
        'desc-quality_fieldmap.png',
        'Quality of the field',
        'Standard deviation of the field (the scale ends at five times its median, or at 0.01 '
        'ppm); the misfit, which is 1 where one field and one R2* describe the echoes and the '
        'noise is that of the median voxel, and above 1.7 where they do not (up to 3); and '
        'the number of echoes above the noise. Bright misfit belongs to the walls of strong '
        'sources; over whole regions it is flow, fat, ghosts, or phase that is not that of one '
        'field. The misfit of a single echo is not known.',
    ),
    FigureText(
        'desc-masks_mask.png',
        'Masks',
        'Outline of the shape (object against air, orange) and of the region of interest (cyan, '
        'dashed) on the magnitude. Both must follow the object; a leak into air or a missing part '
        'spoils the calculated background field.',
    ),
)


class Slices(NamedTuple):
    """Voxel indices of the two planes in a volume that is stored towards right, front, top."""

    coronal: int
    axial: int


def choose_slices(chi: np.ndarray, mask: np.ndarray, labels: np.ndarray | None = None) -> Slices:
    """The planes to show; see ``_SLICES`` for the rule in words.

    Parameters
    ----------
    chi : (X, Y, Z) ndarray
        Susceptibility, ppm, axes towards right, anterior, superior.
    mask : (X, Y, Z) ndarray of bool
        Region of interest.
    labels : (X, Y, Z) ndarray of int, optional
        Segmentation.
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


class _MapFiguresInputSpec(BaseInterfaceInputSpec):
    precond_chi = File(exists=True, mandatory=True, desc='preconditioned susceptibility, ppm')
    conventional_chi = File(exists=True, desc='conventional susceptibility, ppm')
    prior_chi = File(exists=True, mandatory=True, desc='prior susceptibility, ppm')
    residual_chi = File(exists=True, mandatory=True, desc='residual susceptibility, ppm')
    total_field = File(exists=True, mandatory=True, desc='total field, ppm')
    flattened_field = File(exists=True, mandatory=True, desc='flattened field, ppm')
    local_field = File(exists=True, mandatory=True, desc='local field, ppm')
    r2star = File(exists=True, desc='R2*, 1/s; not of a single echo')
    field_sd = File(exists=True, desc='standard deviation of the field, ppm')
    misfit = File(exists=True, desc='residual of the echoes over the noise; not of a single echo')
    usable_echoes = File(exists=True, desc='echoes whose signal exceeds twice the noise')
    magnitude = File(exists=True, mandatory=True, desc='root-sum-of-squares magnitude')
    shape_mask = File(exists=True, mandatory=True, desc='object against air')
    roi_mask = File(exists=True, mandatory=True, desc='region of interest')
    labels = File(exists=True, desc='segmentation on the same grid')


class _MapFiguresOutputSpec(TraitedSpec):
    comparison = File(exists=True, desc='conventional, preconditioned, difference')
    prior = File(exists=True, desc='prior and residual')
    fields = File(exists=True, desc='total, flattened and local field')
    echofit = File(exists=True, desc='magnitude, and R2* where it is known')
    quality = File(desc='standard deviation of the field, misfit and usable echoes')
    masks = File(exists=True, desc='outlines of the masks on the magnitude')


class MapFigures(SimpleInterface):
    """Coronal and axial cross-sections of the maps of one run."""

    input_spec = _MapFiguresInputSpec
    output_spec = _MapFiguresOutputSpec

    def _run_interface(self, runtime):
        inputs = self.inputs
        chi, zooms = _load(inputs.precond_chi)
        mask = _load(inputs.roi_mask)[0] > 0
        shape = _load(inputs.shape_mask)[0] > 0
        labels = _load(inputs.labels)[0].astype(int) if isdefined(inputs.labels) else None
        view = _View(shape | mask, zooms, choose_slices(chi, mask, labels))

        def masked(name: str) -> np.ndarray:
            return np.where(mask, _load(getattr(inputs, name))[0], np.nan)

        chi_limit = _symmetric(masked('precond_chi'))
        precond = _Panel('preconditioned', masked('precond_chi'), chi_limit, 'ppm')
        panels = [precond]
        if isdefined(inputs.conventional_chi):
            conventional = masked('conventional_chi')
            difference = precond.values - conventional
            panels = [
                _Panel('conventional', conventional, chi_limit, 'ppm'),
                precond,
                _Panel('difference', difference, _symmetric(difference), 'ppm'),
            ]
        local = masked('local_field')
        flattened = masked('flattened_field')
        residual = masked('residual_chi')
        total = masked('total_field')
        magnitude = _load(inputs.magnitude)[0]
        bright = _Panel('magnitude', magnitude, _from_zero(magnitude[shape]), 'arbitrary unit')

        def save(name: str, figure: Figure) -> None:
            self._results[name] = _save(figure, Path(runtime.cwd) / f'{name}.png')

        with mpl.rc_context(STYLE):
            save('comparison', view.draw(panels))
            prior = masked('prior_chi')
            save(
                'prior',
                view.draw(
                    [
                        _Panel('prior', prior, chi_limit, 'ppm'),
                        _Panel('residual', residual, _symmetric(residual), 'ppm'),
                    ]
                ),
            )
            save(
                'fields',
                view.draw(
                    [
                        _Panel('total field', total, _percentiles(total), 'ppm'),
                        _Panel('flattened field', flattened, _percentiles(flattened), 'ppm'),
                        _Panel('local field', local, _symmetric(local, 99), 'ppm'),
                    ]
                ),
            )
            panels = [bright]
            if isdefined(inputs.r2star):
                r2star = masked('r2star')
                panels.append(_Panel('R2*', r2star, _from_zero(r2star), '1/s'))
            save('echofit', view.draw(panels))
            quality = {
                name: masked(name)
                for name in ('field_sd', 'misfit', 'usable_echoes')
                if isdefined(getattr(inputs, name))
            }
            if quality:
                save('quality', view.draw(_quality_panels(quality)))
            save('masks', view.draw([bright], contours=(shape, mask)))
        return runtime


def _quality_panels(maps: Mapping[str, np.ndarray]) -> list[_Panel]:
    """Panels of the maps that say how good the field is."""
    panels = []
    if 'field_sd' in maps:
        most = max(5 * float(np.median(_finite(maps['field_sd']))), 0.01)
        limits = (0.0, _round_up(most))
        panels.append(_Panel('standard deviation of the field', maps['field_sd'], limits, 'ppm'))
    if 'misfit' in maps:
        panels.append(_Panel('misfit', maps['misfit'], (0.0, 3.0), 'residual over noise'))
    if 'usable_echoes' in maps:
        most = max(float(_finite(maps['usable_echoes']).max()), 1.0)
        panels.append(_Panel('usable echoes', maps['usable_echoes'], (0.0, most), 'echoes'))
    return panels


class _LCurveFigureInputSpec(BaseInterfaceInputSpec):
    l_curve = traits.Dict(desc='L-curve of the preconditioned inversion')
    conventional_l_curve = traits.Dict(desc='L-curve of the conventional inversion')


class _FigureOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc='the figure')


class LCurveFigure(SimpleInterface):
    """Both L-curves with the weight that was used, and their curvature."""

    input_spec = _LCurveFigureInputSpec
    output_spec = _FigureOutputSpec

    def _run_interface(self, runtime):
        curves = {
            name: curve
            for name, curve in (
                ('conventional', self.inputs.conventional_l_curve),
                ('precond', self.inputs.l_curve),
            )
            if isdefined(curve) and curve and curve['reg_weight'] is not None
        }
        with mpl.rc_context(STYLE):
            figure = draw_l_curves(curves)
            self._results['out_file'] = _save(figure, Path(runtime.cwd) / 'lcurve.svg')
        return runtime


def draw_l_curves(curves: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draw L-curves by the name of their arm (``precond``, ``conventional``)."""
    figure = Figure(figsize=(9, 3.8), layout='constrained')
    left, right = figure.subplots(1, 2)
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


class _RoiFigureInputSpec(BaseInterfaceInputSpec):
    table = File(exists=True, mandatory=True, desc='ROI table')


class RoiFigure(SimpleInterface):
    """Values per label against the independent reference: the abstract's figure 2."""

    input_spec = _RoiFigureInputSpec
    output_spec = _FigureOutputSpec

    def _run_interface(self, runtime):
        with mpl.rc_context(STYLE):
            figure = draw_roi_values(read_table(self.inputs.table))
            self._results['out_file'] = _save(figure, Path(runtime.cwd) / 'rois.svg')
        return runtime


def draw_roi_values(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Bars per label and map, black marks where a cylinder has a reference value."""
    relative = bool(rows) and 'precond_chi_minus_medium' in rows[0]
    key = 'minus_medium' if relative else 'mean'
    if relative:
        # The medium itself is zero by construction.
        rows = [row for row in rows if row['precond_chi_minus_medium'] != 0]
    arms = [
        arm
        for arm in ('conventional', 'prior', 'precond')
        if any(row.get(f'{arm}_chi_{key}') is not None for row in rows)
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
            label={'precond': 'preconditioned'}.get(arm, arm),
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


class _RunSummaryInputSpec(BaseInterfaceInputSpec):
    source_files = traits.List(traits.Str, mandatory=True, desc='raw files of the run')
    echo_times = traits.List(traits.Float, mandatory=True, desc='echo times, s')
    field_strength = traits.Float(mandatory=True, desc='B0, T')
    precond_chi = File(exists=True, mandatory=True, desc='any map of the run, for its grid')
    metadata = traits.Dict(desc='merged sidecar of the first magnitude')
    settings_record = traits.Dict(desc='settings of the method')
    record = traits.Dict(mandatory=True, desc='stage -> the numbers it used, chose or measured')
    l_curve = traits.Dict(desc='L-curve of the preconditioned inversion')
    conventional_l_curve = traits.Dict(desc='L-curve of the conventional inversion')
    sidecar = traits.Dict(mandatory=True, desc='sidecar of the preconditioned map')


class RunSummary(SimpleInterface):
    """The numbers that the report shows about a run, so that it can be rebuilt from disk."""

    input_spec = _RunSummaryInputSpec
    output_spec = _FigureOutputSpec

    def _run_interface(self, runtime):
        inputs = self.inputs
        image = nb.load(inputs.precond_chi)
        sidecar = inputs.sidecar
        summary = {
            'run': run_prefix(inputs.source_files[0]),
            'version': __version__,
            'echo_times': inputs.echo_times,
            'echo_spacing': sidecar['EchoSpacing'],
            'field_strength': inputs.field_strength,
            'matrix': sidecar['MatrixSize'],
            'voxel_size': sidecar['VoxelSize'],
            'orientation': ''.join(nb.aff2axcodes(image.affine)),
            'b0_tilt': _b0_tilt(b0_along(inputs.precond_chi)),
            'sources': sidecar['Sources'],
            'scanner': {
                key: inputs.metadata[key]
                for key in ('Manufacturer', 'ManufacturersModelName')
                if isdefined(inputs.metadata) and key in inputs.metadata
            },
            'settings': inputs.settings_record if isdefined(inputs.settings_record) else {},
            'record': inputs.record,
            'l_curve': inputs.l_curve if isdefined(inputs.l_curve) else {},
            'conventional_l_curve': (
                inputs.conventional_l_curve if isdefined(inputs.conventional_l_curve) else {}
            ),
        }
        out_file = Path(runtime.cwd) / 'summary.json'
        out_file.write_text(json.dumps(json_ready(summary), indent=2, sort_keys=True) + '\n')
        self._results['out_file'] = str(out_file)
        return runtime


def write_report(
    output_dir: str | Path,
    subject: str,
    *,
    runs: Sequence[str] | None = None,
    command: str | None = None,
    boilerplate: str | None = None,
    crash_files: Sequence[str | Path] | None = None,
) -> Path:
    """Assemble ``sub-XX.html`` from the figures and numbers on disk.

    What cannot be read from the outputs of the nodes is kept beside the figures, and is read back
    by a later call that leaves it out (``--reports-only``).

    Parameters
    ----------
    output_dir : path_like
        The derivatives.
    subject : str
        Participant, with or without ``sub-``.
    runs : sequence of str, optional
        Names of the runs that should be there (``sub-01_ses-a_run-1``); one that left nothing is
        said to be missing.
    command : str, optional
        Command line.
    boilerplate : str, optional
        Methods text; blank lines separate paragraphs.
    crash_files : sequence of path_like, optional
        Crash files of nodes of this participant.

    Returns
    -------
    Path
        The report.
    """
    output_dir = Path(output_dir)
    subject = subject.removeprefix('sub-')
    figures = output_dir / f'sub-{subject}' / 'figures'
    about_file = figures / f'sub-{subject}_desc-about_report.json'
    about: dict[str, Any] = {'runs': [], 'command': '', 'boilerplate': '', 'crash_files': []}
    about |= _read_json(about_file)
    given = {
        'runs': None if runs is None else list(runs),
        'command': command,
        'boilerplate': boilerplate,
        'crash_files': None if crash_files is None else [str(f) for f in crash_files],
    }
    about |= {key: value for key, value in given.items() if value is not None}
    write_atomic(about_file, json.dumps(about, indent=2) + '\n')

    suffix = '_desc-summary_report.json'
    found = {
        path.name.removesuffix(suffix): _read_json(path) for path in figures.glob(f'*{suffix}')
    }
    names = sorted({*found, *about['runs']}, key=_natural)
    paragraphs, references = _methods(about['boilerplate'])
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader('precondqsm_bids', 'data'),  # the style sheet is a file
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters['ppm'] = _ppm
    page = environment.get_template('report.html').render(
        subject=subject,
        version=__version__,
        about=about,
        paragraphs=paragraphs,
        references=references,
        crashes=[_crash(Path(f)) for f in about['crash_files']],
        runs=[_run_section(output_dir, subject, name, found.get(name)) for name in names],
    )
    return write_atomic(output_dir / f'sub-{subject}.html', page)


def run_warnings(output_dir: str | Path, subject: str, name: str) -> list[str]:
    """Warnings that the stages of a run left, from the numbers beside its figures.

    Parameters
    ----------
    output_dir : path_like
        The derivatives.
    subject, name : str
        Label of the participant, and of the run.
    """
    path = Path(output_dir) / f'sub-{subject}' / 'figures' / f'{name}_desc-summary_report.json'
    return _warnings(_read_json(path))


def _methods(boilerplate: str) -> tuple[list[str], list[str]]:
    """Paragraphs with ``[@key; @key]`` written out, and the references that they cite."""
    text = resources.files('precondqsm_bids.data').joinpath('boilerplate.bib').read_text('utf-8')
    entries = {
        key: dict(re.findall(r'(\w+) = \{([^}]*)\}', fields))
        for key, fields in re.findall(r'^@\w+\{(\w+), (.*)\}$', text, re.MULTILINE)
    }
    cited: dict[str, str] = {}

    def cite(match: re.Match[str]) -> str:
        names = []
        for key in re.findall(r'@(\w+)', match[0]):
            if key not in entries:
                names.append(key)
                continue
            entry = entries[key]
            where = f'{entry["volume"]}:{entry["pages"]}' if 'volume' in entry else entry['doi']
            cited[key] = (
                f'{entry["author"].rstrip(".")}. {entry["title"]}. '
                f'{entry["journal"]} {entry["year"]};{where}.'
            )
            names.append(f'{entry["author"].split(" ")[0]} {entry["year"]}')
        return f'({"; ".join(names)})'

    paragraphs = [
        re.sub(r'\[@[^\]]*\]', cite, paragraph)
        for paragraph in re.split(r'\n\s*\n', boilerplate.strip())
        if paragraph
    ]
    return paragraphs, sorted(cited.values())


def _run_section(
    output_dir: Path, subject: str, name: str, summary: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What the template shows of one run."""
    figures = []
    table = next(
        iter((output_dir / f'sub-{subject}').glob(f'**/anat/{name}_desc-rois_values.tsv')), None
    )
    for figure in FIGURES:
        path = Path(f'sub-{subject}') / 'figures' / f'{name}_{figure.name}'
        exists = (output_dir / path).is_file()
        if figure.name == 'desc-rois_values.svg' and table is None and not exists:
            continue
        figures.append({**figure._asdict(), 'path': path.as_posix() if exists else None})
    rows = read_table(table) if table else []
    return {
        'name': name,
        'title': name.removeprefix(f'sub-{subject}').lstrip('_').replace('_', ', ') or 'Results',
        'summary': _summary_rows(summary) if summary else [],
        'quality': _quality_rows(summary.get('record', {})) if summary else [],
        'echo_phase': _echo_phase_rows(summary) if summary else [],
        'bodies': _body_rows(summary.get('record', {})) if summary else [],
        'warnings': _warnings(summary) if summary else [],
        'figures': figures if summary or any(f['path'] for f in figures) else [],
        'table': rows,
        'has_medium': bool(rows) and 'precond_chi_minus_medium' in rows[0],
        'table_path': table.relative_to(output_dir).as_posix() if table else '',
        'record': json.dumps(summary.get('record', {}), indent=2) if summary else '',
        'sources': list(summary.get('sources', ())) if summary else [],
    }


def _coefficient(fit: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """The one coefficient of a prior, its standard error and what it says of R2'."""
    value, implied = fit['coefficients']['r2prime'][0], fit['implied_relaxivity'][0]
    text = f'{value:.3f}'
    if 'coefficient_errors' in fit:
        error = fit['coefficient_errors'][0]
        text += ' ± ' + ('unknown' if error is None else f'{error:.3f}')
    if implied is None:
        return f"{text}; implies no R2'"
    theory = relaxivity(summary['field_strength'])
    low, high = (x * summary['field_strength'] / 3 for x in BRAIN_RELAXIVITY)
    return (
        f"{text}; implies R2' of {implied:.0f} 1/s per ppm (static dephasing {theory:.0f}, "
        f'published for brain tissue {low:.0f} to {high:.0f})'
    )


def _summary_rows(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    record = summary.get('record', {})
    scanner = ' '.join(summary.get('scanner', {}).values())
    matrix = ' × '.join(str(n) for n in summary['matrix'])
    voxel = ' × '.join(_number(v) for v in summary['voxel_size'])
    rows = [
        ('Field strength', f'{_number(summary["field_strength"])} T {scanner}'.strip()),
        ('Echoes', f'{len(summary["echo_times"])} ({summary["echo_spacing"]})'),
        ('Matrix', f'{matrix}, voxels of {voxel} mm, stored {summary["orientation"]}'),
        ('B0 to the slice axis', f'{_number(summary["b0_tilt"])}°'),
    ]
    if 'mask' in (region := record.get('shape_mask', {})):
        text = 'the object' if region['mask'] == 'auto' else f'the object inside {region["mask"]}'
        if region['erosion'] > 0:
            text += (
                f', less {_number(region["erosion"])} mm of its border '
                f'({region["eroded_voxels"]} voxels)'
            )
        text += f': {region["roi_voxels"]} voxels'
        if not region.get('shape_used', True):
            text += '; it lies inside the object, whose shape is not part of the first estimate'
        rows.append(('Region of interest', text))
    fit = record.get('prior_fit')
    if fit is None:
        rows.append(('Prior', "R2' by static-dephasing theory, not fitted"))
    else:
        rows.append(('Prior', describe_prior(fit)))
        if len(fit.get('implied_relaxivity', ())) == 1:
            rows.append(('Coefficient of the prior', _coefficient(fit, summary)))
    if 'r2prime_prior' in record:
        rate = record['r2prime_prior']
        rows.append(('R2', f'{_number(rate["r2"])} /s: {rate["r2_source"]}'))
    if 'comparison' in record:
        measured = record['comparison']
        rows.append(
            (
                'Field explained by the prior',
                f'{measured["explained"]:.1%} of the energy of the conventional local field',
            )
        )
        rows.append(
            (
                'Streaking',
                f'{_number(measured["streaking"])} preconditioned, '
                f'{_number(measured["conventional_streaking"])} conventional (power in '
                "the dipole's cone over that beside it; streaks raise it, smoothing lowers it)",
            )
        )
    for arm, title in (('', 'Preconditioned'), ('conventional_', 'Conventional')):
        inversion = record.get(f'{arm}dipole_inversion', {})
        if inversion.get('reg_weight', 0) is None:
            rows.append((f'{title}: λ', 'none: the field is zero, and nothing was inverted'))
        elif 'reg_weight' in inversion:
            rule = inversion.get('rule', 'given')
            rows.append((f'{title}: λ', f'{_number(inversion["reg_weight"])} ({rule})'))
    for arm, title in (('', 'Preconditioned'), ('conventional_', 'Conventional')):
        reference = record.get(f'{arm}recombination')
        if reference and reference['reference'] == 'none':
            rows.append((f'{title}: reference', 'none: nothing was subtracted'))
        elif reference:
            text = (
                f'{reference["reference"]}: {_number(reference["reference_value"])} ppm '
                f'subtracted (sd of the reference region {_number(reference["reference_sd"])} ppm)'
            )
            if 'bodies' in reference:
                text += '; each body by itself, this one holds most of it'
            rows.append((f'{title}: reference', text))
    return rows


NOISE_SOURCES = {
    'phase': 'from what the phase fit leaves',
    'magnitude': 'from second differences of the magnitude',
    'air': 'from the air',
    'given': 'as given',
}
"""``noise_source`` of the record in words."""


def _quality_rows(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the echo fit says of the field of the whole region; empty where it says nothing."""
    fit = record.get('echo_fit', {})
    if 'median_field_sd' not in fit:
        return []
    source = fit.get('noise_source')
    text = f'{_number(fit.get("noise_sd"))} (unit of the magnitude)'
    text += f', {NOISE_SOURCES.get(source, source)}'
    if fit.get('noise_ratio') is not None:
        text += f'; {fit["noise_ratio"]:.2f} times that of the air'
    rows = [('Noise of a channel', text)]
    if fit.get('channels') is not None:
        rows.append(('Channels in the root sum of squares', f'{fit["channels"]:.1f}'))
    rows.append(
        (
            'Standard deviation of the field',
            f'{_number(fit["median_field_sd"])} ppm in the median voxel '
            f'(warned of above {MOST_FIELD_SD:g})',
        )
    )
    one_echo = len(fit.get('echo_times', ())) == 1
    for key, name, most in (
        ('misfit_fraction', 'Misfit: more than one field and one R2*', MOST_MISFIT),
        (
            'unusable_fraction',
            'No echo above the noise' if one_echo else 'Fewer than two echoes above the noise',
            MOST_UNUSABLE,
        ),
    ):
        if fit.get(key) is not None:
            rows.append((name, f'{fit[key]:.1%} of the region (warned of above {most:.0%})'))
    if fit.get('offset_model') is not None:
        text = str(fit['offset_model'])
        if fit.get('offset_misfit') is not None:
            text += f', leaves {_number(fit["offset_misfit"])} rad'
        if fit.get('own_offset_fraction') is not None:
            text += f'; free in {fit["own_offset_fraction"]:.1%} of the voxels'
        rows.append(('Phase offset', text))
    if (count := fit.get('bodies')) is not None:
        text = 'one'
        if count > 1:
            turns = ', '.join(_signed(n) for n in fit.get('body_turns', ()))
            text = (
                f'{count} that are not connected, moved against the largest by {turns} turns; '
                'differences between them are undetermined'
            )
        rows.append(('Bodies of the region', text))
    return rows


def _echo_phase_rows(summary: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Phase that was taken off each echo: number, TE, constant, gradient, size."""
    found = summary.get('record', {}).get('echo_fit', {}).get('echo_phase')
    if not found:
        return []

    def fixed(value: float, digits: int) -> str:
        return f'{round(value, digits) + 0.0:.{digits}f}'.replace('-', '−')

    columns = (summary['echo_times'], found['constant'], found['gradient'], found['size'])
    return [
        (
            str(number),
            fixed(1e3 * time, 2),
            fixed(constant, 3),
            *(fixed(value, 4) for value in gradient),
            fixed(size, 3),
        )
        for number, (time, constant, gradient, size) in enumerate(
            zip(*columns, strict=True), start=1
        )
    ]


def _body_rows(record: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Each of several bodies: number, voxels, volume, turns, reference, explained."""
    found = record.get('recombination', {}).get('bodies', ())
    turns = record.get('echo_fit', {}).get('body_turns') or [0] * (len(found) - 1)
    shares = record.get('comparison', {}).get('explained_by_body') or [None] * len(found)
    rows = []
    for number, (body, turn, share) in enumerate(
        zip(found, [0, *turns], shares, strict=False), start=1
    ):
        reference = 'none'
        if body['reference'] != 'none':
            reference = f'{body["reference"]}: {_number(body["reference_value"])} ppm subtracted'
        rows.append(
            (
                str(number),
                str(body['voxels']),
                f'{body["volume"]:.1f}',
                _signed(turn),
                reference,
                'n/a' if share is None else f'{share:.1%}'.replace('-', '−'),
            )
        )
    return rows


def _warnings(summary: Mapping[str, Any]) -> list[str]:
    """Every warning that a stage left, with the stage's name, each once."""
    sources = {
        **summary.get('record', {}),
        'L-curve': summary.get('l_curve', {}),
        'conventional L-curve': summary.get('conventional_l_curve', {}),
    }
    seen: dict[str, str] = {}
    for stage, numbers in sources.items():
        warnings = numbers.get('warnings', ()) if isinstance(numbers, Mapping) else ()
        for text in [warnings] if isinstance(warnings, str) else warnings or ():
            arm = 'conventional ' if stage.startswith('conventional') else ''
            seen.setdefault(f'{arm}{text}', f'{stage.replace("_", " ")}: {text}')
    return list(seen.values())


def _crash(path: Path) -> dict[str, str]:
    """Name and text of a crash file; a pickled one is only named."""
    text = ''
    if path.suffix == '.txt' and path.is_file():
        text = path.read_text(errors='replace')
    return {'name': path.name, 'path': str(path), 'text': text}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return {}


def _natural(name: str) -> list[Any]:
    return [(0, int(p), '') if p.isdigit() else (1, 0, p) for p in re.split(r'(\d+)', name)]


def _number(value: Any) -> str:
    if value is None or (isinstance(value, float) and not np.isfinite(value)):
        return 'n/a'
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f'{value:.4g}'.replace('-', '−')
    return str(value)


def _signed(value: int) -> str:
    return f'{value:+d}'.replace('-', '−') if value else '0'


def _ppm(value: float | None) -> str:
    return 'n/a' if value is None else f'{value:.3f}'.replace('-', '−')


def _b0_tilt(b0_dir: np.ndarray) -> float:
    """Angle between B0 and the nearest of the stored axes, degrees."""
    return round(float(np.degrees(np.arccos(min(1.0, np.abs(b0_dir).max())))), 2)


class _Panel(NamedTuple):
    title: str
    values: np.ndarray
    limits: tuple[float, float]
    unit: str


class _View:
    """Two planes of a volume in a frame around the object, in millimetres."""

    def __init__(self, region: np.ndarray, zooms: np.ndarray, slices: Slices):
        self.zooms, self.slices = zooms, slices
        occupied = np.argwhere(region) if region.any() else np.argwhere(np.ones_like(region))
        low, high = occupied.min(axis=0), occupied.max(axis=0) + 1
        margin = np.ceil(0.07 * (high - low)).astype(int)  # room for the letters
        low, high = np.maximum(low - margin, 0), np.minimum(high + margin, region.shape)
        self.low, self.window = low, tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        self.size = (high - low) * zooms

    def planes(self, volume: np.ndarray) -> list[np.ndarray]:
        x, y, z = self.window
        return [volume[x, self.slices.coronal, z].T, volume[x, y, self.slices.axial].T]

    def draw(
        self,
        panels: Sequence[_Panel],
        contours: tuple[np.ndarray, np.ndarray] | None = None,
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
            for row, plane in enumerate(self.planes(panel.values)):
                axes = grid[row, column]
                extent = (0, self.size[0], 0, self.size[2 - row])
                shown = axes.imshow(
                    plane, cmap=_GREY, vmin=panel.limits[0], vmax=panel.limits[1],
                    extent=extent, origin='lower', interpolation='nearest', aspect='equal',
                )  # fmt: skip
                axes.axhline(cross[1 - row], color='white', linestyle=':', linewidth=0.7)
                axes.set(xticks=[], yticks=[], facecolor='black')
                if contours:
                    _outline(axes, [self.planes(c)[row] for c in contours], extent)
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


def _outline(axes, planes: Sequence[np.ndarray], extent: tuple[float, ...]) -> None:
    for plane, colour, style in zip(planes, ('#ff9a2e', '#3fd0ff'), ('-', '--'), strict=True):
        if plane.any() and not plane.all():
            axes.contour(
                plane.astype(float), levels=[0.5], colors=colour, linestyles=style,
                linewidths=1, extent=extent, origin='lower',
            )  # fmt: skip


def _letters(axes, vertical: tuple[str, str]) -> None:
    style = {
        'color': '#ffd75e',
        'fontsize': 8,
        'transform': axes.transAxes,
        'path_effects': [withStroke(linewidth=2, foreground='black')],
    }
    axes.text(0.02, 0.5, 'L', va='center', ha='left', **style)
    axes.text(0.98, 0.5, 'R', va='center', ha='right', **style)
    axes.text(0.5, 0.985, vertical[0], va='top', ha='center', **style)
    axes.text(0.5, 0.015, vertical[1], va='bottom', ha='center', **style)


def _load(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Values with the axes towards right, anterior, superior, and the voxel size in mm."""
    image = nb.as_closest_canonical(nb.load(path))
    return np.asanyarray(image.dataobj), np.array(image.header.get_zooms()[:3], dtype=float)


def _save(figure: Figure, path: Path) -> str:
    metadata = {'Date': None} if path.suffix == '.svg' else {}  # same bytes on every run
    figure.savefig(path, dpi=110, metadata=metadata)
    return str(path)


def _column(rows: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    return np.array([np.nan if row.get(key) is None else row[key] for row in rows], dtype=float)


def _finite(values: np.ndarray) -> np.ndarray:
    finite = values[np.isfinite(values)]
    return finite if finite.size else np.zeros(1)


def _round_up(value: float) -> float:
    """To two digits, and never zero."""
    if value <= 0:
        return 1e-6
    unit = 10.0 ** (np.floor(np.log10(value)) - 1)
    return float(np.ceil(value / unit) * unit)


def _symmetric(values: np.ndarray, percentile: float = 99.5) -> tuple[float, float]:
    limit = _round_up(float(np.percentile(np.abs(_finite(values)), percentile)))
    return -limit, limit


def _from_zero(values: np.ndarray) -> tuple[float, float]:
    return 0.0, _round_up(float(np.percentile(_finite(values), 99.5)))


def _percentiles(values: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(_finite(values), [1, 99])
    return float(low), float(max(high, low + 1e-6))
