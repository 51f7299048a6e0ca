"""The table of ``--dry-run``: the runs, their files, and what is wrong or left out."""

from pathlib import Path
from typing import TYPE_CHECKING

from precondqsm_bids.cli.call import Found
from precondqsm_bids.config import Settings
from precondqsm_bids.method import Method

if TYPE_CHECKING:
    from precondqsm_bids.inputs.run import Run

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
        more = [
            *(run.tissue.files if run.tissue else ()),
            run.r2_map,
            *run.contrasts,
            *settings.method.prior_maps,
        ]
        paths = [path for path in (*run.sources, run.mask, run.labels, *more) if path]
        lines += [f'  {path}' for path in dict.fromkeys(map(str, paths))]
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
        str(len(run.echo_times)),
        'x'.join(map(str, run.matrix)),
        echo_time_words(run),
        f'{run.field_strength:g}',
        _mask_words(method, run),
        method.summary(run.one_echo),
        _tissue_words(run),
        'none' if run.one_echo else Path(run.r2_map or str(method.r2)).name,
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

    if stated := method.phase_sign:
        return f'{stated:+d}, stated; refused if the field contradicts it'
    manufacturer = run.metadata.get('Manufacturer')
    usual = vendor_sign(str(manufacturer)) if manufacturer else None
    by = f'usual of {manufacturer}' if usual else 'usual convention'
    return (
        "by the field of the object's shape; where that does not tell (an ellipsoid, a thin slab, "
        f'no air), {usual or 1:+d} is assumed, the {by}'
    )


def echo_time_words(run: 'Run') -> str:
    """First and last echo time, ms."""
    times = [f'{1000 * t:.4g}' for t in (run.echo_times[0], run.echo_times[-1])]
    return ' to '.join(dict.fromkeys(times))


def _tissue_words(run: 'Run') -> str:
    """Source of the tissue classes: number, kind, and whether they are resampled."""
    if not run.tissue:
        return 'none'
    kind = 'probseg' if run.tissue.label_classes is None else 'dseg'
    return f'{len(run.tissue.classes)} of {kind}' + (', resampled' * run.tissue.resampled)
