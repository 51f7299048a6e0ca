"""The page on heads and its figures, from the records that the run left. No number is typed."""

import matplotlib as mpl
import numpy as np
import opponents_page
from matplotlib.figure import Figure
from page import STYLE, percent, reflow, save_figure, save_text, table, yes

NUCLEI = (
    'caudate', 'putamen', 'pallidum', 'thalamus', 'red-nucleus', 'substantia-nigra', 'dentate',
)  # fmt: skip
LESIONS = ('microbleed', 'calcification')
CONVENTIONAL = 'conventional'
WRONG = ('shifted', 'eroded', 'swapped', 'flipped')
DEFAULT = 'contrast'
COVERED = {'coverage-tubes': 'tubes, clusters', 'coverage-head': 'head, true map'}


def nrmse(record, rule='default'):
    """NRMSE at the lambda of one rule: the program's own, if none is named."""
    return record['rules'][rule]['nrmse']


def ratio(record, name, rule='default'):
    """Value over truth of a region, both relative to white matter."""
    found, true = record['rules'][rule]['values'], record['true']
    return (found[name] - found['WM']) / (true[name] - true['WM'])


def worst_nucleus(record):
    """The greatest relative error of a nucleus, without its sign."""
    return max(abs(ratio(record, name) - 1) for name in NUCLEI if name in record['true'])


def fought(records):
    """Opponents and the errors of the default prior beside them, of the heads that have both."""
    return {
        name: (found[CONVENTIONAL]['opponents'], found[arm]['opponents_ours'])
        for name, found in records.items()
        for arm in (DEFAULT, 'whole-head')
        if CONVENTIONAL in found and arm in found
    }


def pictured(name, found):
    """Whether a head has a figure."""
    return CONVENTIONAL in found and DEFAULT in found and not name.startswith('relaxivity')


def listed(names):
    """Heads and their arms as text: pairs of both, or names alone, in order."""
    arms = {}
    for name in names:
        first, _, arm = name.partition(' ')
        arms.setdefault(first, []).append(arm)
    return '; '.join(
        name + (f' ({", ".join(found)})' if any(found) else '') for name, found in arms.items()
    )


def title(arms, arm):
    """Name of an arm in tables."""
    return CONVENTIONAL if arm == CONVENTIONAL else arms[arm].title


# --- sections --------------------------------------------------------------------------------


def introduction(cases, records, covered, versions, stale, quick):
    """What this is and how it was made."""
    made = ', '.join(f'{name} {version}' for name, version in versions.items())
    missing = [
        f'{name} {arm}'
        for name, case in cases.items()
        for arm in (CONVENTIONAL, *case.arms)
        if arm not in records[name]
    ]
    notes = []
    if quick:
        notes.append('**A trial run with voxels of twice the size: not the result.**')
    if stale:
        notes.append(f'Made by an earlier state of the code: {listed(stale)}.')
    if missing:
        notes.append(f'Not run: {listed(missing)}.')
    missing += [name for name in COVERED if name not in covered]
    seconds = [r['elapsed'] for found in [*records.values(), covered] for r in found.values()]
    return f"""# Heads

This page is written by one command, which simulates every head, reconstructs it in every arm and
compares the maps with the truth; no number below is typed by hand.

```
python benchmarks/heads.py
```

`--only NAME ...` takes some of the heads, `--quick` makes a trial with voxels of twice the size.
The seed of the noise is 0 throughout. This run: {made}; 2 threads; {sum(seconds) / 60:.0f} minutes
in all on a machine that others used as well.
{''.join(f'{chr(10)}{note}{chr(10)}' for note in notes)}
**The head** is that of `precondqsm_phantom --kind head`: the brain of a public template with
analytic nuclei, skull, scalp, air spaces and neck. Tissue, field and signal live on a grid of half
the voxel's size (at 2 mm, the complex signal of 1 mm is averaged), the field is found by finite
differences, and R2' is {137} Hz/ppm of the para- and of the diamagnetic part, unless said
otherwise. 3 T, 7 echoes, SNR 100. It shares nothing with the solver but the constants of physics.
The *hard head* (`--hard`) is oblique by 15 degrees, has an SNR of 60, and hides from every
magnitude a texture of 0.01 ppm, microbleeds, calcifications, and patches of susceptibility without
R2\\* and the reverse.

**The reconstruction** is the workflow that the app runs, from files to files, with the true brain
mask given (`--mask derivatives`) and the sign of the phase stated (`--phase-sign +1`). Tissue maps
are the true shares, those *with nuclei* have the nuclei as classes of their own; *labels* is the
label image, which has no shares.

**The scores.** *NRMSE* is taken voxel by voxel over the whole brain, rim included, each map less
its mean, relative to the deviation of the true map. *Value / true* of a region is its mean less
that of white matter, over what is true. *Best lambda* is the one of least NRMSE among 21 from 0.01
to 1 mm and those of the rules, which takes the truth to know."""


