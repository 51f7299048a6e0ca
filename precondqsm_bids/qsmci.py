"""The method as a submission to QSM-CI, the open benchmark: ``python -m precondqsm_bids.qsmci``.

A container of that benchmark finds ``magnitude``, ``mask`` (``.nii.gz``) and ``params.json`` in
one folder, and ``phase`` (rad; the span ``end-to-end`` of its contract) or ``totalfield`` (ppm;
the span ``bfr+dipole``), and writes ``chimap.nii.gz`` (ppm) into another. The folder of a
submission is ``docs/qsmci``.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nb
import numpy as np
import numpy.typing as npt

from precondqsm_bids.cli.resources import cpu_limit
from precondqsm_bids.inputs.grid import GRID_TOLERANCE
from precondqsm_bids.interfaces.volumes import load_stored
from precondqsm_bids.method import Method
from precondqsm_bids.numerics import Companions, GivenField, Scan, reconstruct
from precondqsm_bids.usage import OneLineParser

PARAMS = {'TE': None, 'B0': 1, 'B0_dir': 3, 'voxel_size': 3}
"""Keys of ``params.json`` and how many numbers each holds; None: one for each echo."""


def read_params(path: Path) -> dict[str, npt.NDArray[np.float64]]:
    """Echo times (s), B0 (T), its direction along the voxel axes, and the voxel size (mm).

    Raises
    ------
    ValueError
        The file is no JSON object, or a value is missing or not of the right length.
    """
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise ValueError(f'{path} is not a readable JSON file: {error}') from error
    values = {}
    for key, number in PARAMS.items():
        try:
            values[key] = np.atleast_1d(np.asarray(content[key], np.float64))
        except (KeyError, TypeError, ValueError):
            raise ValueError(f'{path} has no numbers as {key}') from None
        right = values[key].ndim == 1 and number in (None, values[key].size)
        if not right or not np.isfinite(values[key]).all():
            raise ValueError(f'{path}: {key} should hold {number or "finite"} numbers')
    length = float(np.linalg.norm(values['B0_dir']))
    if not 0 < length < np.inf:
        raise ValueError(f'{path}: B0_dir {content["B0_dir"]} is no direction')
    values['B0_dir'] /= length
    return values


def read_scan(
    folder: Path,
) -> tuple[Scan | GivenField, npt.NDArray[np.bool_], nb.spatialimages.SpatialImage]:
    """Scan or field, mask and the mask's image of a folder of the benchmark.

    Raises
    ------
    OSError
        A file is missing or cannot be read.
    ValueError
        The images are on different grids, or do not go with ``params.json``.
    """
    params = read_params(folder / 'params.json')
    stored, like = load_stored(str(folder / 'mask.nii.gz'))
    mask = stored > 0
    x, y, z = params['voxel_size'].tolist()
    strength, size = float(params['B0'][0]), (x, y, z)
    magnitude = _read(folder / 'magnitude.nii.gz', like)
    if not (folder / 'phase.nii.gz').exists() and (folder / 'totalfield.nii.gz').exists():
        field = _read(folder / 'totalfield.nii.gz', like)[..., 0]
        combined = np.sqrt((magnitude.astype(np.float64) ** 2).sum(axis=-1)).astype(np.float32)
        given = GivenField(field, combined, strength, size, params['B0_dir'], b0_stated=True)
        return given, mask, like
    phase = _read(folder / 'phase.nii.gz', like)
    for name, data in (('magnitude', magnitude), ('phase', phase)):
        if data.shape[3] != params['TE'].size:
            raise ValueError(
                f'{folder / name}.nii.gz has the shape {data.shape}; params.json has '
                f'{params["TE"].size} echo times'
            )
    scan = Scan(
        magnitude,
        phase,
        params['TE'],
        strength,
        size,
        params['B0_dir'],
        b0_stated=True,
        phase_units='rad',
    )
    return scan, mask, like


def _read(path: Path, like: nb.spatialimages.SpatialImage) -> npt.NDArray[np.float32]:
    """Image of the benchmark on the grid of the mask, (X, Y, Z, E)."""
    data, image = load_stored(str(path))
    data = data.reshape(*data.shape[:3], -1)
    if data.shape[:3] != like.shape[:3]:
        raise ValueError(
            f'{path} has the shape {data.shape}; the mask has {like.shape}: resample one of them'
        )
    if (most := float(np.abs(image.affine - like.affine).max())) > GRID_TOLERANCE:
        raise ValueError(
            f'{path} and the mask differ in their affines, by up to {most:.4g} mm: resample one '
            'of them'
        )
    return np.ascontiguousarray(data, np.float32)


def main(argv: Sequence[str] | None = None) -> int:
    """Reconstruct a folder of the benchmark; 0, or 1 after an error."""
    parser = OneLineParser('python -m precondqsm_bids.qsmci', description=__doc__)
    parser.add_argument('input', type=Path, metavar='INPUT', help='folder with the scan')
    parser.add_argument('output', type=Path, metavar='OUTPUT', help='folder of chimap.nii.gz')
    options: Any = parser.parse_args(argv)
    try:
        scan, mask, like = read_scan(options.input)
        method, cpus = Method(conventional=False), int(cpu_limit().value)
        found = reconstruct(scan, method, Companions(mask=mask), workers=cpus)
    except (OSError, ValueError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    for words in found.measured.record['warnings']:
        print(f'warning: {words}', file=sys.stderr)
    header = like.header.copy()
    header.set_data_dtype(np.float32)
    options.output.mkdir(parents=True, exist_ok=True)
    nb.Nifti1Image(found.chi, like.affine, header).to_filename(options.output / 'chimap.nii.gz')
    return 0


if __name__ == '__main__':
    sys.exit(main())
