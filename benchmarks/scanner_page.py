"""The page on phantoms as scanned and its figure, from the records of the run. No number is
typed."""

import matplotlib as mpl
import numpy as np
import opponents_page
from heads_page import NUCLEI, listed
from matplotlib.figure import Figure
from page import STYLE, percent, reflow, save_figure, save_text, table, yes
from scanner_results import (
    ARMS,
    AT_WALLS,
    AWAY,
    COILS,
    NUCLEUS,
    RISE,
    TUBE,
    USUAL,
    WRONG,
    Results,
    coil_spread,
    field_met,
    limit_of,
    nrmse,
    off_tube,
    readout_met,
)

PICTURED = ('crop', 'receive-poles', 'partial-fourier', 'all')
NONE = '-'
FOUGHT = ('head', 'tubes', 'coils', 'geometry')
"""Parts that are compared with the opponents."""


# --- cells -----------------------------------------------------------------------------------


def fought(results, part):
    """Opponents and the errors of the default beside them, of the cases of a part."""
    return {
        name: (record['opponents'], record['opponents_ours'])
        for name, record in results.done(part).items()
        if 'opponents' in record
    }


def label(name):
    """A case in tables: its name without the part, as the option takes it."""
    return f'`{name.partition("-")[2]}`'


def number(value, digits=2):
    """A number, or a dash where there is none."""
    return NONE if value is None else f'{value:.{digits}f}'


def root_mean_square(values):
    """Root mean square, or None."""
    return None if values is None else float(np.sqrt(np.mean(np.square(values))))


def rows_of(results, part, cells, width):
    """Rows of a table: every case of a part; what was not run or is refused has no numbers."""
    rows = []
    for name in results.parts[part]:
        record = results.records.get(name)
        if results.mapped(name):
            rows.append((label(name), *cells(name, record)))
        else:
            rows.append((label(name), 'refused' if record else 'not run', *[''] * (width - 1)))
    return rows


def tabled(results, part, head, cells):
    """Table of a part whose first column is the case."""
    return table(('', *head), rows_of(results, part, cells, len(head)))


# --- sections --------------------------------------------------------------------------------


def introduction(results, versions, stale, size):
    """What this is and how it was made."""
    made = ', '.join(f'{name} {version}' for name, version in versions.items())
    missing = [name for name in results.cases if name not in results.records]
    notes = []
    if size != 1:
        notes.append(f'**A trial run with voxels of {size:g} times the size: not the result.**')
    if stale:
        notes.append(f'Made by an earlier state of the code: {listed(stale)}.')
    if missing:
        notes.append(f'Not run: {listed(missing)}.')
    minutes = sum(record['elapsed'] for record in results.records.values()) / 60
    return f"""# As scanned

This page is written by one command, which simulates what scanners and living bodies do to the
signal, one thing at a time and all together, reconstructs it as the app does and compares the maps
with the truth; no number below but the targets is typed by hand.

```
python benchmarks/scanner.py
```

`--only NAME ...` takes some of the cases or parts (`head`, `tubes`, `coils`, `bipolar`,
`geometry`), `--size FACTOR` makes a trial with larger voxels. The seed of the noise is 0
throughout. This run: {made}; 2 threads; {minutes:.0f} minutes in all on a machine that others used
as well.
{''.join(f'{chr(10)}{note}{chr(10)}' for note in notes)}
**The phantoms** are those of `precondqsm_phantom`, with the switches of its `--scanner`
([usage](usage.md#the-phantom)). The head has voxels of 2 mm, cut from k-space in all rows but the
ideal one; the *reference* of its rows is the head with `crop` alone. The tubes are the published
ones at 2 mm, their reference is the ideal scanner (for `all`, which crops, `crop`; where echoes
are missing, the same ones of one polarity).

**The reconstruction** is the workflow that the app runs, from files to files, with its defaults;
of the head with the true brain mask (`--mask derivatives`) and the sign of the phase stated
(`--phase-sign +1`). A run that is refused for the sign of its phase is made again with the sign
given.

**The scores.** *NRMSE* is taken voxel by voxel over the whole brain or region of interest, rim
included, each map less its mean, relative to the deviation of the true map; every map at the
lambda of the program's own rule. *Field* is the robust standard deviation of its error over the
standard deviation that the fit reports, 1 if that is right. The error is the fitted field less the
true one, less solid harmonics up to fourth order, which background removal takes for sources
outside; *after PDF* it is less all that background removal takes for sources outside. *At walls*
is within two voxels of a step of the true susceptibility of more than 0.15 ppm, or of the edge of
the region. *Noise* is that of one channel. A map is *wrong* if its NRMSE is more than
{percent(WRONG - 1, 0)} % above that of its reference; a *warning* counts if the reference does not
give it and it tells more than what was corrected."""


