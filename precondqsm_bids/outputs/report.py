"""The report of a participant: the numbers of a run, and what the page shows of them."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from precondqsm_bids import __version__
from precondqsm_bids.outputs.charts import ARMS
from precondqsm_bids.outputs.citations import Methods, write_out
from precondqsm_bids.outputs.dataset import fieldmap_stem
from precondqsm_bids.outputs.figures import BEFORE_MAP, FIGURES, SECTIONS, FigureText
from precondqsm_bids.outputs.files import natural, write_atomic
from precondqsm_bids.outputs.lights import LEVELS, LIGHTS
from precondqsm_bids.outputs.lights import lights as lights_of
from precondqsm_bids.outputs.maps import VALUES, WRITTEN, up_to_flattening
from precondqsm_bids.outputs.page import render
from precondqsm_bids.outputs.record import report_rows, warnings_of
from precondqsm_bids.outputs.reporting import reporting_rows
from precondqsm_bids.outputs.sentences import text_of_runs
from precondqsm_bids.outputs.sidecars import Facts, Record, echo_spacing
from precondqsm_bids.outputs.tables import read_table, refer_prior
from precondqsm_bids.outputs.wording import (
    as_options,
    fixed,
    known_voxels,
    number,
    signed,
    stopped,
    volume,
)

SUMMARY = 'desc-summary_report.json'
"""End of the name of the file with the numbers of a run, beside its figures."""

LIGHTS_BEFORE_MAP = ('sign', 'echoes', 'region', 'prior')
"""Those of a run that was stopped after the flattening."""

MEDIA = {'png': 'image/png', 'svg': 'image/svg+xml'}


class Account(NamedTuple):
    """What the outputs of the nodes do not say of a participant; None where it is not known."""

    runs: Mapping[str, Mapping[str, Any]] | None = None
    """Each run that should be there (``sub-01_ses-a_run-1``), with what its last call left to say:
    ``crash_files`` and ``notes``, as below. One that left nothing is said to be missing."""
    command: str | None = None
    """Command line."""
    boilerplate: str | None = None
    """Methods text as planned, whose paragraphs blank lines separate."""
    crash_files: Mapping[str, str] | None = None
    """Crash file of each failure that is of no particular run, and its message."""
    notes: Sequence[str] | None = None
    """What was found wrong with the input or left out of it, and stopped nothing; of no particular
    run."""
    log: str | None = None
    """Log of the call, from the output folder; the time is part of its name."""
    finished: str | None = None
    """Date and time at which the outputs of this participant were complete."""
    seconds: float | None = None
    """Time from the start of the call until then."""
    versions: Mapping[str, str] | None = None
    """Versions of the programs and packages that computed them."""


def summarise(
    facts: Facts, record: Record, curves: Mapping[str, Mapping[str, Any]], **stored: Any
) -> dict[str, Any]:
    """The numbers that the report shows of a run, so that it can be made again from disk.

    ``curves`` has ``l_curve`` and ``conventional_l_curve``, as far as there are; ``stored`` is
    ``run`` (its entities), ``orientation`` (of the stored axes, such as ``RAS``), ``b0_tilt``
    (angle of B0 to the nearest of them, degrees), ``snr`` (signal over the noise of a channel) and
    ``prior_mean`` (of the prior in the reference, ppm; None where bodies differ in it).
    """
    known = facts._asdict()
    metadata = known.pop('metadata')
    scanner = ('Manufacturer', 'ManufacturersModelName')
    judged = lights_of(record, metadata)
    if stopped(record):
        judged = {name: judged[name] for name in LIGHTS_BEFORE_MAP}
    return {
        **known,
        **stored,
        'version': __version__,
        'echo_spacing': echo_spacing(facts.echo_times),
        'scanner': {key: metadata[key] for key in scanner if key in metadata},
        'record': record,
        'lights': {name: light._asdict() for name, light in judged.items()},
        'l_curve': curves.get('l_curve', {}),
        'conventional_l_curve': curves.get('conventional_l_curve', {}),
    }


def write_report(
    output_dir: str | Path,
    subject: str,
    account: Account = Account(),  # noqa: B008 (never changed)
    self_contained: bool = False,
    of_some: bool = False,
) -> Path:
    """Assemble ``sub-XX.html`` from the figures and numbers on disk; its path.

    The account is kept beside the figures, and what a later call leaves out of it is read back
    (``--reports-only``).

    Parameters
    ----------
    output_dir, subject : path_like, str
        The derivatives, and the participant, with or without ``sub-``.
    account : Account
        What cannot be read from the outputs of the nodes.
    self_contained : bool
        Whether the figures are inside the page, which then links to no other file.
    of_some : bool
        Whether the account may be of some of the runs only: what an earlier call left to say of
        the others is kept.
    """
    output_dir = Path(output_dir)
    subject = subject.removeprefix('sub-')
    figures = output_dir / f'sub-{subject}' / 'figures'
    about_file = figures / f'sub-{subject}_desc-about_report.json'
    about: dict[str, Any] = {
        'runs': {}, 'command': '', 'log': '', 'boilerplate': '', 'crash_files': {}, 'notes': [],
        'finished': '', 'seconds': None, 'versions': {},
    }  # fmt: skip
    about |= _read_json(about_file)
    if isinstance(about['runs'], list):  # of an earlier version
        about['runs'] = {name: {} for name in about['runs']}
    earlier = about['runs'] if of_some else {}
    about |= {key: value for key, value in account._asdict().items() if value is not None}
    about['runs'] = earlier | {
        name: earlier.get(name, {}) | said for name, said in about['runs'].items()
    }
    write_atomic(about_file, json.dumps(about, indent=2) + '\n')

    found = {
        path.name.removesuffix(f'_{SUMMARY}'): _read_json(path)
        for path in figures.glob(f'*_{SUMMARY}')
    }
    names = sorted({*found, *about['runs']}, key=natural)
    crashes, notes = about['crash_files'], about['notes']
    for name in names:
        said = about['runs'].get(name, {})
        crashes, notes = crashes | said.get('crash_files', {}), notes + said.get('notes', [])
    page = render(
        'report.html',
        subject=subject,
        about=about | {'notes': notes},
        methods=_methods(
            {
                name: _with_map(found[name], _sidecar(output_dir, subject, name))
                for name in sorted(found)
            },
            about['boilerplate'],
        ),
        some_stopped=any(stopped(summary.get('record', {})) for summary in found.values()),
        crashes=[_crash(Path(f), text) for f, text in crashes.items()],
        runs=[
            _run_section(output_dir, subject, name, found.get(name), self_contained)
            for name in names
        ],
        lights=LIGHTS,
        levels=LEVELS,
        sections=SECTIONS,
        self_contained=self_contained,
    )
    return write_atomic(output_dir / f'sub-{subject}.html', page)


def completed(output_dir: Path, subject: str, since: float) -> dict[str, dict[str, Any]]:
    """Runs of a participant that left their numbers, or a map, since a time, and these numbers."""
    figures = output_dir / f'sub-{subject}' / 'figures'
    found = {}
    for path in sorted(figures.glob(f'*_{SUMMARY}')):
        name = path.name.removesuffix(f'_{SUMMARY}')
        beside = _sidecar_path(output_dir, subject, name)
        if any(p.stat().st_mtime >= since for p in (path, beside) if p):
            found[name] = _with_map(_read_json(path), _read_json(beside) if beside else {})
    return found


def _with_map(summary: Mapping[str, Any], sidecar: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers of a run with those of the map that another program inverted, if there is one."""
    if stopped(summary.get('record', {})) and 'take_map' in sidecar.get('Parameters', {}):
        more = {'record': sidecar['Parameters'], 'settings': sidecar.get('Settings')}
        return {**summary, **more}
    return {**summary}


