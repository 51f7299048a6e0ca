"""From files that differ in echo and part to the checked echoes of a run."""

from collections.abc import Mapping, Sequence
from itertools import combinations, pairwise
from typing import Any

from precondqsm_bids.inputs.field_strength import find_field_strength, is_positive
from precondqsm_bids.inputs.files import File, Metadata, own_value, read_metadata, with_echo
from precondqsm_bids.inputs.grid import check_grids, load_grid
from precondqsm_bids.inputs.run import Problem, Run, RunError
from precondqsm_bids.inputs.sidecars import (
    DIFFERENCE,
    FILTERED,
    SAME_TIME,
    image_kinds,
    named,
)

ONE_ECHO = (
    'is the only echo (EchoTime {:g} s): the field is its unwrapped phase over the echo time, '
    "with the phase offset of the coil in it; R2*, R2', T2* and S0 are not known, and maps of "
    'them are not written'
)
"""What is told of a run of one echo."""
ONE_DIFFERENCE = (
    'is the magnitude of a difference of two phases, taken as one echo of EchoTime2 - EchoTime1 = '
    "{:g} s; a difference has no phase offset; R2*, R2', T2* and S0 are not known, and maps of "
    'them are not written'
)
"""What is told of a run whose phase is the difference of two echoes."""


def one_suffix(subject: str, files: Sequence[File]) -> tuple[list[File], list[Problem]]:
    """The files of one suffix: the maps of MEGRE and T2starw would have the same names."""
    first = files[0].suffix if len({file.suffix for file in files}) == 1 else 'MEGRE'
    others = [str(file.path) for file in files if file.suffix != first]
    notes = [
        Problem(
            subject,
            others[0],
            'left out: the _MEGRE images of the same entities would give maps of the same names; '
            'choose with --bids-filter-file {"megre": {"suffix": "T2starw"}}',
            fatal=False,
            skipped=True,
        )
        for _ in others[:1]
    ]
    return [file for file in files if file.suffix == first], notes