def targets(results):
    """What was to be shown, and whether it was."""
    rows = []

    def row(what, target, failed, of, worst_one=''):
        found = f'{of - len(failed)} of {of}' + (f'; worst: {worst_one}' if worst_one else '')
        rows.append((what, target, found + (f'; not {listed(failed)}' if failed else ''), failed))

    heads = {n: r for n, r in results.done('head').items() if n != 'head-ideal'}
    compared = [n for n in heads if results.reference(n)]
    for arm in ARMS:
        rises = {n: results.rise(n, arm) for n in compared if n != results.cases[n].reference}
        if rises:
            failed = [n for n, rise in rises.items() if rise > limit_of(n)]
            most = max(rises, key=rises.get)
            row(f'head, each switch: NRMSE of the {arm} map over that of the cropped head',
                f'at most {USUAL} (partial Fourier, poles {RISE["partial-fourier"]}; all '
                f'{RISE["all"]})', failed, len(rises), f'{most} {rises[most]:.2f}')  # fmt: skip
    off = {n: max(abs(v - 1) for v in results.nuclei(n).values()) for n in compared}
    if off:
        most = max(off, key=off.get)
        row('head, each switch: nuclei over their values in the cropped head',
            f'within {percent(NUCLEUS, 0)} %', [n for n in off if off[n] > NUCLEUS], len(off),
            f'{most} {percent(off[most], 0)} %')  # fmt: skip
        row('head: error of the field over its standard deviation, away from walls and at walls',
            f'{AWAY[0]} to {AWAY[1]}, at most {AT_WALLS}',
            [n for n in heads if not field_met(heads[n])], len(heads))  # fmt: skip
    for part, names in (
        ('tubes, 2 mm', ('tubes-ideal', 'tubes-coils-8', 'tubes-coils-32')),
        ('tubes, 1 mm', tuple(results.parts['coils'])),
    ):
        if all(map(results.mapped, names)):
            spread = coil_spread(results, names)
            rows.append(
                (f'{part}, 1, 8 and 32 coils: NRMSE', f'within {percent(COILS, 0)} %',
                 f'within {percent(spread)} %', spread > COILS)
            )  # fmt: skip
    readouts = [n for n in results.parts['bipolar'] if n in results.records]
    if readouts:
        failed = [n for n in readouts if not readout_met(results.records[n])]
        row('alternating readouts: each tube, or a refusal', f'within {percent(TUBE, 0)} %',
            failed, len(readouts))  # fmt: skip
    for part, limit in (('head', 0.75), ('tubes', 0.5)):
        if against := fought(results, part):
            *cells, met = opponents_page.target(against, part, limit)
            rows.append((*cells, not met))
    run = list(results.records)
    row('no scan ends with a wrong map without a warning', 'none',
        [n for n in run if not results.told(n)], len(run))  # fmt: skip
    rows = [(*cells, yes(not failed)) for *cells, failed in rows]
    return f"""## Targets

{table(('', 'target', 'found', 'met'), rows)}"""


def head_section(results):
    """All that is found in the head."""

    def errors(name, record):
        rises = [results.rise(name, arm) for arm in ARMS]
        cells = [
            cell
            for arm, rise in zip(ARMS, rises, strict=True)
            for cell in (percent(nrmse(record, arm)), number(rise))
        ]
        explained = record['stages'].get('prior_fit', {}).get('explained')
        cells.append(number(explained))
        if name == 'head-ideal' or None in rises:
            return *cells, '', ''
        return *cells, f'at most {limit_of(name)}', yes(max(rises) <= limit_of(name))

    def nuclei(name, _):
        if results.reference(name) is None:
            return [NONE] * (len(NUCLEI) + 2)
        found = results.nuclei(name)
        met = max(abs(v - 1) for v in found.values()) <= NUCLEUS
        span = f'{1 - NUCLEUS:g} to {1 + NUCLEUS:g}'
        return *(number(found.get(n)) for n in NUCLEI), span, yes(met)

    columns = [c for arm in ARMS for c in (f'{arm}: NRMSE, %', 'over cropped')]
    return f"""## Head

{tabled(results, 'head', (*columns, 'explained by the prior', 'target', 'met'), errors)}

Nuclei (less white matter) over the same in the cropped head, preconditioned map:

{tabled(results, 'head', (*NUCLEI, 'target', 'met'), nuclei)}

Noise and field:

{fit_table(results, 'head')}

{picture(results)}"""


