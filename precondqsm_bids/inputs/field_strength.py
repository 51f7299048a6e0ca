"""The field strength of a run: by the imaging frequency, the nominal one, or the one given."""

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from precondqsm_bids.inputs.files import File
from precondqsm_bids.inputs.run import Note, RunError
from precondqsm_bids.method import RANGES
from precondqsm_bids.numerics.constants import GAMMA_BAR

STRENGTH_TOLERANCE = 0.1
"""Relative difference between the field strengths of the imaging frequency and of the metadata, at
most: scanners of 3 T have 2.89 to 3.0 T, and no two nominal field strengths are as near."""
REPORTED_DIFFERENCE = 0.005
"""Relative difference of field strengths from which it is reported: all maps scale with it."""
SAME_FREQUENCY = 1e-3
"""Relative; the frequency is adjusted by parts in a million from scan to scan."""
LOW, HIGH, _ = RANGES['field_strength']

AllMetadata = Mapping[File, Mapping[str, Any]]


class Stated(NamedTuple):
    """A number and the image whose metadata state it."""

    value: float
    path: Path


class FieldStrength(NamedTuple):
    """T, and the key of the metadata or the option that it is from."""

    value: float
    source: str


def find_field_strength(
    metadata: AllMetadata, given: float | None
) -> tuple[FieldStrength, list[Note]]:
    """The one field strength of all images, and what is to be reported of it.

    The imaging frequency says it to the last digit, where a nominal one is up to 4 % off. It is
    used if it agrees with the nominal one, of the metadata or else ``given``, within
    :data:`STRENGTH_TOLERANCE`; where they contradict each other, ``given`` decides.
    """
    nominal, notes = _nominal_strength(metadata, given)
    frequency, more = _imaging_frequency(metadata, given)
    notes += more
    stated, unused = None, ''
    if nominal:
        stated = FieldStrength(nominal.value, 'MagneticFieldStrength')
        if given not in (None, nominal.value):
            unused = (
                f', not {given:g} T of --field-strength, which is for images that lack it or '
                'contradict themselves'
            )
    elif given is not None:
        stated = FieldStrength(given, '--field-strength')
    if frequency:
        strength, message = _by_frequency(frequency, stated, given, unused)
        return strength, notes + [Note(frequency.path, message)] * bool(message)
    if stated is None:
        raise RunError(
            next(iter(metadata)).path,
            'has no MagneticFieldStrength: add it to a sidecar, or give --field-strength TESLA',
        )
    if nominal and unused:
        notes.append(Note(nominal.path, f'{stated.source} {stated.value:g} T is used{unused}'))
    return stated, notes


def given_by_options(oriented: bool, strength: FieldStrength, stated: Iterable[Any]) -> list[str]:
    """What the headers and the sidecars' ``MagneticFieldStrength`` lack and options say."""
    missing = [] if oriented else ['affine (--b0-dir given)']
    if strength.source == '--field-strength' and all(value is None for value in stated):
        missing.insert(0, 'MagneticFieldStrength (--field-strength given)')
    return missing


def _by_frequency(
    frequency: Stated, stated: FieldStrength | None, given: float | None, unused: str
) -> tuple[FieldStrength, str]:
    """The field strength where there is an imaging frequency, and what is to be reported."""
    measured = FieldStrength(strength_of(frequency.value), 'ImagingFrequency')
    words = f'ImagingFrequency {frequency.value:g} MHz is {measured.value:.4g} T'
    if stated is None:
        if not LOW <= measured.value <= HIGH:
            raise RunError(
                frequency.path,
                f'{words}, not between {LOW:g} and {HIGH:g} T (MHz?), and there is no '
                'MagneticFieldStrength: correct the sidecar, or give --field-strength TESLA',
            )
        return measured, f'has no MagneticFieldStrength; {words}, which is used'
    off = abs(measured.value / stated.value - 1)
    if off <= STRENGTH_TOLERANCE:
        if off <= REPORTED_DIFFERENCE and not unused:
            return measured, ''
        not_used = f'not {stated.value:g} T of {stated.source}{unused}'
        return measured, f'{words}, which is used, {not_used}'
    if given is not None:
        if stated.source == 'MagneticFieldStrength':
            words += f', {stated.source} {stated.value:g} T'
        option = FieldStrength(given, '--field-strength')
        return option, f'{words}; {given:g} T of {option.source} is used'
    raise RunError(
        frequency.path,
        f'{words}, and MagneticFieldStrength is {stated.value:g} T: more than '
        f'{STRENGTH_TOLERANCE:.0%} apart (another unit than MHz, or another nucleus?); correct '
        'the sidecar, or give --field-strength TESLA',
    )


def _imaging_frequency(
    metadata: AllMetadata, given: float | None
) -> tuple[Stated | None, list[Note]]:
    """The one imaging frequency of all images (MHz), and what is to be reported of it."""
    good, bad = _values(metadata, 'ImagingFrequency', is_positive, SAME_FREQUENCY)
    if len(good) > 1:
        (one, first), (two, second), *_ = good
        words = f'ImagingFrequency {two:g} MHz differs from {one:g} MHz of {first}'
        if given is None:
            raise RunError(second, f'{words}: correct the sidecars')
        return None, [Note(second, f'{words}: neither is used')]
    message = 'ImagingFrequency {!r} is not used: it is not a positive number'
    notes = [Note(path, message.format(value)) for value, path in bad[:1]]
    return (good[0] if good else None), notes


def _nominal_strength(
    metadata: AllMetadata, given: float | None
) -> tuple[Stated | None, list[Note]]:
    """The one ``MagneticFieldStrength`` of all images (T), and what is to be reported of it.

    ``given`` stands in for an absurd one.
    """
    good, bad = _values(metadata, 'MagneticFieldStrength', _is_strength)
    notes = []
    for value, path in bad[:1]:
        wrong = f'MagneticFieldStrength {value!r} is not between {LOW:g} and {HIGH:g} T'
        if given is None:
            gauss = is_positive(value) and _is_strength(value / 1e4)
            wrong += f' ({value / 1e4:g} T in gauss?)' if gauss else ''
            raise RunError(path, f'{wrong}: correct the sidecar, or give --field-strength TESLA')
        notes = [Note(path, f'{wrong}: {given:g} T of --field-strength is used')]
    if len(good) > 1:
        (one, first), (two, second), *_ = good
        raise RunError(
            first,
            f'MagneticFieldStrength {one} T differs from {two} T of {second}: '
            'correct the sidecars',
        )
    return (good[0] if good else None), notes


def _values(
    metadata: AllMetadata, key: str, usable: Callable[[Any], bool], same: float = 0.0
) -> tuple[list[Stated], list[Stated]]:
    """The values of a key that can be used, each once, and those that cannot."""
    good: list[Stated] = []
    bad: list[Stated] = []
    for file, content in metadata.items():
        value = content.get(key)
        if value is None:
            continue
        if not usable(value):
            bad.append(Stated(value, file.path))
        elif all(abs(value / other.value - 1) > same for other in good):
            good.append(Stated(float(value), file.path))
    return good, bad


def strength_of(frequency: float) -> float:
    """Field strength (T) at which water has an imaging frequency (MHz).

    By the shielded proton, so that 1 ppm of the field is 1 ppm of this frequency.

    >>> round(strength_of(123.2), 4)
    2.8936
    """
    return frequency * 1e6 / GAMMA_BAR


def is_positive(value: Any) -> bool:
    """Whether a value of a sidecar is a positive number."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and value > 0


def _is_strength(value: Any) -> bool:
    return is_positive(value) and LOW <= value <= HIGH