def targets(records, covered):
    """What was to be shown, and whether it was."""
    rows = []

    def row(what, target, found, met):
        rows.append((what, target, found, yes(met)))

    limits = {'contrast': 0.19, 'tissue': 0.18, 'tissue-r2prime': 0.18, 'nuclei': 0.16}
    for name, most in (('head-1mm', limits), ('head-2mm', {'contrast': 0.26})):
        for arm, limit in most.items():
            found = records.get(name, {}).get(arm)
            if found:
                what = {
                    'contrast': 'no segmentation',
                    'tissue': 'tissue maps',
                    'tissue-r2prime': "tissue maps and R2' by tissue",
                    'nuclei': 'tissue maps with nuclei',
                }[arm]
                row(
                    f'{name[5]} mm, {what}: NRMSE',
                    f'at most {percent(limit, 0)} %',
                    f'{percent(nrmse(found))} %',
                    nrmse(found) <= limit,
                )
    one = records.get('head-1mm', {})
    for arm, limit in (('nuclei', 0.10), ('contrast', 0.15)):
        if arm in one:
            off = worst_nucleus(one[arm])
            row(
                f'1 mm, {"nuclei given" if arm == "nuclei" else "no segmentation"}: each nucleus',
                f'within {percent(limit, 0)} %',
                f'{percent(off)} %',
                off <= limit,
            )
    for name in ('hard-1mm', 'hard-2mm'):
        found = records.get(name, {})
        if CONVENTIONAL in found and DEFAULT in found:
            share = nrmse(found[DEFAULT]) / nrmse(found[CONVENTIONAL], 'best')
            row(
                f'hard, {name[5]} mm, no segmentation: NRMSE over that of conventional at its '
                'best lambda',
                'at most 0.6',
                f'{share:.2f}',
                share <= 0.6,
            )
            for lesion in LESIONS:
                if lesion in found[DEFAULT]['true']:
                    value = ratio(found[DEFAULT], lesion)
                    row(
                        f'hard, {name[5]} mm, no segmentation: {lesion}s over their true mean',
                        'at least 0.8',
                        f'{value:.2f}',
                        value >= 0.8,
                    )
    pairs = [
        (name, arms) for name, arms in records.items() if CONVENTIONAL in arms and DEFAULT in arms
    ]
    harm = [
        name for name, arms in pairs if nrmse(arms[DEFAULT]) > nrmse(arms[CONVENTIONAL], 'best')
    ]
    row(
        'the default prior is never worse than conventional, even at its best lambda',
        f'in {len(pairs)} heads',
        f'worse in {", ".join(harm)}' if harm else f'better in {len(pairs)}',
        not harm,
    )
    if against := fought(records):
        row(*opponents_page.target(against, 'every head, no segmentation', 0.6))
    for name, record in covered.items():
        z = scores(record)
        for number, share in enumerate(np.mean(np.abs(z) <= 2, axis=0), start=1):
            which = f', coefficient {number}' if z.shape[1] > 1 else ''
            row(
                f'standard errors, {COVERED[name]}{which}: seeds with the truth within two',
                'at least 90 of 100',
                f'{round(share * len(z))} of {len(z)}',
                share >= 0.9,
            )
    return f"""## Targets

{table(('', 'target', 'found', 'met'), rows)}"""