def make_run(
    files: Sequence[File],
    sidecars: Sequence[File],
    field_strength: float | None,
    b0_dir: Sequence[float] | None,
) -> tuple[Run, list[Problem]]:
    """A run of files that differ in echo and part only, checked, and what is to be told."""
    (one, other), kind, left_out = _pairs(files)
    metadata = {
        path: read_metadata(path, sidecars) for part in (one, other) for path in part.values()
    }
    first = next(iter(one.values()))
    notes = [
        Problem(first.entities['sub'], str(file.path), message, fatal=False, skipped=True)
        for file, message in left_out
    ]
    notes += [
        Problem(first.entities['sub'], str(path), message, fatal=False)
        for path, message in {
            path: message
            for content in metadata.values()
            for path, message in content.notes.items()
        }.items()
    ]
    _check_image_types(one, other, kind, metadata)
    in_one_file = len(one) == 1 and len(load_grid(first.path).shape) == 4
    difference = _difference(one, other, metadata, in_one_file) if kind == 'polar' else None
    if in_one_file:
        if 'echo' in first.entities:
            raise RunError(
                first.path,
                f'has the shape {load_grid(first.path).shape} and an echo entity; an echo is one '
                '3D image, and a 4D file with an axis of echoes has no echo entity',
            )
        order = list(one)
        times = _listed_echo_times(first, next(iter(other.values())), metadata)
    else:
        by_echo = {
            echo: difference or _echo_time(one[echo], other[echo], metadata)
            for echo in sorted(one)
        }
        for this, that in combinations(by_echo, 2):
            if abs(by_echo[this] - by_echo[that]) <= SAME_TIME:
                raise RunError(
                    one[this].path,
                    f'EchoTime {by_echo[this]} s is that of {one[that].path} too: '
                    'correct the sidecars',
                )
        order = sorted(by_echo, key=by_echo.__getitem__)
        times = [by_echo[echo] for echo in order]
        first = one[order[0]]
    paths = [part[echo].path for echo in order for part in (one, other)]
    grid, grid_notes = check_grids(paths, len(times) if in_one_file else None, b0_dir)
    strength, source, strength_notes = find_field_strength(metadata, field_strength)
    told = ONE_DIFFERENCE if difference else ONE_ECHO
    one_echo_notes = [(first.path, told.format(times[0]))] if len(times) == 1 else []
    notes += [
        Problem(first.entities['sub'], str(path), message, fatal=False)
        for path, message in (*one_echo_notes, *grid_notes, *strength_notes)
    ]
    missing = ['R2* (one echo)'] if len(times) == 1 else []
    if source == '--field-strength' and all(
        content.get('MagneticFieldStrength') is None for content in metadata.values()
    ):
        missing.append('MagneticFieldStrength (--field-strength given)')
    if not grid.oriented:
        missing.append('affine (--b0-dir given)')
    pair = tuple(tuple(str(part[echo].path) for echo in order) for part in (one, other))
    run = Run(
        subject=first.entities['sub'],
        session=first.entities.get('ses'),
        entities={
            k: v for k, v in first.entities.items() if k not in ('sub', 'ses', 'echo', 'part')
        },
        magnitude=pair[0] if kind == 'polar' else (),
        phase=pair[1] if kind == 'polar' else (),
        real=pair[0] if kind == 'cartesian' else (),
        imaginary=pair[1] if kind == 'cartesian' else (),
        echo_times=tuple(times),
        echoes_in_one_file=in_one_file,
        field_strength=strength,
        field_strength_source=source,
        phase_difference=difference is not None,
        metadata=dict(metadata[first]),
        phase_units=(
            _phase_units([other[echo] for echo in order], metadata) if kind == 'polar' else 'rad'
        ),
        matrix=(grid.shape[0], grid.shape[1], grid.shape[2]),
        b0_dir=(float(b0_dir[0]), float(b0_dir[1]), float(b0_dir[2])) if b0_dir else None,
        missing=tuple(missing),
    )
    return run, notes


def check_one_echo(run: Run, r2star_priors: Sequence[str]) -> None:
    """Raise if the prior is made of R2*, which a run of one echo does not have."""
    if r2star_priors:
        raise RunError(
            run.sources[0],
            f'is the only echo (EchoTime {run.echo_times[0]:g} s), and --prior '
            f'{" ".join(r2star_priors)} is made of R2*, which takes two echoes or more: add the '
            'others, give --prior contrast, tissue, map:FILE or shape, or leave the run out with '
            '--bids-filter-file',
        )


_Parts = dict[str, File]


def _pairs(
    files: Sequence[File],
) -> tuple[tuple[_Parts, _Parts], str, list[tuple[File, str]]]:
    """Magnitude and phase by echo, or real and imaginary part; a magnitude may have no part.

    Returns
    -------
    pair : tuple of two dicts
        Echo to file.
    kind : str
        ``polar`` or ``cartesian``.
    left_out : list of (file, reason)
        Parts that are not needed.
    """
    parts: dict[str, _Parts] = {'mag': {}, 'phase': {}, 'real': {}, 'imag': {}}
    for file in files:
        part = file.entities.get('part', 'mag')
        if part not in parts:
            raise RunError(
                file.path, f'part-{part} is not one of {", ".join(parts)}: rename the file'
            )
        echo = file.entities.get('echo', '')
        if not echo.isdecimal() and 'echo' in file.entities:
            raise RunError(file.path, f'echo-{echo} should be echo-1, echo-2, ...: rename it')
        echo = with_echo(file.entities).get('echo', '')
        if echo in parts[part]:
            raise RunError(
                file.path,
                f'is the same echo and part as {parts[part][echo].path}: keep one of them, '
                'or choose with --bids-filter-file',
            )
        parts[part][echo] = file
    complex_parts = [*parts['real'].values(), *parts['imag'].values()]
    left_out: list[tuple[File, str]] = []
    if complex_parts and not (parts['mag'] and parts['phase']):
        kind, names = 'cartesian', ('real', 'imag')
        left_out = [
            (file, 'left out: the run is read from its real and imaginary parts')
            for file in [*parts['mag'].values(), *parts['phase'].values()][:1]
        ]
    else:
        kind, names = 'polar', ('mag', 'phase')
        left_out = [
            (file, 'left out: the run is read from its magnitude and phase')
            for file in complex_parts[:1]
        ]
    words = {
        'mag': ('magnitude', 'part-mag (or without part)'),
        'phase': ('phase', 'part-phase'),
        'real': ('real part', 'part-real'),
        'imag': ('imaginary part', 'part-imag'),
    }
    one, other = parts[names[0]], parts[names[1]]
    for there, absent, name in ((one, other, names[1]), (other, one, names[0])):
        if lacking := sorted(set(there) - set(absent)):
            word, entity = words[name]
            raise RunError(
                there[lacking[0]].path,
                f'has no {word} beside it: add the image of the same name with {entity}, '
                'or leave the run out with --bids-filter-file',
            )
    return (one, other), kind, left_out


