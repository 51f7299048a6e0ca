"""The maps' values per labelled region: rows, data dictionary and the table as a file."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from precondqsm_bids.numerics.arrays import side_by_side
from precondqsm_bids.numerics.roi_values import (
    Cylinder,
    cylinder_reference,
    find_cylinder,
    label_boxes,
    region_values,
    surrounding_label,
)
from precondqsm_bids.outputs.maps import MAPS

LONGEST = 10_000
"""Characters of a cell."""

CYLINDER = {
    'cylinder_reference': (
        'Susceptibility relative to the medium around it, for a label that is a long cylinder, '
        'from the total field alone: 2 (field in the core - field of the medium) / '
        '(cos^2 theta - 1/3), along B0 3 dphi / (gamma B0 dt); independent of every map',
        'ppm',
    ),
    'cylinder_reference_sd': (
        'Standard deviation of that value over the voxels of the core', 'ppm',
    ),
    'cylinder_angle': ('Angle between the axis of the cylinder and B0', 'degree'),
    'cylinder_reference_note': ('Why a cylinder has no reference value', ''),
}  # fmt: skip
"""Columns of the reference from the bulk field: what they are, unit."""


ERROR = {
    'precond_chi_error': (
        'error',
        'Standard deviation of the mean of the preconditioned susceptibility relative to the '
        'reference: noise, misfit and prior, with their correlation over the voxels', 'ppm',
    ),
    'precond_chi_support': (
        'support', 'Part of that mean that the field decided rather than the contrast', '',
    ),
    'precond_chi_pattern_support': (
        'pattern_support',
        'Part of the pattern within the label that the field decided rather than the contrast', '',
    ),
}  # fmt: skip
"""Columns of the uncertainty of a label: key of its record, what they are, unit."""


class Segmentation(NamedTuple):
    """Labelled regions of a map."""

    labels: np.ndarray
    """Label of each voxel, (X, Y, Z), 0 where there is none."""
    names: Mapping[int, str]
    """Names of the labels, as far as they have any."""
    affine: np.ndarray
    """From voxels to mm, (4, 4), B0 along the third axis."""


def roi_rows(
    segmentation: Segmentation,
    mask: np.ndarray,
    maps: Mapping[str, np.ndarray],
    uncertainty: Mapping[str, Mapping[str, Any]] | None = None,
    workers: int = 1,
) -> list[dict[str, Any]]:
    """One dictionary per label, with the columns of the table in order.

    ``*_minus_medium`` is the mean minus the mean in the label that surrounds all others (the
    agar of a phantom), where there is one: the quantity of the abstract's figure 2.
    ``uncertainty`` is ``regions`` of the record of that stage; ``workers`` threads share the work.
    """
    labels, names, affine = segmentation
    boxes = label_boxes(labels)
    regions = {i: labels[box] == i for i, box in boxes.items()}
    known = {i: region & mask[boxes[i]] for i, region in regions.items()}
    medium = surrounding_label(labels, boxes)
    pairs = [(i, name) for i in boxes for name in maps]
    found = side_by_side(
        workers,
        *(
            partial(find_cylinder, region, affine, [side.start for side in boxes[i]])
            for i, region in regions.items()
        ),
        *(partial(region_values, maps[name][boxes[i]], known[i]) for i, name in pairs),
    )
    cylinders = {i: one for i, one in zip(boxes, found, strict=False) if one is not None}
    summaries = dict(zip(pairs, found[len(boxes) :], strict=True))
    in_medium = {
        name: summaries[medium, name].mean
        for name in maps
        if medium is not None and MAPS[name].suffix == 'Chimap' and not MAPS[name].of_trust
    }
    rows = []
    for i in boxes:
        row: dict[str, Any] = {
            'index': i,
            'name': names.get(i, f'label-{i}'),
            'n_voxels': int(regions[i].sum()),
        }
        for name in maps:
            summary = summaries[i, name]
            row[f'{name}_mean'] = summary.mean
            row[f'{name}_sd'] = summary.sd
            row[f'{name}_median'] = summary.median
            row[f'{name}_n'] = summary.n_voxels
            if name in in_medium:
                row[f'{name}_minus_medium'] = summary.mean - in_medium[name]
            if name == 'precond_chi' and uncertainty is not None:
                of_label = uncertainty.get(str(i), {})
                row.update({column: of_label.get(key) for column, (key, _, _) in ERROR.items()})
        if 'total_field' in maps:
            row.update(_cylinder_columns(i, cylinders, maps['total_field'], affine, mask))
        rows.append(row)
    return rows


def column_dictionary(columns: list[str], segmentation: Segmentation) -> dict[str, dict[str, str]]:
    """The JSON data dictionary: what every column is, with its unit."""
    medium, names = surrounding_label(segmentation.labels), segmentation.names
    described = {
        'index': ('Value of the label in the segmentation', ''),
        'name': ('Name of the label', ''),
        'n_voxels': ('Number of voxels of the label', ''),
        **CYLINDER,
        **{column: tuple(row[1:]) for column, row in ERROR.items()},
    }
    statistics = {
        'mean': 'Mean of the {} over the voxels of the label inside the region of interest',
        'sd': 'Standard deviation of the {} over the same voxels',
        'median': 'Median of the {} over the same voxels',
        'n': 'Number of those voxels in which the {} is finite',
        'minus_medium': (
            f'Mean of the {{}} minus its mean in label {medium} '
            f'({names.get(medium, "unnamed") if medium else ""}), which surrounds the others'
        ),
    }
    for name, row in MAPS.items():
        for key, text in statistics.items():
            unit = '' if key == 'n' else row.unit or ''
            described[f'{name}_{key}'] = (text.format(row.words), unit)
    return {
        column: {'Description': text} | ({'Units': unit} if unit else {})
        for column, (text, unit) in ((column, described[column]) for column in columns)
    }


def write_table(path: Path, columns: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as a table of BIDS."""
    with path.open('w', newline='', encoding='utf-8') as stream:
        writer = csv.DictWriter(stream, list(columns), delimiter='\t', lineterminator='\n')
        writer.writeheader()
        writer.writerows({name: cell(value) for name, value in row.items()} for row in rows)