def picture(results):
    """Link to the figure, if there is one."""
    if not pictured(results):
        return ''
    shown = ', '.join(f'`{name}`' for name in pictured(results))
    return (
        f'![True, conventional and preconditioned map, ppm](figures/scanner_head.png)\n\n{shown}.'
    )


def fit_table(results, part):
    """Noise, field, offset and phase of each echo of the cases of a part."""

    def cells(name, record):
        noise, field, other = record['noise'], record['field'], results.reference(name)
        over = noise['over_true'] / other['noise']['over_true'] if other else None
        fit, phase = record['stages']['echo_fit'], record['echo_phase']
        own = fit.get('own_offset_fraction')
        return (
            number(noise['over_true']),
            number(over),
            noise['source'] or NONE,
            number(field['away']),
            number(field['walls']),
            f'{AWAY[0]} to {AWAY[1]}; {AT_WALLS}',
            yes(field_met(record)),
            f'{number(field.get("away_pdf"))}, {number(field.get("walls_pdf"))}',
            (fit.get('offset_model') or NONE) + (f' ({percent(own)} %)' if own else ''),
            ' / '.join(number(root_mean_square(phase[n]), 3) for n in ('true', 'found', 'left')),
        )

    columns = (
        'noise over true', 'over reference', 'noise from', 'field, away from walls', 'at walls',
        'target', 'met', 'the same after PDF', 'offset (free in)',
        'phase of echoes: true / found / left, rad',
    )  # fmt: skip
    return tabled(results, part, columns, cells)


def tube(found, true):
    """Value of a tube over its true one; of a tube of 0 ppm the value."""
    if np.isnan(found):
        return 'absent'
    return f'{found / true:.3f}' if true else f'({found:+.3f})'


def tube_cells(results):
    """Function of the cells of one case of tubes."""

    def cells(name, record):
        found = record['maps']['preconditioned']
        pairs = zip(found['tubes'], record['true'], strict=True)
        return (
            percent(nrmse(record, 'conventional')),
            number(results.rise(name, 'conventional')),
            percent(found['nrmse']),
            number(results.rise(name, 'preconditioned')),
            f'{found["agar_sd"]:.4f}',
            ' '.join(tube(*pair) for pair in pairs),
            percent(off_tube(record, 'preconditioned')),
        )

    return cells


TUBE_COLUMNS = (
    'conventional: NRMSE, %', 'over reference', 'preconditioned: NRMSE, %', 'over reference',
    'agar sd, ppm', 'tubes over truth (of 0: ppm)', 'worst, %',
)  # fmt: skip


def tubes_section(results):
    """The switches on tubes, and numbers of coils at the published voxel size."""
    cells = tube_cells(results)
    return f"""## Tubes

{tabled(results, 'tubes', TUBE_COLUMNS, cells)}

Noise and field:

{fit_table(results, 'tubes')}

Coils, voxels of 1 mm:

{tabled(results, 'coils', TUBE_COLUMNS, cells)}"""


def bipolar_section(results):
    """Alternating readouts."""
    found = tube_cells(results)

    def cells(name, record):
        target = f'within {percent(TUBE, 0)} % or refused'
        return results.cases[name].title, *found(name, record), target, yes(readout_met(record))

    return f"""## Alternating readouts

The tubes at 2 mm; 0.3 rad where nothing else is said. A tube is *absent* where the region of
interest, which is made of the first echo, leaves it out.

{tabled(results, 'bipolar', ('', *TUBE_COLUMNS, 'target', 'met'), cells)}

{fit_table(results, 'bipolar')}"""


