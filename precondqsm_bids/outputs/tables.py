"""The maps' values per labelled region, as a BIDS table and its data dictionary."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nb
import numpy as np
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    SimpleInterface,
    TraitedSpec,
    isdefined,
    traits,
)

from precondqsm_bids.numerics.roi_values import (
    Cylinder,
    cylinder_reference,
    find_cylinder,
    region_values,
    surrounding_label,
)

MAPS = {
    'precond_chi': ('preconditioned susceptibility', 'ppm'),
    'conventional_chi': ('conventional susceptibility', 'ppm'),
    'prior_chi': ('prior susceptibility', 'ppm'),
    'residual_chi': ('residual susceptibility', 'ppm'),
    'r2star': ('R2*', '1/s'),
    't2star': ('T2*', 's'),
    's0': ('S0', 'arbitrary'),
    'r2prime': ("R2'", '1/s'),
    'total_field': ('total field', 'ppm'),
    'flattened_field': ('flattened field', 'ppm'),
    'local_field': ('local field', 'ppm'),
}
"""Input of `RoiValues` -> what it is, unit of its columns."""

CHI_MAPS = ('precond_chi', 'conventional_chi', 'prior_chi', 'residual_chi')


class _RoiValuesInputSpec(BaseInterfaceInputSpec):
    labels = File(exists=True, mandatory=True, desc='integer labels on the grid of the maps')
    label_names = traits.Dict(traits.Int, traits.Str, desc='name of each label')
    mask = File(
        exists=True, mandatory=True, desc='region of interest: voxels outside it do not count'
    )
    precond_chi = File(exists=True, desc='preconditioned susceptibility, ppm')
    conventional_chi = File(exists=True, desc='conventional susceptibility, ppm')
    prior_chi = File(exists=True, desc='prior susceptibility, ppm')
    residual_chi = File(exists=True, desc='residual susceptibility, ppm')
    r2star = File(exists=True, desc='R2*, 1/s')
    t2star = File(exists=True, desc='T2*, s')
    s0 = File(exists=True, desc='S0, arbitrary unit')
    r2prime = File(exists=True, desc="R2', 1/s")
    total_field = File(exists=True, desc='total field, ppm')
    flattened_field = File(exists=True, desc='flattened field, ppm')
    local_field = File(exists=True, desc='local field, ppm')


class _RoiValuesOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc='table, one row per label')
    columns = traits.Dict(desc='data dictionary of the table: column -> Description, Units')


class RoiValues(SimpleInterface):
    """Mean, sd, median and voxel count of each map in each label, and cylinder references.

    The result is `numerics.roi_values` over the voxels of each label that lie in the mask.
    """

    input_spec = _RoiValuesInputSpec
    output_spec = _RoiValuesOutputSpec

    def _run_interface(self, runtime):
        image = nb.load(self.inputs.labels)
        labels = np.rint(np.asanyarray(image.dataobj)).astype(int)
        mask = _load_on_grid(self.inputs.mask, image) > 0
        maps = {
            name: _load_on_grid(getattr(self.inputs, name), image)
            for name in MAPS
            if isdefined(getattr(self.inputs, name))
        }
        names = self.inputs.label_names if isdefined(self.inputs.label_names) else {}
        rows = roi_rows(labels, names, mask, maps, image.affine)
        columns = column_dictionary(list(rows[0]) if rows else ['index', 'name'], labels, names)

        out_file = Path(runtime.cwd) / 'roi_values.tsv'
        with out_file.open('w', newline='') as stream:
            writer = csv.DictWriter(stream, list(columns), delimiter='\t', lineterminator='\n')
            writer.writeheader()
            writer.writerows({k: _cell(v) for k, v in row.items()} for row in rows)
        self._results.update(out_file=str(out_file), columns=columns)
        return runtime


def roi_rows(
    labels: np.ndarray,
    names: Mapping[int, str],
    mask: np.ndarray,
    maps: Mapping[str, np.ndarray],
    affine: np.ndarray,
) -> list[dict[str, Any]]:
    """One dictionary per label, with the columns of the table in order.

    ``*_minus_medium`` is the mean minus the mean in the label that surrounds all others (the
    agar of a phantom), where there is one: the quantity of the abstract's figure 2.
    """
    indices = [int(i) for i in np.unique(labels) if i > 0]
    regions = {i: labels == i for i in indices}
    medium = surrounding_label(labels)
    cylinders = {
        i: cylinder
        for i, region in regions.items()
        if (cylinder := find_cylinder(region, affine)) is not None
    }
    in_medium = {
        name: region_values(values, regions[medium] & mask).mean
        for name, values in maps.items()
        if medium is not None and name in CHI_MAPS
    }
    rows = []
    for i in indices:
        row: dict[str, Any] = {
            'index': i,
            'name': names.get(i, f'label-{i}'),
            'n_voxels': int(regions[i].sum()),
        }
        for name, values in maps.items():
            summary = region_values(values, regions[i] & mask)
            row[f'{name}_mean'] = summary.mean
            row[f'{name}_sd'] = summary.sd
            row[f'{name}_median'] = summary.median
            row[f'{name}_n'] = summary.n_voxels
            if name in in_medium:
                row[f'{name}_minus_medium'] = summary.mean - in_medium[name]
        if 'total_field' in maps:
            row.update(_cylinder_columns(i, cylinders, maps['total_field'], affine, mask))
        rows.append(row)
    return rows


def column_dictionary(
    columns: list[str], labels: np.ndarray, names: Mapping[int, str]
) -> dict[str, dict[str, str]]:
    """The JSON data dictionary: what every column is, with its unit."""
    medium = surrounding_label(labels)
    described = {
        'index': 'Value of the label in the segmentation',
        'name': 'Name of the label',
        'n_voxels': 'Number of voxels of the label',
        'cylinder_reference': (
            'Susceptibility relative to the medium around it, for a label that is a long '
            'cylinder, from the total field alone: 2 (field in the core - field of the medium) / '
            '(cos^2 theta - 1/3), along B0 3 dphi / (gamma B0 dt); independent of every map'
        ),
        'cylinder_reference_sd': 'Standard deviation of that value over the voxels of the core',
        'cylinder_angle': 'Angle between the axis of the cylinder and B0',
        'cylinder_reference_note': 'Why a cylinder has no reference value',
    }
    units = {
        'cylinder_reference': 'ppm',
        'cylinder_reference_sd': 'ppm',
        'cylinder_angle': 'degree',
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
    for name, (what, unit) in MAPS.items():
        for key, text in statistics.items():
            described[f'{name}_{key}'] = text.format(what)
            if key != 'n':
                units[f'{name}_{key}'] = unit
    return {
        column: {'Description': described[column]}
        | ({'Units': units[column]} if column in units else {})
        for column in columns
    }


def read_table(path: str | Path) -> list[dict[str, Any]]:
    """Read the table back: numbers as float, ``n/a`` as None."""
    with Path(path).open(newline='') as stream:
        return [
            {key: _value(text) for key, text in row.items()}
            for row in csv.DictReader(stream, delimiter='\t')
        ]


def _cylinder_columns(
    index: int,
    cylinders: Mapping[int, Cylinder],
    total_field: np.ndarray,
    affine: np.ndarray,
    mask: np.ndarray,
) -> dict[str, Any]:
    if index not in cylinders:
        return dict.fromkeys(
            (
                'cylinder_reference',
                'cylinder_reference_sd',
                'cylinder_angle',
                'cylinder_reference_note',
            )
        )
    reference = cylinder_reference(total_field, index, cylinders, affine, mask)
    return {
        'cylinder_reference': reference.chi,
        'cylinder_reference_sd': reference.sd,
        'cylinder_angle': reference.angle,
        'cylinder_reference_note': reference.note or None,
    }


def _load_on_grid(path: str, grid: nb.spatialimages.SpatialImage) -> np.ndarray:
    image = nb.load(path)
    if image.shape != grid.shape or not np.allclose(image.affine, grid.affine, atol=1e-3):
        raise ValueError(
            f'the labels {grid.shape} and the map {image.shape} are not on the same grid: '
            f'{grid.get_filename()}, {path}. Resample the labels to the run (nearest neighbour).'
        )
    return np.asanyarray(image.dataobj)


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and not np.isfinite(value)):
        return 'n/a'
    return f'{value:.6g}' if isinstance(value, float) else str(value)


def _value(text: str) -> Any:
    if text == 'n/a':
        return None
    try:
        return json.loads(text)
    except ValueError:
        return text
