"""From files that differ in echo and part to a run of checked echoes."""

from collections.abc import Sequence
from functools import partial
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, NamedTuple

from precondqsm_bids.inputs.field_strength import (
    find_field_strength,
    given_by_options,
    is_positive,
)
from precondqsm_bids.inputs.files import File
from precondqsm_bids.inputs.grid import check_grids, load_grid
from precondqsm_bids.inputs.lookalikes import COMBINE
from precondqsm_bids.inputs.parts import DIFFERENCE, Parts, named, pair_parts, phase_units
from precondqsm_bids.inputs.run import Note, Run, RunError
from precondqsm_bids.method import Method

SAME_TIME = 1e-6
"""s; echo times that differ by no more are equal: scanners and converters round them."""
CHANNELS = f'If volumes are the channels of a coil, {COMBINE}'
"""What is reported of images with a fourth axis that is not one of echoes."""
_UNKNOWN = "R2*, R2', T2* and S0 are not known, and maps of them are not written"
ONE_ECHO = (
    'is the only echo (EchoTime {:g} s): the field is its unwrapped phase over the echo time, '
    f'with the phase offset of the coil in it; {_UNKNOWN}'
)
"""What is reported of a run of one echo."""
ONE_DIFFERENCE = (
    'is the magnitude of a difference of two phases, taken as one echo of EchoTime2 - EchoTime1 = '
    f'{{:g}} s; a difference has no phase offset; {_UNKNOWN}'
)
"""What is reported of a run whose phase is the difference of two echoes."""


class EchoTimes(NamedTuple):
    """Labels of the echoes in the order of their times, the times (s), and what they are of."""

    order: list[str]
    times: list[float]
    difference: bool
    """Whether the one time is that between two echoes whose phase difference the run has."""


def make_run(
    files: Sequence[File], source: Sequence[File], method: Method
) -> tuple[Run, list[Note]]:
    """A run of files that differ in echo and part only, checked, and what is to be reported.

    The sidecars are among the files of the source; the method has the field strength and the
    direction of B0, where they are given.
    """
    parts, notes = pair_parts(files, source)
    shape = load_grid(parts.first.path).shape
    if len(shape) != 3 and not parts.in_one_file:
        raise RunError(
            parts.first.path,
            f'has the shape {shape}; each echo is one 3D image, or all echoes are one 4D image '
            f'without an echo entity. {CHANNELS}',
        )
    echoes = find_echo_times(parts)
    one, other = (
        tuple(str(part[echo].path) for echo in echoes.order) for part in (parts.one, parts.other)
    )
    first = parts.one[echoes.order[0]]
    grid, grid_notes = check_grids([Path(path) for path in (*one, *other)], method.b0_dir)
    strength, strength_notes = find_field_strength(parts.metadata, method.field_strength)
    notes += grid_notes + strength_notes
    stated = [content.get('MagneticFieldStrength') for content in parts.metadata.values()]
    missing = given_by_options(grid.oriented, strength, stated)
    if len(echoes.times) == 1:
        missing.insert(0, 'R2* (one echo)')
        message = ONE_DIFFERENCE if echoes.difference else ONE_ECHO
        notes.append(Note(first.path, message.format(echoes.times[0])))
    run = Run(
        subject=first.entities['sub'],
        session=first.entities.get('ses'),
        entities={
            key: label
            for key, label in first.entities.items()
            if key not in ('sub', 'ses', 'echo', 'part')
        },
        magnitude=one if parts.polar else (),
        phase=other if parts.polar else (),
        real=() if parts.polar else one,
        imaginary=() if parts.polar else other,
        echo_times=tuple(echoes.times),
        echoes_in_one_file=parts.in_one_file,
        field_strength=strength.value,
        field_strength_source=strength.source,
        phase_difference=echoes.difference,
        metadata=dict(parts.metadata[first]),
        phase_units=phase_units(parts, echoes.order),
        matrix=grid.shape[:3],
        b0_dir=tuple(map(float, method.b0_dir)) if method.b0_dir else None,
        missing=tuple(missing),
    )
    return run, notes


def find_echo_times(parts: Parts) -> EchoTimes:
    """The echo times of a run."""
    difference = _difference(parts) if parts.polar else None
    if parts.in_one_file:
        return EchoTimes(list(parts.one), _listed(parts), False)
    times = {echo: difference or _of_pair(parts, echo) for echo in sorted(parts.one)}
    for this, that in combinations(times, 2):
        if abs(times[this] - times[that]) <= SAME_TIME:
            raise RunError(
                parts.one[this].path,
                f'EchoTime {times[this]} s is that of {parts.one[that].path} too: '
                'correct the sidecars',
            )
    order = sorted(times, key=times.__getitem__)
    return EchoTimes(order, [times[echo] for echo in order], difference is not None)