def geometry_section(results):
    """Slabs, long voxels, heads without a mask."""

    def cells(name, record):
        errors = [nrmse(record, arm) for arm in ARMS]
        return (
            results.cases[name].title,
            *(percent(error) for error in errors),
            *(number(results.rise(name, arm)) for arm in ARMS),
            yes(errors[1] < errors[0]),
            number(record['stages'].get('prior_fit', {}).get('explained')),
            number(record['coverage']),
        )

    columns = (
        '', 'conventional: NRMSE, %', 'preconditioned: NRMSE, %', 'conventional over reference',
        'preconditioned over reference', 'better than conventional', 'explained by the prior',
        'share of the brain in the region',
    )  # fmt: skip
    return f"""## Geometry

Two bodies beside tubes, and within a brain mask, are rows of the tables above.

{tabled(results, 'geometry', columns, cells)}

{fit_table(results, 'geometry')}"""


def warnings_section(results):
    """What runs told their users."""
    rows = []
    for name, record in results.records.items():
        wrong, warnings = results.wrong(name), results.warnings(name)
        if not (wrong or warnings or record['refused']):
            continue
        texts = [f'refused: {record["refused"]}'] if record['refused'] else []
        rises = ' / '.join(number(results.rise(name, arm)) for arm in ARMS)
        rows.append(
            (f'`{name}`', rises, ', '.join(wrong) or 'no',
             '; '.join(texts + warnings).replace('|', r'\|') or 'none', yes(results.told(name)))
        )  # fmt: skip
    others = len(results.records) - len(rows)
    head = ('', 'NRMSE over reference', 'wrong', 'warnings', 'told')
    return f"""## Warnings

Runs that are wrong, warn of what their reference does not, or are refused; NRMSE conventional /
preconditioned. The other {others} runs are none of these.

{table(head, rows)}"""


def timings(results):
    """Seconds of the cases of each part."""
    rows = []
    for part in results.parts:
        seconds = [record['seconds'] for record in results.done(part).values()]
        if seconds:
            rows.append(
                (part, len(seconds), *(f'{np.median([s[step] for s in seconds]):.0f}'
                 for step in ('simulation', 'workflow', 'scores')))
            )  # fmt: skip
    return f"""## Time

Median seconds of a case; a phantom that is in the cache takes none.

{table(('', 'cases', 'simulation', 'workflow', 'scores'), rows)}"""


# --- figure ----------------------------------------------------------------------------------


def pictured(results):
    """Cases of the figure that have maps."""
    return [name for name in PICTURED if results.mapped(f'head-{name}')]


def draw_maps(cache, names):
    """Axial sections: true map of the first case, then both arms of each."""
    loaded = {}
    for name in names:
        with np.load(cache / f'head-{name}.npz') as arrays:
            loaded[name] = {key: arrays[key].astype(np.float32) for key in arrays}
    across, up = loaded[names[0]]['voxel_size']
    inside = np.argwhere(np.isfinite(loaded[names[0]]['true']))
    shown = tuple(map(slice, inside.min(axis=0), inside.max(axis=0) + 1))
    rows = ('true', *ARMS)
    figure = Figure(figsize=(2.1 * len(names), 8.2), layout='constrained')
    axes = figure.subplots(len(rows), len(names), squeeze=False)
    for line, what in zip(axes, rows, strict=True):
        for ax, name in zip(line, names, strict=True):
            image = ax.imshow(
                loaded[name][what][shown].T, cmap='gray', origin='lower', aspect=up / across,
                vmin=-0.1, vmax=0.2, interpolation='nearest',
            )  # fmt: skip
            ax.set_axis_off()
            ax.set_title(name if what == 'true' else what, fontsize=8)
    bar = figure.colorbar(image, ax=axes, orientation='horizontal', shrink=0.4, aspect=40)
    bar.set_label('ppm', fontsize=8)
    return figure


def write(folder, cache, parts, records, versions, stale, size):
    """Write ``scanner.md`` and its figure to a folder."""
    results = Results(parts, {name: r for name, r in records.items() if r})
    (folder / 'figures').mkdir(parents=True, exist_ok=True)
    if pictured(results):
        with mpl.rc_context(STYLE):
            save_figure(draw_maps(cache, pictured(results)), folder, 'scanner_head')
    sections = [
        introduction(results, versions, stale, size),
        targets(results),
        head_section(results),
        tubes_section(results),
        opponents_page.section(
            {n: pair for part in FOUGHT for n, pair in fought(results, part).items()}
        ),
        bipolar_section(results),
        geometry_section(results),
        warnings_section(results),
        timings(results),
    ]
    save_text(reflow('\n\n'.join(sections)), folder / 'scanner.md')