def _listed_echo_times(
    one: File, other: File, metadata: Mapping[File, Mapping[str, Any]]
) -> list[float]:
    """The echo times (s) of two 4D files, one number per volume."""
    lists = {}
    for file in (one, other):
        volumes = load_grid(file.path).shape[-1]
        value = metadata[file].get('EchoTime')
        if value is None:
            continue
        if not isinstance(value, list):
            raise RunError(
                file.path,
                f'has {volumes} volumes and EchoTime {value!r}: write the list of the echo times '
                '(s), one per volume, or store each echo as a 3D image with echo-1, echo-2, ...',
            )
        if len(value) != volumes:
            raise RunError(
                file.path,
                f'has {volumes} volumes and {len(value)} echo times {value}: correct the sidecar',
            )
        for item in value:
            _check_echo_time(file, item)
        if any(late - early <= SAME_TIME for early, late in pairwise(value)):
            raise RunError(
                file.path, f'EchoTime {value} does not increase: sort the volumes, or correct it'
            )
        lists[file] = [float(item) for item in value]
    if not lists:
        raise RunError(
            one.path,
            f'has no EchoTime: write the list of the {load_grid(one.path).shape[-1]} echo times '
            '(in seconds) into the JSON sidecar',
        )
    if len(lists) == 2 and any(
        abs(this - that) > SAME_TIME for this, that in zip(lists[one], lists[other], strict=True)
    ):
        raise RunError(
            one.path,
            f'EchoTime {lists[one]} s differs from {lists[other]} s of {other.path}: '
            'correct the sidecars',
        )
    return next(iter(lists.values()))


def _echo_time(magnitude: File, phase: File, metadata: Mapping[File, Mapping[str, Any]]) -> float:
    """The echo time of a pair, s."""
    values = {
        file: value[0] if isinstance(value, list) and len(value) == 1 else value
        for file in (magnitude, phase)
        if (value := metadata[file].get('EchoTime')) is not None
    }
    if not values:
        raise RunError(
            magnitude.path, 'has no EchoTime: write it (in seconds) into the JSON sidecar'
        )
    for file, value in values.items():
        _check_echo_time(file, value)
    if len(values) > 1 and abs(values[magnitude] - values[phase]) > SAME_TIME:
        raise RunError(
            magnitude.path,
            f'EchoTime {values[magnitude]} s differs from {values[phase]} s of {phase.path}: '
            'correct the sidecars',
        )
    return float(next(iter(values.values())))


