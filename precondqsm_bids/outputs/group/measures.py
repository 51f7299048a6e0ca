"""What the group level takes from the sidecars of a run, column by column."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Measure(NamedTuple):
    """One number (or word) of the record that the stages leave in the sidecars."""

    column: str
    stage: str
    key: str
    description: str
    units: str = ''
    kind: str = 'linear'
    """``linear``: a number; ``log``: a positive number, compared by its logarithm; ``text``;
    ``names`` and ``parcels``: the terms of a prior and the sum of their coefficients."""


MEASURES = (
    Measure('field_strength', 'echo_fit', 'field_strength', 'Field strength', 'T'),
    Measure('n_echoes', 'echo_fit', 'echo_times', 'Number of echoes'),
    Measure(
        'noise_sd', 'echo_fit', 'noise_sd',
        'Noise of the real or imaginary part, in the unit of the magnitude', 'arbitrary', 'log',
    ),
    Measure(
        'median_field_sd', 'echo_fit', 'median_field_sd',
        'Median standard deviation of the field over the region of interest', 'ppm', 'log',
    ),
    Measure(
        'reliable_fraction', 'echo_fit', 'reliable_fraction',
        'Share of voxels with two usable echoes or more',
    ),
    Measure(
        'offset_model', 'echo_fit', 'offset_model',
        'Model of the phase at echo time zero: quartic, spline or voxelwise', kind='text',
    ),
    Measure(
        'offset_misfit', 'echo_fit', 'offset_misfit',
        'What a smooth model leaves of the phase at echo time zero', 'rad',
    ),
    Measure(
        'echo_phase_size', 'echo_fit', 'echo_phase_size',
        'Phase of one echo beyond a line in TE, largest root mean square', 'rad',
    ),
    Measure(
        'misfit_fraction', 'echo_fit', 'misfit_fraction',
        'Share of voxels that one field and one R2* do not describe',
    ),
    Measure(
        'unusable_fraction', 'echo_fit', 'unusable_fraction',
        'Share of voxels with fewer than two echoes above the noise (one echo: none)',
    ),
    Measure(
        'bodies', 'echo_fit', 'bodies', 'Bodies of the region that are not connected',
    ),
    Measure('phase_sign', 'echo_fit', 'phase_sign', 'Sign of the stored phase; -1 was negated'),
    Measure(
        'phase_sign_source', 'echo_fit', 'phase_sign_source',
        'Where the sign is from: given, field of the shape, or assumed (vendor, convention)',
        kind='text',
    ),
    Measure(
        'phase_sign_correlation', 'echo_fit', 'phase_sign_correlation',
        "Partial correlation of the measured field and that of the object's shape",
    ),
    Measure('r2', 'r2prime_prior', 'r2', 'R2 that was taken from R2*', '1/s'),
    Measure(
        'relaxivity', 'r2prime_prior', 'relaxivity',
        "R2' per susceptibility that the prior was made with", '1/s/ppm',
    ),
    Measure('shape_voxels', 'shape_mask', 'shape_voxels', 'Voxels of the object against air'),
    Measure('roi_voxels', 'shape_mask', 'roi_voxels', 'Voxels of the region of interest'),
    Measure(
        'prior', 'prior_fit', 'priors',
        'Terms of the prior; n/a where it was not fitted', kind='names',
    ),
    Measure(
        'prior_parcels', 'prior_fit', 'priors', 'Number of coefficients of the prior',
        kind='parcels',
    ),
    Measure(
        'prior_expected_size', 'prior_fit', 'expected_size',
        'Expected size of the susceptibility inside', 'ppm', 'log',
    ),
    Measure(
        'prior_explained', 'prior_fit', 'explained',
        "Share of the local field's energy that the fitted prior explains",
    ),
    Measure(
        'down_weighted_fraction', 'prior_fit', 'down_weighted_fraction',
        'Share of voxels that the robust weights hold at less than half',
    ),
    Measure(
        'total_field_sd', 'flattening', 'total_field_sd',
        'Spread of the total field over the region of interest', 'ppm', 'log',
    ),
    Measure(
        'flattened_field_sd', 'flattening', 'flattened_field_sd',
        'Spread of the flattened field over the region of interest', 'ppm', 'log',
    ),
    Measure(
        'relative_residual', 'background_removal', 'relative_residual',
        'Gradient at the last iteration of the background removal over that at the first',
        kind='log',
    ),
    Measure(
        'reg_weight', 'dipole_inversion', 'reg_weight', 'Regularisation weight lambda', 'mm', 'log'
    ),
    Measure('reg_rule', 'dipole_inversion', 'rule', 'How lambda was chosen', kind='text'),
    Measure(
        'corner', 'dipole_inversion', 'corner', 'Lambda at the corner of the L-curve', 'mm', 'log'
    ),
    Measure(
        'conventional_reg_weight', 'conventional_dipole_inversion', 'reg_weight',
        'Lambda of the conventional arm', 'mm', 'log',
    ),
    Measure(
        'conventional_corner', 'conventional_dipole_inversion', 'corner',
        'Lambda at the corner of the L-curve of the conventional arm', 'mm', 'log',
    ),
    Measure('reference', 'recombination', 'reference', 'What is 0 ppm', kind='text'),
    Measure(
        'reference_value', 'recombination', 'reference_value',
        'Susceptibility that was subtracted to refer the map', 'ppm',
    ),
    Measure(
        'reference_sd', 'recombination', 'reference_sd',
        'Standard deviation of the map in the reference region', 'ppm',
    ),
    Measure(
        'roi_mean', 'recombination', 'roi_mean',
        'Mean of the map over the region of interest before it was referred', 'ppm',
    ),
    Measure(
        'roi_sd', 'recombination', 'roi_sd',
        'Standard deviation of the map over the region of interest', 'ppm',
    ),
    Measure(
        'explained', 'comparison', 'explained',
        "Share of the conventional local field's energy that preconditioning takes off",
    ),
    Measure(
        'streaking', 'comparison', 'streaking',
        "Power in the dipole's cone over that beside it, preconditioned map", kind='log',
    ),
    Measure(
        'conventional_streaking', 'comparison', 'conventional_streaking',
        "Power in the dipole's cone over that beside it, conventional map", kind='log',
    ),
)  # fmt: skip
"""In the order of the columns of ``group_quality.tsv``."""

SCANNER = ('Manufacturer', 'ManufacturersModelName', 'DeviceSerialNumber', 'StationName')
"""What tells one scanner from another, in the sidecars."""

COUNTED: dict[str, Callable[[list[float]], float]] = {'echo_times': len}
"""Keys whose value is a list, and the number that is made of it."""

COEFFICIENTS = {
    'coefficient': ('coefficients', 'Coefficient of the prior that the field chose', ''),
    'coefficient_error': ('coefficient_errors', 'Standard error of the coefficient', ''),
    'implied_relaxivity': (
        'implied_relaxivity', "R2' per susceptibility that the coefficient implies", '1/s/ppm',
    ),
}  # fmt: skip
"""Column of ``group_coefficients.tsv`` -> key of the record of `prior_fit`, what it is, unit."""


def is_number(value: Any) -> bool:
    """Whether a value of a JSON file is a finite number.

    >>> is_number(3), is_number(True), is_number(float('nan')), is_number('3'), is_number(10**400)
    (True, False, False, False, False)
    """
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def take(parameters: Mapping[str, Any], measure: Measure) -> tuple[Any, str]:
    """The value of a measure, None where there is none, and what is wrong with it.

    Parameters
    ----------
    parameters : mapping
        ``Parameters`` of a sidecar.
    measure : Measure
        What to take.

    Examples
    --------
    >>> noise = MEASURES[2]
    >>> take({'echo_fit': {'noise_sd': 4.0}}, noise)
    (4.0, '')
    >>> take({'echo_fit': {'noise_sd': 'low'}}, noise)
    (None, "echo_fit.noise_sd = 'low' is no number")
    """
    numbers = parameters.get(measure.stage)
    value = numbers.get(measure.key) if isinstance(numbers, Mapping) else None
    if value is None:
        return None, ''
    name = f'{measure.stage}.{measure.key} = {str(value)[:40]!r}'
    if measure.kind in ('names', 'parcels'):
        terms = value.values() if isinstance(value, Mapping) else [None]
        counts = [term.get('parcels') if isinstance(term, Mapping) else None for term in terms]
        if not all(is_number(count) for count in counts):
            return None, f'{name} names no terms with their parcels'
        return (' '.join(map(str, value)) if measure.kind == 'names' else sum(counts)), ''
    if measure.kind == 'text':
        return (value, '') if isinstance(value, str) else (None, f'{name} is no text')
    if count := COUNTED.get(measure.key):
        if isinstance(value, list) and all(is_number(item) for item in value):
            return count(value), ''
        return None, f'{name} is no list of numbers'
    return (value, '') if is_number(value) else (None, f'{name} is no number')


def scanner_of(sidecar: Mapping[str, Any]) -> str | None:
    """The scanner of a sidecar in words, None where it does not say.

    >>> scanner_of({'Manufacturer': 'GE', 'StationName': 'MR1', 'FlipAngle': 20})
    'GE MR1'
    """
    words = [str(sidecar[key]) for key in SCANNER if sidecar.get(key) not in (None, '')]
    return ' '.join(words) or None


def take_coefficients(parameters: Mapping[str, Any]) -> tuple[list[dict[str, Any]], str]:
    """One row per coefficient of the prior, and what is wrong with them.

    Parameters
    ----------
    parameters : mapping
        ``Parameters`` of a sidecar.

    Examples
    --------
    >>> record = {'coefficients': {'r2prime': [1.5]}, 'coefficient_errors': [0.1]}
    >>> take_coefficients({'prior_fit': record})[0]
    [{'index': 1, 'coefficient': 1.5, 'coefficient_error': 0.1, 'implied_relaxivity': None}]
    """
    fit = parameters.get('prior_fit')
    fit = fit if isinstance(fit, Mapping) else {}
    lists = {column: fit.get(key) or [] for column, (key, *_) in COEFFICIENTS.items()}
    if isinstance(terms := lists['coefficient'], Mapping):
        values = {
            name: list(term.values()) if isinstance(term, Mapping) else term
            for name, term in terms.items()
        }
        if not all(isinstance(term, list) for term in values.values()):
            return [], 'prior_fit: the coefficients are no lists'
        lists['coefficient'] = [value for term in values.values() for value in term]
        if len(values) > 1 and isinstance(lists['implied_relaxivity'], list):
            # It is that of one term among several.
            implied = lists['implied_relaxivity']
            lists['implied_relaxivity'] = [
                value
                for name, term in values.items()
                for value in (implied if name == 'r2prime' else [None] * len(term))
            ]
    if not all(isinstance(values, list) for values in lists.values()):
        return [], 'prior_fit: the coefficients are no lists'
    n = len(lists['coefficient'])
    if any(len(values) not in (0, n) for values in lists.values()):
        sizes = ', '.join(f'{len(values)} {COEFFICIENTS[c][0]}' for c, values in lists.items())
        return [], f'prior_fit: lists of different lengths: {sizes}'
    rows = []
    for i in range(n):
        values = {column: values[i] if values else None for column, values in lists.items()}
        rows.append({'index': i + 1} | {c: v if is_number(v) else None for c, v in values.items()})
    return rows, ''


def warnings_of(parameters: Mapping[str, Any]) -> list[str]:
    """Every warning that a stage left, with the stage's name.

    >>> warnings_of({'comparison': {'warnings': ['it did not help']}, 'echo_fit': {}})
    ['comparison: it did not help']
    """
    found = []
    for stage, numbers in parameters.items():
        texts = numbers.get('warnings') if isinstance(numbers, Mapping) else None
        for text in [texts] if isinstance(texts, str) else texts or ():
            found.append(f'{stage}: {" ".join(str(text).split())}')
    return found
