"""The table of ``--dry-run``: the runs, their files, and what is wrong or left out."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

from precondqsm_bids.cli.call import Found
from precondqsm_bids.cli.work_folder import rooms
from precondqsm_bids.config import Settings
from precondqsm_bids.cost import SECONDS_PER_VALUE, cost_of
from precondqsm_bids.method import Method

if TYPE_CHECKING:
    from precondqsm_bids.inputs.run import Run

SLAB = 0.25
"""Least over largest extent of the field of view below which it is a slab: whole heads have 0.7 or
more and their halves 0.4, whose sign the shape tells; slabs of 16 slices of 2 mm have 0.15."""
COLUMNS = (
    *('run', 'echoes', 'matrix', 'TE (ms)', 'B0 (T)', 'mask', 'prior', 'tissue', 'R2', 'labels'),
    'missing',
)


def describe_runs(settings: Settings, found: Found) -> str:
    """The table, the files of each run, and the problems."""
    rows = [COLUMNS, *(_row(settings.method, run) for run in found.runs)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ['  '.join(f'{cell:{w}}' for cell, w in zip(row, widths, strict=True)) for row in rows]
    for run in found.runs:
        lines += ['', run.label, f'  sign of the phase: {_sign_words(settings.method, run)}']
        lines.append(f'  {_cost_words(settings, run)}')
        more = [
            *(run.tissue.files if run.tissue else ()),
            run.r2_map,
            *run.contrasts,
            *settings.method.prior_maps,
        ]
        paths = [path for path in (*run.sources, run.mask, run.labels, *more) if path]
        lines += [f'  {path}' for path in dict.fromkeys(map(str, paths))]
    if found.runs:
        lines += ['', 'all runs', *(f'  {words}' for words in _total_words(settings, found))]
    for title, kinds in (('problems', ('error', 'warning')), ('skipped', ('skipped',))):
        words = [f'  {p.kind}: {p}' for p in found.problems if p.kind in kinds]
        if words:
            lines += ['', title, *words]
    return '\n'.join(line.rstrip() for line in lines)


def _row(method: Method, run: 'Run') -> tuple[str, ...]:
    """The row of a run."""
    missing = [*run.missing, *([] if run.labels else ['labels'])]
    return (
        run.label,
        'field' if run.field else str(len(run.echo_times)),
        'x'.join(map(str, run.matrix)),
        echo_time_words(run),
        f'{run.field_strength:g}',
        _mask_words(method, run),
        method.summary(run.without_r2star),
        _tissue_words(run),
        'none' if run.without_r2star else Path(run.r2_map or str(method.r2)).name,
        str(len(run.label_names)) if run.label_names else 'none',
        ', '.join(missing) or 'nothing',
    )


def _mask_words(method: Method, run: 'Run') -> str:
    """The mask and whether it is resampled, or the word of what is found in the images."""
    name = Path(run.mask).name if run.mask else method.mask
    return name + ', resampled' * run.mask_resampled


def _sign_words(method: Method, run: 'Run') -> str:
    """The way in which the sign of the phase will be found."""
    from precondqsm_bids.numerics.phase.sign import vendor_sign

    if run.field and not method.phase_sign:
        return "+1, of a field; warned of where the field of the object's shape contradicts it"
    if stated := method.phase_sign:
        return f'{stated:+d}, stated; refused if the field contradicts it'
    manufacturer = run.metadata.get('Manufacturer')
    usual = vendor_sign(str(manufacturer)) if manufacturer else None
    by = f'usual of {manufacturer}' if usual else 'usual convention'
    assumed = f'{usual or 1:+d} is assumed, the {by}'
    if (thin := _thickness(run)) < SLAB:
        return (
            f'is to be given with --phase-sign: in a slab, {thin:.0%} as thick as wide, the field '
            f"of the object's shape tells it only in about half of the cases; else {assumed}"
        )
    return (
        "by the field of the object's shape; where that does not tell (an ellipsoid, no air), "
        f'{assumed}'
    )


def _thickness(run: 'Run') -> float:
    """Least over largest extent of the field of view."""
    from precondqsm_bids.inputs.grid import load_grid

    affine = load_grid(Path(run.sources[0])).affine
    sizes = [math.hypot(*column) for column in affine[:3, :3].T]
    extent = [n * size for n, size in zip(run.matrix, sizes, strict=True)]
    return min(extent) / max(extent)


def _cost_words(settings: Settings, run: 'Run') -> str:
    """What a run will take."""
    cost = cost_of([run], settings.method)
    enough = '' if cost.memory_gb <= settings.mem_gb else ', which may not do: give more (--mem)'
    return (
        f'takes about {cost.memory_gb:.1f} GB of memory (of {settings.mem_gb:g}{enough}) and '
        f'{_time(cost.cpu_seconds)} of one CPU'
    )


def _total_words(settings: Settings, found: Found) -> list[str]:
    """What all runs will take, and whether it is there."""
    seconds = cost_of(found.runs, settings.method).cpu_seconds
    number, least = settings.nprocs, _time(seconds / settings.nprocs)
    words = [
        f'time: about {_time(seconds)} of CPU ({1e6 * SECONDS_PER_VALUE:g} microseconds for a '
        f'voxel of an echo), at least {least} with {number} processes'
    ]
    for room in rooms(settings, found):
        free = _size(room.free)
        words.append(f'disk: about {_size(room.needed)} in {room.folders}; {free} are free')
        if room.shortage:
            words.append(f'warning: {room.shortage}')
    return words


def _time(seconds: float) -> str:
    """A rough time in words.

    >>> _time(20), _time(1000), _time(20000)
    ('1 min', '17 min', '5.6 h')
    """
    minutes = math.ceil(seconds / 60)
    return f'{minutes} min' if minutes < 100 else f'{seconds / 3600:.1f} h'


def _size(number: float) -> str:
    """A size in words.

    >>> _size(3.2e6), _size(5.13e10)
    ('3.2 MB', '51.3 GB')
    """
    return f'{number / 1e9:.3g} GB' if number >= 1e9 else f'{number / 1e6:.3g} MB'


def echo_time_words(run: 'Run') -> str:
    """First and last echo time, ms."""
    times = [f'{1000 * t:.4g}' for t in (*run.echo_times[:1], *run.echo_times[-1:])] or ['none']
    return ' to '.join(dict.fromkeys(times))


def _tissue_words(run: 'Run') -> str:
    """Source of the tissue classes: number, kind, and whether they are resampled."""
    if not run.tissue:
        return 'none'
    kind = 'probseg' if run.tissue.label_classes is None else 'dseg'
    return f'{len(run.tissue.classes)} of {kind}' + (', resampled' * run.tissue.resampled)