def maps_section(cases, arms, records):
    """NRMSE and values of every head."""
    parts = ['## Every head']
    for name, case in cases.items():
        found = {arm: r for arm, r in records[name].items() if arm not in WRONG}
        if not found or name.startswith('relaxivity'):
            continue
        regions = [n for n in NUCLEI + LESIONS if n in next(iter(found.values()))['true']]
        rows = []
        for arm, record in found.items():
            if arm.endswith(('-zero', '-known', '-literature')):
                continue
            rows.append(
                (
                    title(arms, arm),
                    percent(nrmse(record)),
                    percent(nrmse(record, 'best')),
                    f'{record["rules"]["default"]["weight"]:.3f}',
                    *(f'{ratio(record, region):.2f}' for region in regions),
                )
            )
        true = next(iter(found.values()))['true']
        rows.append(('true, ppm', '', '', '', *(f'{true[n] - true["WM"]:.3f}' for n in regions)))
        first = next(iter(found.values()))
        share = first['coverage']
        picture = ''
        if pictured(name, found):
            picture = (
                '\n\n![True map, conventional and preconditioned ones, and what is left of the '
                f'truth, ppm](figures/heads_{name}.png)'
            )
        parts.append(f"""### {case.title[0].upper() + case.title[1:]}

{first['brain_voxels']} voxels in the brain, of which the region of interest holds
{percent(share)} %.

{table(('', 'NRMSE, %', 'at the best lambda, %', 'lambda, mm', *regions), rows)}{picture}""")
    return '\n\n'.join(parts)


def wrong_section(cases, arms, records):
    """How the result degrades with a wrong relaxivity, segmentation or R2."""
    parts = ['## What if the model is wrong', 'All on the 2 mm head.']
    head = records['head-2mm']
    rows = []
    for name, value in (
        ('relaxivity-114', 114), ('head-2mm', 137), ('relaxivity-274', 274),
        ('relaxivity-323', 323),
    ):  # fmt: skip
        found = records.get(name, {})
        columns = (CONVENTIONAL, 'r2prime', 'contrast', 'tissue', 'nuclei')
        if any(arm in found for arm in columns):
            rows.append(
                (value, *(percent(nrmse(found[a])) if a in found else '' for a in columns))
            )
    if rows:
        head_row = (
            'relaxivity, Hz/ppm', CONVENTIONAL, "bare R2' prior", 'contrast', 'tissue maps',
            'tissue maps with nuclei',
        )  # fmt: skip
        parts.append(f"""**Relaxivity** in the simulation; the reconstruction does not know it.
NRMSE, %:

{table(head_row, rows)}""")
    rows = [
        (
            'right' if arm == 'nuclei' else arms[arm].title,
            percent(nrmse(head[arm])),
            percent(worst_nucleus(head[arm]), 0),
            percent(head[arm]['stages']['prior_fit']['explained']),
            '; '.join(head[arm]['stages']['prior_fit']['warnings']) or 'none',
        )
        for arm in ('nuclei', *WRONG)
        if arm in head
    ]
    if rows:
        columns = (
            'tissue maps with nuclei', 'NRMSE, %', 'worst nucleus, %',
            'explained of the local field, %', 'warnings',
        )  # fmt: skip
        parts.append(f"""**Segmentation.** Conventional has
{percent(nrmse(head[CONVENTIONAL]))} % ({percent(nrmse(head[CONVENTIONAL], 'best'))} % at its best
lambda), the contrast prior, which reads no segmentation, {percent(nrmse(head[DEFAULT]))} %.
Constants do not depend on the names of their classes: swapped names leave the map as it is, and
only values that are read by name are wrong.

{table(columns, rows)}""")
    rows = []
    for prior, rates in (
        ("bare R2' prior", ('r2prime-zero', 'r2prime', 'r2prime-known')),
        (
            "tissue maps with nuclei, R2' by tissue",
            ('nuclei-zero', 'nuclei-r2prime', 'nuclei-literature', 'nuclei-known'),
        ),
    ):
        for arm in rates:
            if arm in head:
                r2 = arms[arm].title
                if arm in ('r2prime', 'nuclei-r2prime'):
                    r2 = 'median R2\\* of the region (default)'
                rows.append((prior, r2, percent(nrmse(head[arm]))))
    if rows:
        parts.append(f"""**R2.** The contrast prior and tissue maps alone do not use it.

{table(('prior', 'R2', 'NRMSE, %'), rows)}""")
    return '\n\n'.join(parts)