def _of_pair(parts: Parts, echo: str) -> float:
    """The echo time of a pair of files, s."""
    one, other = parts.one[echo], parts.other[echo]
    values = {
        file: value[0] if isinstance(value, list) and len(value) == 1 else value
        for file in (one, other)
        if (value := parts.metadata[file].get('EchoTime')) is not None
    }
    if not values:
        raise RunError(one.path, 'has no EchoTime: write it (in seconds) into the JSON sidecar')
    for file, value in values.items():
        _check(file, value)
    if len(values) > 1 and abs(values[one] - values[other]) > SAME_TIME:
        raise RunError(
            one.path,
            f'EchoTime {values[one]} s differs from {values[other]} s of {other.path}: '
            'correct the sidecars',
        )
    return float(next(iter(values.values())))


def _listed(parts: Parts) -> list[float]:
    """The echo times (s) of two 4D files, one number per volume."""
    one, other = parts.first, next(iter(parts.other.values()))
    lists = {
        file: _check_list(file, value, load_grid(file.path).shape[-1])
        for file in (one, other)
        if (value := parts.metadata[file].get('EchoTime')) is not None
    }
    if not lists:
        raise RunError(
            one.path,
            f'has no EchoTime: write the list of the {load_grid(one.path).shape[-1]} echo times '
            '(in seconds) into the JSON sidecar',
        )
    first, last = next(iter(lists.values())), [*lists.values()][-1]
    if len(first) != len(last):
        raise RunError(
            one.path,
            f'has {len(first)} volumes and {other.path} has {len(last)}: every echo has a '
            'magnitude and a phase',
        )
    if max(abs(this - that) for this, that in zip(first, last, strict=True)) > SAME_TIME:
        raise RunError(
            one.path,
            f'EchoTime {lists[one]} s differs from {lists[other]} s of {other.path}: '
            'correct the sidecars',
        )
    return first


def _check_list(file: File, value: Any, volumes: int) -> list[float]:
    """The echo times (s) of a 4D file, if they are a list that increases."""
    if not isinstance(value, list):
        raise RunError(
            file.path,
            f'has {volumes} volumes and EchoTime {value!r}: write the list of the echo times '
            '(s), one per volume, or store each echo as a 3D image with echo-1, echo-2, .... '
            f'{CHANNELS}',
        )
    if len(value) != volumes:
        raise RunError(
            file.path,
            f'has {volumes} volumes and {len(value)} echo times {value}: correct the sidecar. '
            f'{CHANNELS}',
        )
    for item in value:
        _check(file, item)
    if any(late - early <= SAME_TIME for early, late in pairwise(value)):
        raise RunError(
            file.path, f'EchoTime {value} does not increase: sort the volumes, or correct it'
        )
    return [float(item) for item in value]


def _difference(parts: Parts) -> float | None:
    """The time (s) between two echoes whose phase difference a run has; None of plain phases.

    A difference has ``EchoTime1`` and ``EchoTime2``, or the ``ImageType`` of one, which alone does
    not say over which time.
    """
    single = len(parts.one) == 1 and not parts.in_one_file
    for phase in parts.other.values():
        # What magnitude and phase have from one sidecar speaks of the phase of a single echo.
        value = parts.metadata[phase].get if single else partial(parts.own, phase)
        times: dict[str, Any] = {
            key: value(key) for key in ('EchoTime1', 'EchoTime2') if value(key) is not None
        }
        word = named(value('ImageType'), DIFFERENCE)
        if not times and not word:
            continue
        said = ', '.join(f'{key} {time}' for key, time in times.items()) or f'ImageType {word}'
        wrong = f'is a difference of two echoes ({said})'
        if not single:
            raise RunError(
                phase.path,
                f'{wrong}, and the run has several: the field is fitted to the phase of each '
                'echo, so give those, or one difference alone, as one echo with EchoTime1 and '
                'EchoTime2',
            )
        if len(times) < 2:
            raise RunError(
                phase.path,
                f'{wrong} without the times of both: write EchoTime1 and EchoTime2 (in seconds) '
                'into its JSON sidecar',
            )
        for key, time in times.items():
            _check(phase, time, key)
        if times['EchoTime2'] - times['EchoTime1'] <= SAME_TIME:
            raise RunError(phase.path, f'{wrong}: the second is the later')
        # In nanoseconds: what is left of the rounding of binary fractions would be reported.
        return round(float(times['EchoTime2'] - times['EchoTime1']), 9)
    return None


def _check(file: File, value: Any, key: str = 'EchoTime') -> None:
    """Raise unless an echo time is a number of seconds."""
    if not is_positive(value):
        wrong = f'{key} {value!r} is not a positive number of seconds: correct the sidecar'
        raise RunError(file.path, wrong)
    if value > 1:
        wrong = f'{key} {value} looks like milliseconds; BIDS has seconds: write {value / 1000:g}'
        raise RunError(file.path, wrong)