def _methods(summaries: Mapping[str, Mapping[str, Any]], planned: str) -> Methods:
    """Methods text of the runs with maps; the planned one where their numbers do not tell it."""
    return write_out(text_of_runs(summaries) or (planned if any(summaries.values()) else ''))


def run_warnings(output_dir: str | Path, subject: str, name: str) -> list[str]:
    """Warnings that the stages of a run left, from the numbers beside its figures."""
    path = Path(output_dir) / f'sub-{subject}' / 'figures' / f'{name}_{SUMMARY}'
    return _warnings(_read_json(path))


def _run_section(
    output_dir: Path,
    subject: str,
    name: str,
    summary: Mapping[str, Any] | None,
    self_contained: bool,
) -> dict[str, Any]:
    """What the template shows of one run."""
    table = next(iter((output_dir / f'sub-{subject}').glob(f'**/anat/{name}_{VALUES}')), None)
    rows = read_table(table) if table else []
    early = stopped((summary or {}).get('record', {}))
    sidecar = _sidecar(output_dir, subject, name)
    resumed = early and 'take_map' in sidecar.get('Parameters', {})
    figures = []
    for figure in BEFORE_MAP if early else FIGURES:
        path = Path(f'sub-{subject}') / 'figures' / f'{name}_{figure.name}'
        expected = not figure.optional or (figure.desc == 'rois' and table is not None)
        if expected or (output_dir / path).is_file():
            figures.append(_figure(figure, output_dir, path, self_contained))
    known = summary or any(figure['path'] for figure in figures)
    return {
        'name': name,
        'title': name.removeprefix(f'sub-{subject}').lstrip('_').replace('_', ', ') or 'Results',
        'stopped': 'resumed' if resumed else 'stopped' if early else '',
        'maps': _maps(output_dir, subject, name, early and not resumed),
        'reporting': reporting_rows(sidecar) if sidecar and early == resumed else [],
        'figures': figures if known else [],
        'stack': [figure for figure in figures if figure['stacked']],
        'table_path': table.relative_to(output_dir).as_posix() if table else '',
    } | _numbers(summary or {}, sidecar) | _table(rows, summary or {})  # fmt: skip


