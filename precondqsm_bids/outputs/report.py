"""The report of a participant: the numbers of a run, and what the page shows of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from precondqsm_bids import __version__
from precondqsm_bids.outputs.figures import FIGURES, ROI_ARMS
from precondqsm_bids.outputs.files import natural, write_atomic
from precondqsm_bids.outputs.lights import LEVELS, LIGHTS
from precondqsm_bids.outputs.lights import lights as lights_of
from precondqsm_bids.outputs.maps import WRITTEN
from precondqsm_bids.outputs.page import methods, render
from precondqsm_bids.outputs.record import report_rows, warnings_of
from precondqsm_bids.outputs.sidecars import Facts, Record, echo_spacing
from precondqsm_bids.outputs.tables import read_table
from precondqsm_bids.outputs.wording import fixed, number, signed

SUMMARY = 'desc-summary_report.json'
"""End of the name of the file with the numbers of a run, beside its figures."""


class Account(NamedTuple):
    """What the outputs of the nodes do not say of a participant; None where it is not known."""

    runs: Sequence[str] | None = None
    """Names of the runs that should be there (``sub-01_ses-a_run-1``); one that left nothing is
    said to be missing."""
    command: str | None = None
    """Command line."""
    boilerplate: str | None = None
    """Methods text, whose paragraphs blank lines separate."""
    crash_files: Mapping[str, str] | None = None
    """Crash file of each failure, and its message."""
    notes: Sequence[str] | None = None
    """What was found wrong with the input or left out of it, and stopped nothing."""
    log: str | None = None
    """Log of the call, from the output folder; the time is part of its name."""


def summarise(
    facts: Facts, record: Record, curves: Mapping[str, Mapping[str, Any]], **stored: Any
) -> dict[str, Any]:
    """The numbers that the report shows of a run, so that it can be made again from disk.

    ``curves`` has ``l_curve`` and ``conventional_l_curve``, as far as there are; ``stored`` is
    ``run`` (its entities), ``orientation`` (of the stored axes, such as ``RAS``) and ``b0_tilt``
    (angle of B0 to the nearest of them, degrees).
    """
    known = facts._asdict()
    metadata = known.pop('metadata')
    scanner = ('Manufacturer', 'ManufacturersModelName')
    return {
        **known,
        **stored,
        'version': __version__,
        'echo_spacing': echo_spacing(facts.echo_times),
        'scanner': {key: metadata[key] for key in scanner if key in metadata},
        'record': record,
        'lights': {name: light._asdict() for name, light in lights_of(record, metadata).items()},
        'l_curve': curves.get('l_curve', {}),
        'conventional_l_curve': curves.get('conventional_l_curve', {}),
    }


def write_report(
    output_dir: str | Path,
    subject: str,
    account: Account = Account(),  # noqa: B008 (never changed)
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
    """
    output_dir = Path(output_dir)
    subject = subject.removeprefix('sub-')
    figures = output_dir / f'sub-{subject}' / 'figures'
    about_file = figures / f'sub-{subject}_desc-about_report.json'
    about: dict[str, Any] = {
        'runs': [], 'command': '', 'log': '', 'boilerplate': '', 'crash_files': {}, 'notes': [],
    }  # fmt: skip
    about |= _read_json(about_file)
    if isinstance(about['crash_files'], list):  # of an earlier version, without messages
        about['crash_files'] = {path: Path(path).name for path in about['crash_files']}
    about |= {key: value for key, value in account._asdict().items() if value is not None}
    write_atomic(about_file, json.dumps(about, indent=2) + '\n')

    found = {
        path.name.removesuffix(f'_{SUMMARY}'): _read_json(path)
        for path in figures.glob(f'*_{SUMMARY}')
    }
    names = sorted({*found, *about['runs']}, key=natural)
    paragraphs, references = methods(about['boilerplate'])
    page = render(
        'report.html',
        subject=subject,
        about=about,
        paragraphs=paragraphs,
        references=references,
        crashes=[_crash(Path(f), text) for f, text in about['crash_files'].items()],
        runs=[_run_section(output_dir, subject, name, found.get(name)) for name in names],
        lights=LIGHTS,
        levels=LEVELS,
        arms=ROI_ARMS,
    )
    return write_atomic(output_dir / f'sub-{subject}.html', page)


def run_warnings(output_dir: str | Path, subject: str, name: str) -> list[str]:
    """Warnings that the stages of a run left, from the numbers beside its figures."""
    path = Path(output_dir) / f'sub-{subject}' / 'figures' / f'{name}_{SUMMARY}'
    return _warnings(_read_json(path))


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
        figures.append(
            {**figure._asdict(), 'name': figure.name, 'path': path.as_posix() if exists else None}
        )
    rows = read_table(table) if table else []
    return {
        'name': name,
        'title': name.removeprefix(f'sub-{subject}').lstrip('_').replace('_', ', ') or 'Results',
        'maps': _maps(output_dir, subject, name),
        'figures': figures if summary or any(f['path'] for f in figures) else [],
        'table': rows,
        'has_medium': bool(rows) and 'precond_chi_minus_medium' in rows[0],
        'table_path': table.relative_to(output_dir).as_posix() if table else '',
    } | _numbers(summary or {})


def _maps(output_dir: Path, subject: str, name: str) -> list[tuple[str, str]]:
    """Path from the output folder and words of each map of a run that is there."""
    found = []
    for output in WRITTEN.values():
        # Under fmap, entities that BIDS does not allow there are folded into acq.
        pattern = f'**/{output.datatype}/{name}_{output.ending}.nii.gz'
        for path in (output_dir / f'sub-{subject}').glob(pattern):
            found.append((path.relative_to(output_dir).as_posix(), output.words))
    return found


def _numbers(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What the template shows of the numbers of one run, empty where there are none."""
    record = summary.get('record', {})
    judged = 'median_field_sd' in record.get('echo_fit', {})
    return {
        'lights': summary.get('lights', {}),
        'summary': _summary_rows(summary) if summary else [],
        'quality': report_rows(record, of_field=True) if judged else [],
        'echo_phase': _echo_phase_rows(summary),
        'bodies': _body_rows(record),
        'warnings': _warnings(summary),
        'record': json.dumps(record, indent=2) if summary else '',
        'sources': list(summary.get('sources', ())),
    }


def _summary_rows(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    scanner = ' '.join(summary.get('scanner', {}).values())
    matrix = ' × '.join(str(n) for n in summary['matrix'])
    voxel = ' × '.join(number(v) for v in summary['voxel_size'])
    return [
        ('Field strength', f'{number(summary["field_strength"])} T {scanner}'.strip()),
        ('Echoes', f'{len(summary["echo_times"])} ({summary["echo_spacing"]})'),
        ('Matrix', f'{matrix}, voxels of {voxel} mm, stored {summary["orientation"]}'),
        ('B0 to the slice axis', f'{number(summary["b0_tilt"])}°'),
        *report_rows(summary.get('record', {}), of_field=False),
    ]


def _echo_phase_rows(summary: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Phase that was taken off each echo: number, TE, constant, gradient, size."""
    found = summary.get('record', {}).get('echo_fit', {}).get('echo_phase')
    if not found:
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
        seen.setdefault(f'{arm}{text}', f'{stage.replace("_", " ")}: {text}')
    return list(seen.values())


def _crash(path: Path, message: str) -> dict[str, str]:
    """Message, place and text of a crash file; a pickled one has no text."""
    text = ''
    if path.suffix == '.txt' and path.is_file():
        text = path.read_text(errors='replace')
    return {'message': message, 'path': str(path), 'text': text}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return {}