def contrasts_section(cases, records):
    """What a further contrast gains."""
    rows = []
    for name, found in records.items():
        pair = [found.get(arm) for arm in (DEFAULT, 'contrast-t1w')]
        if not all(pair):
            continue
        worst = [100 * worst_nucleus(record) for record in pair]
        errors = [nrmse(record) for record in pair]
        rows.append(
            (
                cases[name].title,
                *(percent(error) for error in errors),
                f'{100 * (1 - errors[1] / errors[0]):.0f}',
                *(f'{value:.0f}' for value in worst),
            )
        )
    if not rows:
        return ''
    head = (
        '', 'R2\\*, magnitude: NRMSE, %', 'and T1w: NRMSE, %', 'less by, %',
        'worst nucleus, %', 'with T1w, %',
    )  # fmt: skip
    return f"""## A further contrast

`--prior contrast --contrasts T1w`, with a magnetisation-prepared image of the same head (TI 0.9 s,
SNR 40) on the same grid. In the phantom T1 is one value for each tissue, its lesions have that of
white matter, and nothing moves: a living head gains less.

{table(head, rows)}"""


def summary(records):
    """What follows, from the measures."""
    lines = []
    hard = {n: r for n, r in records.items() if DEFAULT in r and CONVENTIONAL in r}
    if hard:
        shares = [nrmse(r[DEFAULT]) / nrmse(r[CONVENTIONAL], 'best') for r in hard.values()]
        lines.append(
            f'- The default prior, without any segmentation, has {percent(min(shares), 0)} to '
            f'{percent(max(shares), 0)} % of the conventional error at its best lambda in '
            f'hindsight, over {len(shares)} heads.'
        )
        bare = [
            name
            for name, r in hard.items()
            if 'r2prime' in r and nrmse(r['r2prime']) > nrmse(r[CONVENTIONAL])
        ]
        lines.append(
            f"- The bare R2' prior is worse than conventional in {len(bare)} of {len(hard)}: R2' "
            'has no sign, and white matter is diamagnetic. Do not use it in a brain.'
        )
    lesions = [
        ratio(r[DEFAULT], lesion)
        for r in hard.values()
        for lesion in LESIONS
        if lesion in r[DEFAULT]['true']
    ]
    if lesions:
        lines.append(
            '- What no contrast shows comes from the residual, as sources of their own: '
            'microbleeds and calcifications that the magnitude hides have '
            f'{percent(min(lesions), 0)} to {percent(max(lesions), 0)} % of their true value. '
            f'Their sign is {"right" if min(lesions) > 0 else "not always right"}. '
            'Weaker ones do not stand out of it, and are underestimated.'
        )
    lines.append(
        '- In these heads, contrast goes with susceptibility by construction (R2\\* from the same '
        'two parts, in proportion); the hard head breaks that in places. In a living brain the '
        'anisotropy of white matter, flow, fat and motion come on top, none of which is here.'
    )
    return '## What follows\n\n' + '\n'.join(lines)


def scores(record):
    """Departure from the truth in standard errors, (seeds, coefficients)."""
    rows = np.array(record['rows'])
    return (rows[..., 0] - rows[..., 2]) / rows[..., 1]


def coverage_section(covered):
    """Standard errors over the noise."""
    rows = []
    for name, record in covered.items():
        found, z = np.array(record['rows']), scores(record)
        for j in range(found.shape[1]):
            c, error, true = found[:, j].T
            rows.append(
                (
                    COVERED[name],
                    f'{true.mean():.3f}',
                    f'{c.mean():.4f}',
                    f'{c.std():.4f}',
                    f'{error.mean():.4f}',
                    f'{z[:, j].mean():+.2f}',
                    round(100 * np.mean(np.abs(z[:, j]) <= 2)),
                )
            )
    if not rows:
        return ''
    head = (
        '', 'true coefficient', 'mean found', 'sd over the seeds', 'mean standard error',
        'mean departure over it', 'within two, % of the seeds',
    )  # fmt: skip
    seeds = ' and '.join(str(len(record['rows'])) for record in covered.values())
    return f"""## Standard errors

{seeds} seeds of the noise, from the echoes on. *Tubes*: two of them diamagnetic, at half the
matrix, one coefficient for each connected cluster of R2'. *Head*: 3 mm, the true map as the prior
(`map:FILE`), whose coefficient is 1. The spread over the seeds is much less than the standard
error: what departs from the truth is not noise but what the model lacks (the phase offset,
background, signal that decays within the voxel), which is the same for every seed, and which the
standard error is meant to count.

{table(head, rows)}"""