def _figure(
    figure: FigureText, output_dir: Path, path: Path, self_contained: bool
) -> dict[str, Any]:
    """Text and image of a figure; no path and no source where there is no file."""
    file = output_dir / path
    if not file.is_file():
        return {**figure._asdict(), 'name': figure.name, 'path': None, 'source': None}
    source, size = f'./{path.as_posix()}', None
    with file.open('rb') as stream:
        start = stream.read(24)
    if start.startswith(b'\x89PNG') and len(start) == 24:
        size = struct.unpack('>II', start[16:])
    if self_contained:
        data = base64.b64encode(file.read_bytes()).decode('ascii')
        source = f'data:{MEDIA[figure.extension]};base64,{data}'
    return {
        **figure._asdict(),
        'name': figure.name,
        'path': path.as_posix(),
        'source': source,
        'size': size,
    }


def _table(rows: list[dict[str, Any]], summary: Mapping[str, Any]) -> dict[str, Any]:
    """The rows and columns of the table of values that have some, and the labels without."""
    rows = refer_prior(rows, summary.get('prior_mean', 0.0))
    empty = [str(row['name']) for row in rows if row.get('precond_chi_mean') is None]
    rows = [row for row in rows if row.get('precond_chi_mean') is not None]
    return {
        'table': rows,
        'outside': empty,
        'has_medium': any(row.get('precond_chi_minus_medium') is not None for row in rows),
        'has_reference': any(
            row.get(key) is not None
            for row in rows
            for key in ('cylinder_reference', 'cylinder_reference_note')
        ),
        'arms': [
            (arm, words)
            for arm, words in ARMS.items()
            if any(row.get(f'{arm}_chi_mean') is not None for row in rows)
        ],
    }


def _maps(output_dir: Path, subject: str, name: str, early: bool) -> list[tuple[str, str]]:
    """Path from the output folder and words of each map of a run that is there.

    ``early``: of those before the inversion; others are of another call.
    """
    found = []
    for output in map(WRITTEN.__getitem__, up_to_flattening(WRITTEN) if early else WRITTEN):
        stem = fieldmap_stem(name) if output.datatype == 'fmap' else name
        pattern = f'**/{output.datatype}/{stem}_{output.ending}.nii.gz'
        for path in (output_dir / f'sub-{subject}').glob(pattern):
            found.append((path.relative_to(output_dir).as_posix(), output.words))
    return found


def _sidecar_path(output_dir: Path, subject: str, name: str) -> Path | None:
    """Sidecar of a run's map; None where there is none."""
    pattern = f'**/anat/{name}_desc-precond_Chimap.json'
    return next(iter((output_dir / f'sub-{subject}').glob(pattern)), None)


def _sidecar(output_dir: Path, subject: str, name: str) -> dict[str, Any]:
    """What it says; empty where there is none."""
    path = _sidecar_path(output_dir, subject, name)
    return _read_json(path) if path else {}


def _numbers(summary: Mapping[str, Any], sidecar: Mapping[str, Any]) -> dict[str, Any]:
    """What the template shows of the numbers of one run, empty where there are none.

    The sidecar of its map has the warnings of one that another program inverted.
    """
    record = summary.get('record', {})
    judged = 'median_field_sd' in record.get('echo_fit', {})
    return {
        'lights': summary.get('lights', {}),
        'verdict': _verdict(
            summary.get('lights', {}), 'field and prior' if stopped(record) else 'the map'
        ),
        'facts': _facts(summary) if summary else '',
        'summary': _summary_rows(summary) if summary else [],
        'quality': report_rows(record, of_field=True) if judged else [],
        'echo_phase': _echo_phase_rows(summary),
        'bodies': _body_rows(record),
        'warnings': _warnings(_with_map(summary, sidecar)),
        'record': json.dumps(record, indent=2) if summary else '',
        'sources': list(summary.get('sources', ())),
    }


