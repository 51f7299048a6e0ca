"""``--resume-with``: a map that another program made of the flattened field, recombined.

What ``--stop-after flattening`` left in the output folder says which runs there are, and how they
were flattened.
"""

import json
import sys
import tempfile
import traceback
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from precondqsm_bids.cli.call import Call
from precondqsm_bids.cli.failures import Failure, conclude, of_participant
from precondqsm_bids.cli.progress import say
from precondqsm_bids.cli.reports import cite_what_was_done, write_report_of
from precondqsm_bids.config import Settings
from precondqsm_bids.outputs.files import sidecar_of

FLAT, PRIOR, MASK = 'desc-flattened_fieldmap', 'desc-prior_Chimap', 'desc-roi_mask'
PRECOND = 'desc-precond_Chimap'
ENDINGS = ('.nii.gz', '.nii')


class Flattened(NamedTuple):
    """What is on disk of one run."""

    label: str
    """``sub-01_ses-a_run-1``"""
    field: Path
    """Flattened field."""
    prior: Path
    mask: Path

    @property
    def subject(self) -> str:
        """Label of the participant."""
        return self.label.split('_')[0].removeprefix('sub-')


def resume(call: Call) -> int:
    """Recombine the map of each run; the exit status.

    Raises InputError if there is no flattened field, or the file or folder does not go with the
    runs.
    """
    from precondqsm_bids.cli.environment import logging_to
    from precondqsm_bids.outputs.report import Account

    settings = call.settings
    flattened = flattened_runs(settings)
    inverted = [run for run in flattened if _inverted_here(run)]
    runs = [run for run in flattened if run not in inverted]
    given = maps_of(settings, runs, inverted)
    call.log_dir.mkdir(parents=True, exist_ok=True)
    (call.log_dir / 'config.toml').write_text(settings.to_toml(), encoding='utf-8')
    failed: list[Failure] = []
    said: dict[str, dict[str, Any]] = defaultdict(dict)
    with logging_to(call.log_dir / 'precondqsm_bids.log', settings.verbose):
        for run in inverted:
            say(f'{run.label} | skipped: its map is of this program (--stop-after flattening)')
        for run in runs:
            if (path := given.get(run.label)) is None:
                say(f'{run.label} | skipped: no map of it in {settings.resume_with}')
                continue
            try:
                target, warnings = recombine_run(run, path, settings)
            except (OSError, ValueError) as error:
                what, text = f'{run.label}: {error}', traceback.format_exc()
                failed.append(of_participant(call, run.subject, 'resume', what, text))
                crash = {str(failed[-1].crash_file): what}
                said[run.subject][run.label] = {'crash_files': crash}
                continue
            said[run.subject][run.label] = {'crash_files': {}}
            for words in warnings:
                say(f'{run.label} | warning: {words}')
            say(f'{run.label} | {target}')
        done = len(given) - len(failed)
        for subject, of_runs in said.items():
            failed += write_report_of(call, subject, Account(of_runs))
        cite_what_was_done(call, said)
        say(f'finished: {done} of {len(given)} maps', sys.stderr if failed else sys.stdout)
        return conclude(failed)


def flattened_runs(settings: Settings) -> list[Flattened]:
    """Runs of the output folder that were flattened, of the participants and sessions asked for.

    Raises InputError if there are none.
    """
    from precondqsm_bids.inputs.run import InputError
    from precondqsm_bids.outputs.dataset import fieldmap_stem

    runs = []
    for prior in sorted(settings.output_dir.glob(f'sub-*/**/anat/*_{PRIOR}.nii.gz')):
        label = prior.name.removesuffix(f'_{PRIOR}.nii.gz')
        field = prior.parents[1] / 'fmap' / f'{fieldmap_stem(label)}_{FLAT}.nii.gz'
        entities = dict(pair.split('-', 1) for pair in label.split('_'))
        if settings.participant_label and entities['sub'] not in settings.participant_label:
            continue
        if settings.session_label and entities.get('ses') not in settings.session_label:
            continue
        if field.is_file():
            runs.append(Flattened(label, field, prior, prior.with_name(f'{label}_{MASK}.nii.gz')))
    if not runs:
        raise InputError(
            f'{settings.output_dir} has no flattened field ({FLAT}) of these participants and '
            'sessions: run --stop-after flattening first'
        )
    return runs


def _inverted_here(run: Flattened) -> bool:
    """Whether a run has a map that this program inverted, with figures and values that go with it.

    `--stop-after` takes them away.
    """
    sidecar = run.prior.with_name(f'{run.label}_{PRECOND}.json')
    if not sidecar.is_file():
        return False
    try:
        record = json.loads(sidecar.read_text(encoding='utf-8')).get('Parameters', {})
    except ValueError:  # it is written anew
        return False
    return 'take_map' not in record


def maps_of(
    settings: Settings, runs: list[Flattened], inverted: list[Flattened]
) -> dict[str, Path]:
    """The map of each run: the file, or those of the folder by their names.

    ``inverted`` are runs with a map of this program, which is not replaced. Raises InputError if
    there are no others, a file is given for several runs, or the folder has none or several for
    one.
    """
    from precondqsm_bids.inputs.run import InputError

    given = settings.resume_with
    assert given is not None
    if not runs:
        raise InputError(
            f'the maps of {", ".join(run.label for run in inverted)} are of this program, with '
            'figures and values that go with them: run --stop-after flattening first'
        )
    labels = [run.label for run in (*runs, *inverted)]
    names = ', '.join(labels)
    if given.is_file():
        if len(labels) > 1:
            raise InputError(
                f'--resume-with {given} is one map, and there are {len(labels)} runs ({names}): '
                'choose with --participant-label and --session-label, or give a folder of maps'
            )
        return {runs[0].label: given}
    found: dict[str, Path] = {}
    for run in runs:
        paths = [
            path
            for path in sorted(given.glob(f'**/{run.label}_*'))
            if path.name.endswith(tuple(f'Chimap{ending}' for ending in ENDINGS))
            and _only_desc(path.name.removeprefix(f'{run.label}_'))
        ]
        if len(paths) > 1:
            raise InputError(
                f'--resume-with: {run.label} has several maps, {", ".join(map(str, paths))}: '
                'leave one, or give the file'
            )
        if paths:
            found[run.label] = paths[0]
    if not found:
        raise InputError(
            f'--resume-with: {given} has no map of the runs {names}: name them <run>_Chimap.nii.gz'
        )
    return found


