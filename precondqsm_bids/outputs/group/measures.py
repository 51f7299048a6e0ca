"""What the group level takes from the sidecars of a run, column by column."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from precondqsm_bids.outputs.lights import LEVELS, LIGHTS
from precondqsm_bids.outputs.record import COEFFICIENTS, Measure
from precondqsm_bids.terms import term

SCANNER = ('Manufacturer', 'ManufacturersModelName', 'DeviceSerialNumber', 'StationName')
"""What tells one scanner from another, in the sidecars."""


def is_number(value: Any) -> bool:
    """Whether a value of a JSON file is a finite number.

    >>> is_number(3), is_number(True), is_number(float('nan')), is_number('3'), is_number(10**400)
    (True, False, False, False, False)
    """
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def take(parameters: Mapping[str, Any], measure: Measure) -> tuple[Any, str]:
    """The value of a measure in a sidecar's ``Parameters`` or None, and what is wrong with it.

    >>> noise = Measure('noise_sd', 'echo_fit', 'Noise')
    >>> take({'echo_fit': {'noise_sd': 4.0}}, noise)
    (4.0, '')
    >>> take({'echo_fit': {'noise_sd': 'low'}}, noise)
    (None, "echo_fit.noise_sd = 'low' is not a number")
    """
    numbers = parameters.get(measure.stage)
    value = numbers.get(measure.key) if isinstance(numbers, Mapping) else None
    if value is None:
        return None, ''
    name = f'{measure.stage}.{measure.key} = {str(value)[:40]!r}'
    if measure.kind in ('names', 'parcels'):
        priors = value.values() if isinstance(value, Mapping) else [None]
        counts = [prior.get('parcels') if isinstance(prior, Mapping) else None for prior in priors]
        if not all(is_number(count) for count in counts):
            return None, f'{name} names no terms with their parcels'
        return (' '.join(map(str, value)) if measure.kind == 'names' else sum(counts)), ''
    if measure.kind == 'text':
        return (value, '') if isinstance(value, str) else (None, f'{name} is not a text')
    if measure.kind == 'length':
        if isinstance(value, list) and all(is_number(item) for item in value):
            return len(value), ''
        return None, f'{name} is not a list of numbers'
    return (value, '') if is_number(value) else (None, f'{name} is not a number')


def scanner_of(sidecar: Mapping[str, Any]) -> str | None:
    """The scanner of a sidecar in words, None where it does not say.

    >>> scanner_of({'Manufacturer': 'GE', 'StationName': 'MR1', 'FlipAngle': 20})
    'GE MR1'
    """
    words = [str(sidecar[key]) for key in SCANNER if sidecar.get(key) not in (None, '')]
    return ' '.join(words) or None


def light_levels(sidecar: Mapping[str, Any]) -> dict[str, str | None]:
    """Level of each light in a sidecar by its column, None where it does not say.

    >>> light_levels({'Lights': {'sign': {'level': 'bad'}, 'region': 'blue'}})['light_sign']
    'bad'
    """
    stored = sidecar.get('Lights')
    found = {}
    for row in LIGHTS:
        light = stored.get(row.name) if isinstance(stored, Mapping) else None
        level = light.get('level') if isinstance(light, Mapping) else None
        found[f'light_{row.name}'] = level if isinstance(level, str) and level in LEVELS else None
    return found


def take_coefficients(parameters: Mapping[str, Any]) -> tuple[list[dict[str, Any]], str]:
    """One row per coefficient of the prior, and what is wrong with them.

    >>> record = {'coefficients': {'r2prime': [1.5]}, 'coefficient_errors': [0.1]}
    >>> (row,) = take_coefficients({'prior_fit': record})[0]
    >>> row['term'], row['name'], row['units'], row['coefficient'], row['coefficient_error']
    ('r2prime', '1', '1', 1.5, 0.1)
    """
    fit = parameters.get('prior_fit')
    fit = fit if isinstance(fit, Mapping) else {}
    terms = fit.get('coefficients') or {}
    if not isinstance(terms, Mapping):
        return [], 'prior_fit: the coefficients do not name their terms'
    rows = []
    for word, values in terms.items():
        if isinstance(values, list):  # clusters, by their numbers
            values = {str(i): value for i, value in enumerate(values, 1)}
        if not isinstance(values, Mapping):
            return [], f'prior_fit: the coefficients of {word} are not lists'
        rows += [
            {'term': word, 'name': name, 'units': term(word).unit, 'coefficient': value}
            for name, value in values.items()
        ]
    of_theory = [row for row in rows if term(row['term']).is_theory]
    for column, described in (('coefficient_error', rows), ('implied_relaxivity', of_theory)):
        key = COEFFICIENTS[column][0]
        found = fit.get(key) or [None] * len(described)
        if not isinstance(found, list) or len(found) != len(described):
            many = len(found) if isinstance(found, list) else 'no list of'
            return [], f'prior_fit: {len(described)} coefficients, {many} {key}'
        for row, value in zip(described, found, strict=True):
            row[column] = value
    for row in rows:
        row |= {c: row[c] if is_number(row.get(c)) else None for c in COEFFICIENTS}
    return rows, ''