def _verdict(found: Mapping[str, Mapping[str, Any]], of: str = 'the map') -> str:
    """What the lights say together of the map, or of what comes before; the worst first."""
    if not found:
        return ''
    said = []
    for level, meaning in reversed(list(LEVELS.items())):
        names = [
            row.heading
            for row in LIGHTS
            if row.name in found and found[row.name]['level'] == level
        ]
        if names and level != 'good':
            said.append(f'{level.capitalize()}: {", ".join(names)} ({meaning}).')
    good = sum(light['level'] == 'good' for light in found.values())
    if good == len(found):
        return f'All {good} lights are good: no test of this program speaks against {of}.'
    return ' '.join([*said, f'Good: {good} of {len(found)}.'])


def _facts(summary: Mapping[str, Any]) -> str:
    """The acquisition and the region in one line."""
    echoes = len(summary['echo_times'])
    voxel = ' × '.join(number(v) for v in summary['voxel_size'])
    parts = [
        f'{number(summary["field_strength"])} T',
        f'{echoes} echo{"es" * (echoes != 1)}, {summary["echo_spacing"]}'
        if echoes
        else 'field given',
        f'voxels of {voxel} mm',
    ]
    if voxels := known_voxels(summary.get('record', {})):
        parts.append(f'region of {number(volume(voxels, summary["voxel_size"]))} ml')
    if summary.get('snr') is not None:
        parts.append(f'signal over noise {summary["snr"]:.3g}')
    return '; '.join(parts)


def _summary_rows(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    scanner = ' '.join(summary.get('scanner', {}).values())
    matrix = ' × '.join(str(n) for n in summary['matrix'])
    voxel = ' × '.join(number(v) for v in summary['voxel_size'])
    snr = summary.get('snr')
    of_s0 = len(summary['echo_times']) > 1
    signal = 'S0, the signal at echo time zero,' if of_s0 else 'magnitude'
    words = (
        f'{number(snr)} in the median voxel of the region: {signal} over the noise of a channel'
    )
    return [
        ('Field strength', f'{number(summary["field_strength"])} T {scanner}'.strip()),
        ('Echoes', f'{len(summary["echo_times"])} ({summary["echo_spacing"]})'),
        ('Matrix', f'{matrix}, voxels of {voxel} mm, stored {summary["orientation"]}'),
        ('B0 to the slice axis', f'{number(summary["b0_tilt"])}°'),
        *([('Signal over noise', words)] if snr is not None else []),
        *report_rows(summary.get('record', {}), of_field=False),
    ]


def _echo_phase_rows(summary: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Phase that was taken off each echo, if any: number, TE, constant, gradient, size."""
    found = summary.get('record', {}).get('echo_fit', {}).get('echo_phase')
    if not found or not any(found['size']):
        return []
    columns = (summary['echo_times'], found['constant'], found['gradient'], found['size'])
    return [
        (
            str(echo),
            fixed(1e3 * time, 2),
            fixed(constant, 3),
            *(fixed(value, 4) for value in gradient),
            fixed(size, 3),
        )
        for echo, (time, constant, gradient, size) in enumerate(zip(*columns, strict=True), 1)
    ]


def _body_rows(record: Record) -> list[tuple[str, ...]]:
    """Each of several bodies: number, voxels, volume, turns, reference, explained."""
    found = record.get('recombination', {}).get('bodies', ())
    turns = record.get('echo_fit', {}).get('body_turns') or [0] * (len(found) - 1)
    shares = record.get('comparison', {}).get('explained_by_body') or [None] * len(found)
    return [
        (
            str(i),
            str(body['voxels']),
            f'{body["volume"]:.1f}',
            signed(turn),
            'none'
            if body['reference'] == 'none'
            else f'{body["reference"]}: {number(body["reference_value"])} ppm subtracted',
            'n/a' if share is None else f'{share:.1%}'.replace('-', '−'),
        )
        for i, (body, turn, share) in enumerate(zip(found, [0, *turns], shares, strict=False), 1)
    ]


def _warnings(summary: Mapping[str, Any]) -> list[str]:
    """Every warning that a stage left, with the stage's name, each once."""
    sources = {
        **summary.get('record', {}),
        'L-curve': summary.get('l_curve', {}),
        'conventional L-curve': summary.get('conventional_l_curve', {}),
    }
    seen: dict[str, str] = {}
    for stage, text in warnings_of(sources):
        arm = next((f'{a} ' for a in ('conventional', 'consensus') if stage.startswith(a)), '')
        seen.setdefault(f'{arm}{text}', f'{stage.replace("_", " ")}: {as_options(text)}')
    return list(seen.values())


def _crash(path: Path, message: str) -> dict[str, str]:
    """Message, place and text of a crash file; a pickled one has no text."""
    text = ''
    if path.suffix == '.txt' and path.is_file():
        text = path.read_text(errors='replace')
    return {'message': message, 'path': str(path), 'text': text}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding='utf-8'))
    except FileNotFoundError:
        return {}
