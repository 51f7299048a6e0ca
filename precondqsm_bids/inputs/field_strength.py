"""The field strength of a run."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from precondqsm_bids.inputs.files import File
from precondqsm_bids.inputs.run import RunError
from precondqsm_bids.inputs.sidecars import (
    STRENGTH_TOLERANCE,
    strength_of,
)

FIELD_STRENGTHS = (0.1, 25.0)
"""T; scanners for people and animals lie within."""
TOLD_DIFFERENCE = 0.005
"""Share by which field strengths differ from which it is told: all maps scale with it."""


def find_field_strength(
    metadata: Mapping[File, Mapping[str, Any]], given: float | None
) -> tuple[float, str, list[tuple[Path, str]]]:
    """The one field strength of all images (T), where it is from, and what is to be told of it.

    The imaging frequency says it to the last digit, where a nominal one is up to 4 % off. It is
    used if it agrees with the nominal one, of the metadata or else ``given``, within
    :data:`STRENGTH_TOLERANCE`; where they contradict each other, ``given`` decides.
    """
    nominal, notes = _nominal_strength(metadata, given)
    found, frequency_notes = _imaging_frequency(metadata, given)
    notes += frequency_notes
    stated = nominal[0] if nominal else given
    name = 'MagneticFieldStrength' if nominal else '--field-strength'
    if nominal and given not in (None, stated):
        not_given = (
            f', not {given:g} T of --field-strength, which is for images that lack it or '
            'contradict themselves'
        )
    else:
        not_given = ''
    if found is None:
        if stated is None:
            raise RunError(
                next(iter(metadata)).path,
                'has no MagneticFieldStrength: add it to a sidecar, or give --field-strength '
                'TESLA',
            )
        if nominal and not_given:
            notes.append((nominal[1].path, f'{name} {stated:g} T is used{not_given}'))
        return stated, name, notes
    frequency, file = found
    measured = strength_of(frequency)
    words = f'ImagingFrequency {frequency:g} MHz is {measured:.4g} T'
    if stated is None:
        low, high = FIELD_STRENGTHS
        if not low <= measured <= high:
            raise RunError(
                file.path,
                f'{words}, not between {low} and {high} T (MHz?), and there is no '
                'MagneticFieldStrength: correct the sidecar, or give --field-strength TESLA',
            )
        notes.append((file.path, f'has no MagneticFieldStrength; {words}, which is used'))
        return measured, 'ImagingFrequency', notes
    off = abs(measured / stated - 1)
    if off <= STRENGTH_TOLERANCE:
        if off > TOLD_DIFFERENCE or not_given:
            notes.append(
                (file.path, f'{words}, which is used, not {stated:g} T of {name}{not_given}')
            )
        return measured, 'ImagingFrequency', notes
    if given is not None:
        notes.append(
            (
                file.path,
                f'{words}'
                + (f', MagneticFieldStrength {stated:g} T' if nominal else '')
                + f'; {given:g} T of --field-strength is used',
            )
        )
        return given, '--field-strength', notes
    raise RunError(
        file.path,
        f'{words}, and MagneticFieldStrength is {stated:g} T: more than '
        f'{STRENGTH_TOLERANCE:.0%} apart (another unit than MHz, or another nucleus?); correct '
        'the sidecar, or give --field-strength TESLA',
    )


def _imaging_frequency(
    metadata: Mapping[File, Mapping[str, Any]], given: float | None
) -> tuple[tuple[float, File] | None, list[tuple[Path, str]]]:
    """The one imaging frequency of all images (MHz) and who says it, and what is to be told."""
    found: tuple[float, File] | None = None
    notes: list[tuple[Path, str]] = []
    for file, content in metadata.items():
        value = content.get('ImagingFrequency')
        if value is None:
            continue
        if not is_positive(value):
            if not notes:
                notes.append((file.path, f'ImagingFrequency {value!r} is not used: no number'))
            continue
        found = found or (float(value), file)
        # The frequency is adjusted by parts in a million from scan to scan.
        if abs(value / found[0] - 1) > 1e-3:
            words = (
                f'ImagingFrequency {value:g} MHz differs from {found[0]:g} MHz of {found[1].path}'
            )
            if given is None:
                raise RunError(file.path, f'{words}: correct the sidecars')
            return None, [(file.path, f'{words}: neither is used')]
    return found, notes


def _nominal_strength(
    metadata: Mapping[File, Mapping[str, Any]], given: float | None
) -> tuple[tuple[float, File] | None, list[tuple[Path, str]]]:
    """The one ``MagneticFieldStrength`` of all images (T) and who says it, and what is to be told.

    ``given`` stands in for an absurd one.
    """
    low, high = FIELD_STRENGTHS
    seen: dict[float, File] = {}
    notes: list[tuple[Path, str]] = []
    for file, content in metadata.items():
        value = content.get('MagneticFieldStrength')
        if value is None:
            continue
        if is_positive(value) and low <= value <= high:
            seen.setdefault(float(value), file)
            continue
        wrong = f'MagneticFieldStrength {value!r} is not between {low} and {high} T'
        if given is None:
            gauss = is_positive(value) and low <= value / 1e4 <= high
            raise RunError(
                file.path,
                wrong
                + (f' ({value / 1e4:g} T in gauss?)' if gauss else '')
                + ': correct the sidecar, or give --field-strength TESLA',
            )
        if not notes:
            notes.append((file.path, f'{wrong}: {given:g} T of --field-strength is used'))
    if len(seen) > 1:
        (one, first), (two, second), *_ = seen.items()
        raise RunError(
            first.path,
            f'MagneticFieldStrength {one} T differs from {two} T of {second.path}: '
            'correct the sidecars',
        )
    if not seen:
        return None, notes
    (value, file), *_ = seen.items()
    return (value, file), notes


def is_positive(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and value > 0