def _difference(
    one: _Parts, other: _Parts, metadata: Mapping[File, Metadata], in_one_file: bool
) -> float | None:
    """The time (s) between two echoes whose phase difference a run has; None of plain phases.

    Differences are told by ``EchoTime1`` and ``EchoTime2``, or by ``ImageType``, which alone does
    not say over which time.
    """
    single = len(one) == 1 and not in_one_file
    for phase in other.values():
        # What magnitude and phase have from one sidecar speaks of the phase of a single echo.
        others = () if single else tuple(one.values())
        times = {
            key: value
            for key in ('EchoTime1', 'EchoTime2')
            if (value := own_value(phase, others, metadata, key)) is not None
        }
        word = named(own_value(phase, others, metadata, 'ImageType'), DIFFERENCE)
        if not times and not word:
            continue
        said = ', '.join(f'{key} {value}' for key, value in times.items()) or f'ImageType {word}'
        if not single:
            raise RunError(
                phase.path,
                f'is a difference of two echoes ({said}), and the run has several: the field is '
                'fitted to the phase of each echo, so give those, or one difference alone, as one '
                'echo with EchoTime1 and EchoTime2',
            )
        if len(times) < 2:
            raise RunError(
                phase.path,
                f'is a difference of two echoes ({said}) without the times of both: write '
                'EchoTime1 and EchoTime2 (in seconds) into its JSON sidecar',
            )
        for key, value in times.items():
            _check_echo_time(phase, value, key)
        if times['EchoTime2'] - times['EchoTime1'] <= SAME_TIME:
            raise RunError(
                phase.path, f'is a difference of two echoes, and {said}: the second is the later'
            )
        # Times in microseconds: what is left of the rounding of binary fractions would be told.
        return round(float(times['EchoTime2'] - times['EchoTime1']), 9)
    return None


def _check_image_types(
    one: _Parts, other: _Parts, kind: str, metadata: Mapping[File, Metadata]
) -> None:
    """Raise if an image is another part by its ``ImageType`` than by its name, or is filtered.

    Words of a sidecar that magnitude and phase share say nothing of either.
    """
    names = ('mag', 'phase') if kind == 'polar' else ('real', 'imag')
    for part, files, others in ((names[0], one, other), (names[1], other, one)):
        for file in files.values():
            said = own_value(file, others.values(), metadata, 'ImageType')
            kinds = image_kinds(said)
            if kinds and part not in kinds:
                sidecar = metadata[file].stated_by['ImageType']
                raise RunError(
                    file.path,
                    f'is part-{part} by its name and part-{" or part-".join(sorted(kinds))} by '
                    f'ImageType {said} of {sidecar.name}: rename the images (are they swapped?), '
                    'or correct the sidecar',
                )
            if part == 'phase' and (word := named(said, FILTERED)):
                raise RunError(
                    file.path,
                    f'is a filtered phase by {word} of ImageType {said}: what varies slowly was '
                    'removed, and with it most of the field; export the phase before the filter, '
                    'or correct the sidecar',
                )


def _phase_units(phase: Sequence[File], metadata: Mapping[File, Mapping[str, Any]]) -> str | None:
    """The one unit of all phase images, None if no sidecar has it."""
    stated = {file: unit for file in phase if (unit := metadata[file].get('Units')) is not None}
    first = next(iter(stated), phase[0])
    for file, unit in stated.items():
        if unit not in ('rad', 'arbitrary'):
            raise RunError(
                file.path, f'Units of a phase are "rad" or "arbitrary", not {unit!r}: correct them'
            )
        if unit != stated[first]:
            raise RunError(
                file.path,
                f'Units {unit!r} differ from {stated[first]!r} of {first.path}: '
                'correct the sidecars',
            )
    return stated.get(first)


def _check_echo_time(file: File, value: Any, key: str = 'EchoTime') -> None:
    """Raise unless an echo time is a number of seconds."""
    if not is_positive(value):
        raise RunError(
            file.path,
            f'{key} {value!r} is not a positive number of seconds: correct the sidecar',
        )
    if value > 1:
        raise RunError(
            file.path,
            f'{key} {value} looks like milliseconds; BIDS has seconds: write {value / 1000:g}',
        )