def _only_desc(rest: str) -> bool:
    """Whether a name has no further entity than one ``desc`` before its suffix."""
    *entities, _ = rest.split('_')
    return len(entities) <= 1 and all(entity.startswith('desc-') for entity in entities)


def recombine_run(run: Flattened, path: Path, settings: Settings) -> tuple[Path, list[str]]:
    """Write residual and preconditioned map of a run; the second, and warnings.

    Raises ValueError if the map is on another grid, or no susceptibility in ppm of the flattened
    field; OSError if a file cannot be read.
    """
    from precondqsm_bids.interfaces.inner import TakeMap
    from precondqsm_bids.interfaces.recombination import Recombination
    from precondqsm_bids.interfaces.volumes import load, save
    from precondqsm_bids.numerics.given_field import in_ppm

    _check_grid(path, run.field)
    _check_units(path)
    of_field = _sidecar(run.field)
    strength, mask = float(of_field['MagneticFieldStrength']), str(run.mask)
    with tempfile.TemporaryDirectory() as folder:
        field = in_ppm(load(str(run.field)), of_field['Units'], strength)
        ppm = save(field, str(run.field), folder, 'field')
        taken = TakeMap(residual_chi=str(path), field=ppm, mask=mask).run(cwd=folder).outputs
        whole = Recombination(
            residual_chi=taken.residual_chi, prior_chi=str(run.prior), mask=mask,
            reference=settings.method.reference,
        ).run(cwd=folder).outputs  # fmt: skip
        record = {'take_map': taken.record, 'recombination': whole.record}
        files = {'residual_chi': taken.residual_chi, 'precond_chi': whole.chi}
        target = _write(run, path, settings, files, of_field['Parameters'] | record)
    return target, [text for numbers in record.values() for text in numbers.get('warnings', ())]


def _write(
    run: Flattened, path: Path, settings: Settings, files: dict[str, str], record: dict[str, Any]
) -> Path:
    """Write maps with their sidecars; the last one."""
    import nibabel as nb

    from precondqsm_bids.interfaces.derivatives import facts_on_grid, write_compressed
    from precondqsm_bids.outputs.dataset import bids_uri
    from precondqsm_bids.outputs.files import json_ready, write_atomic
    from precondqsm_bids.outputs.maps import WRITTEN
    from precondqsm_bids.outputs.sidecars import compose_sidecar

    sidecar = _sidecar(run.prior)
    record = sidecar['Parameters'] | record
    facts = {
        'sources': [*sidecar['Sources'], bids_uri(path, settings.bids_dir, settings.derivatives)],
        'echo_times': sidecar.get('EchoTime', []),
        'field_strength': sidecar['MagneticFieldStrength'],
        'metadata': sidecar,
        'settings': sidecar['Settings'] | {'reference': settings.method.reference},
    }
    on_grid = facts_on_grid(facts, nb.load(run.prior))
    for name, file in files.items():
        row = WRITTEN[name]
        target = run.prior.with_name(f'{run.label}_{row.ending}.nii.gz')
        content = compose_sidecar(row, record, on_grid) | _by_another_program(record)
        text = json.dumps(json_ready(content), sort_keys=True, indent=2)
        write_atomic(target.with_name(f'{run.label}_{row.ending}.json'), text)
        write_compressed(file, target)
    return target


def _by_another_program(record: dict[str, Any]) -> dict[str, Any]:
    """Of the sidecar, what this program does not know: it has not inverted."""
    from precondqsm_bids.outputs.maps import BY_ANOTHER_PROGRAM
    from precondqsm_bids.outputs.sidecars import as_run

    return {
        'EstimationAlgorithm': as_run(BY_ANOTHER_PROGRAM.words, record),
        'EstimationReference': BY_ANOTHER_PROGRAM.reference,
        'Parameters': record,
    }


def _sidecar(path: Path) -> dict[str, Any]:
    """The JSON beside a map of this program."""
    content: dict[str, Any] = json.loads(sidecar_of(path).read_text(encoding='utf-8'))
    return content


def _check_grid(path: Path, field: Path) -> None:
    """Raise ValueError unless a map is a readable image of numbers on the grid of a field."""
    from precondqsm_bids.inputs.grid import load_grid
    from precondqsm_bids.inputs.run import RunError
    from precondqsm_bids.interfaces.volumes import check_grid

    try:
        load_grid(path)
    except RunError as error:
        raise ValueError(f'{error.path} {error}') from error
    check_grid([str(path), str(field)])


def _check_units(path: Path) -> None:
    """Raise ValueError if the sidecar of a map says another unit than ppm."""
    beside = sidecar_of(path)
    if not beside.is_file():
        return
    try:
        units = json.loads(beside.read_text(encoding='utf-8')).get('Units', 'ppm')
    except ValueError as error:
        raise ValueError(f'{beside} is not a readable JSON file: {error}') from error
    if units != 'ppm':
        raise ValueError(f'{beside}: Units {units!r} are not ppm: convert {path.name}')