def read_table(path: str | Path) -> list[dict[str, Any]]:
    """Read the table back: numbers as float, ``n/a`` as None."""
    with Path(path).open(newline='', encoding='utf-8') as stream:
        return [
            {key: _value(text) for key, text in row.items()}
            for row in csv.DictReader(stream, delimiter='\t')
        ]


def refer_prior(rows: Iterable[dict[str, Any]], mean: float | None) -> list[dict[str, Any]]:
    """Rows with the prior relative to its mean in the reference of the maps, ppm; None: without.

    >>> refer_prior([{'prior_chi_mean': 0.75}], 0.5), refer_prior([{'prior_chi_mean': 1}], None)
    ([{'prior_chi_mean': 0.25}], [{'prior_chi_mean': None}])
    """
    key = 'prior_chi_mean'
    return [
        row | {key: None if mean is None or row.get(key) is None else row[key] - mean}
        for row in rows
    ]


def _cylinder_columns(
    index: int,
    cylinders: Mapping[int, Cylinder],
    total_field: np.ndarray,
    affine: np.ndarray,
    mask: np.ndarray,
) -> dict[str, Any]:
    if index not in cylinders:
        return dict.fromkeys(CYLINDER)
    found = cylinder_reference(total_field, index, cylinders, affine, mask)
    return dict(zip(CYLINDER, (found.chi, found.sd, found.angle, found.note or None), strict=True))


def cell(value: Any) -> str:
    """A value as it stands in a table: six digits, ``n/a`` for none, on one line, not too long.

    >>> cell(0.1234567), cell(float('nan')), cell(None), cell('a\\tb')
    ('0.123457', 'n/a', 'n/a', 'a b')
    """
    if isinstance(value, float):
        return f'{value:.6g}' if np.isfinite(value) else 'n/a'
    text = '' if value is None else ' '.join(str(value).split())
    return (text if len(text) <= LONGEST else f'{text[:LONGEST]} ...') or 'n/a'


def _value(text: str) -> Any:
    if text == 'n/a':
        return None
    try:
        return json.loads(text)
    except ValueError:
        return text