def timings(cases, arms, records):
    """Seconds of the nodes."""
    parts = []
    for name in ('head-1mm', 'head-2mm'):
        found = records[name].get(DEFAULT)
        if found:
            seconds = found['node_seconds']
            rows = [(node, f'{value:.1f}') for node, value in seconds.items() if value >= 0.1]
            parts.append(f"""{cases[name].title}, contrast prior:

{table(('node', 'seconds'), rows)}""")
    if not parts:
        return ''
    joined = '\n\n'.join(parts)
    return f"""## Time

Seconds of the workflow's nodes, files read and written included, 2 threads, on a machine that
others used as well.

{joined}"""


# --- figures ---------------------------------------------------------------------------------


def draw_maps(cache, name, found, arms):
    """Sections: true, conventional and preconditioned maps, and what is left of the truth."""
    shown = [arm for arm in (CONVENTIONAL, DEFAULT, 'nuclei') if arm in found]
    loaded = {}
    for arm in shown:
        with np.load(cache / f'{name}--{arm}.npz') as arrays:
            loaded[arm] = {key: arrays[key].astype(np.float32) for key in arrays}
    size = loaded[CONVENTIONAL]['voxel_size']
    columns = [('true', 'true', None)]
    columns += [(title(arms, arm), arm, None) for arm in shown]
    columns += [(f'{title(arms, arm)}, less truth', arm, 'true') for arm in shown]
    planes = {'axial': (0, 1), 'low': (0, 1), 'coronal': (0, 2)}
    heights = [
        loaded[CONVENTIONAL][f'true-{plane}'].shape[1] * size[up]
        for plane, (_, up) in planes.items()
    ]
    figure = Figure(figsize=(1.6 * len(columns), 5.4), layout='constrained')
    axes = figure.subplots(len(planes), len(columns), height_ratios=heights)
    for row, (plane, (along, up)) in zip(axes, planes.items(), strict=True):
        for ax, (label, arm, other) in zip(row, columns, strict=True):
            source = loaded[CONVENTIONAL if arm == 'true' else arm]
            values = source[f'{arm}-{plane}']
            if other:
                values = values - source[f'{other}-{plane}']
            limits = (-0.1, 0.1) if other else (-0.1, 0.2)
            image = ax.imshow(
                values.T, cmap='gray', origin='lower', aspect=size[up] / size[along],
                vmin=limits[0], vmax=limits[1], interpolation='nearest',
            )  # fmt: skip
            ax.set_axis_off()
            if plane == 'axial':
                ax.set_title(label.replace(', no segmentation', ''), fontsize=7)
            if plane == 'coronal':
                bar = figure.colorbar(image, ax=ax, orientation='horizontal', shrink=0.8)
                bar.set_ticks([limits[0], 0, limits[1]])
                bar.ax.tick_params(labelsize=6)
    return figure


def write(folder, cache, cases, arms, records, covered, versions, stale, quick):
    """Write ``heads.md`` and its figures to a folder."""
    (folder / 'figures').mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        for name, found in records.items():
            if pictured(name, found):
                save_figure(draw_maps(cache, name, found, arms), folder, f'heads_{name}')
    parts = [
        introduction(cases, records, covered, versions, stale, quick),
        targets(records, covered),
        maps_section(cases, arms, records),
        opponents_page.section({cases[n].title: pair for n, pair in fought(records).items()}),
        wrong_section(cases, arms, records),
        contrasts_section(cases, records),
        coverage_section(covered),
        summary(records),
        timings(cases, arms, records),
    ]
    save_text(reflow('\n\n'.join(part for part in parts if part)), folder / 'heads.md')
