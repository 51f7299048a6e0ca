"""Headers of images: their numbers, their orientation, and one grid for all of a run."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np

from precondqsm_bids.inputs.files import without_content
from precondqsm_bids.inputs.run import Note, RunError
from precondqsm_bids.numerics.dipole import b0_direction

GRID_TOLERANCE = 1e-3
"""Largest difference (mm) between elements of two affines that are called equal."""
SAME_RATIO = 0.01
"""Relative difference between ratios of voxel sizes that are called equal."""
SAME_DIRECTION = 1.0
"""Degrees; directions of B0 that differ by less give the same maps."""
PERPENDICULAR = 1.0
"""Degrees by which the axes of an affine may be off a right angle."""
VOXEL_SIZES = (0.005, 50.0)
"""mm; a voxel outside of it is a header in another unit."""
LEAST_MATRIX = 4
"""Voxels along each axis: a thinner slab has no voxel without a border on either side."""


class Grid(NamedTuple):
    """What the header of an image says about its grid."""

    shape: tuple[int, ...]
    affine: np.ndarray
    oriented: bool
    """Whether the header has a qform or an sform; the affine is made up otherwise."""
    note: str
    """What is to be reported of it."""
    code: int
    """NIfTI code of the transform that is used: 1 is the coordinates of the scanner."""
    path: Path

    def differs_from(self, other: 'Grid') -> str:
        """How the grid differs from another one, or an empty string."""
        if self.shape != other.shape:
            return f'shape {self.shape} differs from {other.shape} of {other.path}'
        if not np.allclose(self.affine, other.affine, rtol=0, atol=GRID_TOLERANCE):
            largest = np.abs(self.affine - other.affine).max()
            return f'affine differs by {largest:.4g} mm from that of {other.path}'
        return ''


def load_grid(path: Path) -> Grid:
    """Grid of an image, from its header, if its numbers and its geometry can be used.

    What is missing from a compressed file is only seen by the node that reads it all.
    """
    try:
        if path.stat().st_size == 0:
            raise RunError(path, 'is empty (0 bytes): fetch its content, or copy it again')
        image: Any = nib.load(path)
        header = image.header
        shape, affine = image.shape, np.asarray(image.affine, dtype=np.float64)
        if len(shape) < 3:
            raise RunError(
                path, f'has the shape {shape}, one slice: store the whole volume, of three axes'
            )
        if len(shape) == 4 and shape[3] == 1:
            shape = shape[:3]
        dtype = header.get_data_dtype()
        if path.suffix == '.nii':
            # The header in memory has lost the offset; the data's proxy has kept it.
            needed = image.dataobj.offset + math.prod(image.shape) * dtype.itemsize
            if (size := path.stat().st_size) < needed:
                raise RunError(
                    path, f'is truncated: {size} bytes of {needed}; copy the file again'
                )
        scaling = (image.dataobj.slope, image.dataobj.inter)
        oriented, note = _orientation(path, header)
    except FileNotFoundError as error:
        link = ' (a link to nowhere: fetch the content)' if path.is_symlink() else ''
        raise RunError(path, f'cannot be found{link}: restore it') from error
    except (RunError, MemoryError):
        raise
    except Exception as error:  # zlib.error and nibabel's header errors have no common base
        message = f'is not a readable NIfTI file ({error}); copy or convert it again'
        raise RunError(path, without_content(path) or message) from error
    _check_numbers(path, dtype, *scaling)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise RunError(path, f'has no usable affine: {affine[:3].tolist()}; convert it again')
    if wrong := sheared(affine):
        raise RunError(path, wrong)
    code = int(header['sform_code']) or int(header['qform_code'])
    return Grid(shape, affine, oriented, note, code, path)


def sheared(affine: np.ndarray) -> str:
    """What is to be reported of an affine whose axes are not perpendicular, or an empty string.

    The dipole kernel is that of a grid of right angles. Scanners make no other, but an affine
    registration that is written into the header does.

    >>> affine = np.eye(4); affine[0, 1] = 0.2
    >>> sheared(affine)
    'is sheared: its voxel axes are 78.7 degrees apart by the affine, not 90; ...'
    """
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    cosine = float(np.abs(axes.T @ axes - np.eye(3)).max())
    angle = math.degrees(math.acos(min(1.0, cosine)))
    if 90 - angle <= PERPENDICULAR:
        return ''
    return (
        f'is sheared: its voxel axes are {angle:.1f} degrees apart by the affine, not 90; take '
        'the affine of the scanner (a registration with shears?), or resample the complex images'
    )


def _check_numbers(path: Path, dtype: np.dtype, slope: float, intercept: float) -> None:
    """Raise unless the stored numbers are real and stay finite in single precision."""
    if dtype.kind == 'c':
        raise RunError(
            path,
            f'holds complex numbers ({dtype}): store part-real and part-imag, or part-mag and '
            'part-phase, as images of their own',
        )
    if dtype.kind not in 'iuf':
        raise RunError(path, f'holds {dtype} (colours?), not numbers: convert the image again')
    if dtype.kind in 'iu':
        edges = (float(np.iinfo(dtype).min), float(np.iinfo(dtype).max))
        largest = max(abs(float(slope) * edge + float(intercept)) for edge in edges)
        if not largest <= float(np.finfo(np.float32).max):
            raise RunError(
                path,
                f'scl_slope {slope:g} and scl_inter {intercept:g} take {dtype} beyond what single '
                'precision holds: correct the header',
            )


def _orientation(path: Path, header: Any) -> tuple[bool, str]:
    """Whether a header has an orientation, and what is to be reported of it."""
    unit = header.get_xyzt_units()[0]
    if unit in ('meter', 'micron'):
        raise RunError(path, f'says that its lengths are in {unit}s: convert the header to mm')
    (qform, qcode), (sform, scode) = header.get_qform(coded=True), header.get_sform(coded=True)
    size = header.get_zooms()[:3] if scode == 0 else nib.affines.voxel_sizes(sform)
    low, high = VOXEL_SIZES
    # All zero is a header without any geometry, which is refused elsewhere.
    if np.any(size) and not all(low <= edge <= high for edge in size):
        numbers = ' x '.join(f'{edge:.4g}' for edge in size)
        raise RunError(
            path,
            f'voxel size {numbers} mm is not between {low} and {high} mm: correct the header '
            '(another unit?)',
        )
    _check_ratios(path, header)
    if qcode == 0 or scode == 0:
        return bool(qcode or scode), ''
    try:
        one, other = b0_direction(qform), b0_direction(sform)
    except ValueError:
        return True, ''
    angle = _degrees_between(one, other)
    shift = float(np.abs(qform - sform).max())
    if angle > SAME_DIRECTION:
        words = (
            f'qform (code {int(qcode)}) and sform (code {int(scode)}) differ: B0 is along '
            f'{one.round(3).tolist()} of the voxel axes by the one and '
            f'{other.round(3).tolist()} by the other, {angle:.1f} degrees apart'
        )
        if int(qcode) == 1 and int(scode) != 1:
            raise RunError(
                path,
                f'{words}; the scanner is what the qform says, but the sform comes first: copy '
                'the qform into the sform',
            )
        return True, f'{words}; the sform is used. If it is wrong, copy the qform into the sform'
    if shift > max(GRID_TOLERANCE, 1e-3 * float(max(size))):
        return True, (
            f'qform and sform differ by up to {shift:.4g} mm, with the same direction of B0; '
            'the sform is used'
        )
    return True, ''


def _check_ratios(path: Path, header: Any) -> None:
    """Raise if sform and pixdim, which is the qform's too, disagree in the ratio of voxel sizes.

    A common factor is another unit or a rescaled atlas and changes no map; a ratio is a voxel of
    another shape, whose field is another one.
    """
    pixdim = np.asarray(header.get_zooms()[:3], dtype=np.float64)
    sizes = nib.affines.voxel_sizes(header.get_sform())
    usable = np.isfinite(sizes) & (sizes > 0) & (pixdim > 0)
    if int(header['sform_code']) == 0 or not usable.all():
        return
    ratio = sizes / pixdim
    if ratio.max() > (1 + SAME_RATIO) * ratio.min():
        raise RunError(
            path,
            f'voxels are {" x ".join(f"{v:.4g}" for v in sizes)} mm by the sform and '
            f'{" x ".join(f"{v:.4g}" for v in pixdim)} mm by pixdim'
            f'{" and the qform" if int(header["qform_code"]) else ""}, of other ratios: which '
            'shape they have is not known; correct the header, or convert the image again',
        )


def _degrees_between(one: np.ndarray, other: np.ndarray) -> float:
    """Angle between the lines along two unit vectors: a field and its opposite are one."""
    return math.degrees(math.acos(min(1.0, abs(float(one @ other)))))


def check_grids(paths: Sequence[Path], b0_dir: Sequence[float] | None) -> tuple[Grid, list[Note]]:
    """The one grid of all images, and what is to be reported of it."""
    first = load_grid(paths[0])
    if min(first.shape[:3]) < LEAST_MATRIX:
        raise RunError(
            first.path,
            f'has the matrix {" x ".join(map(str, first.shape[:3]))}; {LEAST_MATRIX} voxels are '
            'the least along each axis: acquire or export the whole volume',
        )
    for other in map(load_grid, paths[1:]):
        if wrong := other.differs_from(first):
            raise RunError(other.path, f'{wrong}; export or resample them on one grid')
        if other.oriented != first.oriented:
            good, bad = (first, other) if first.oriented else (other, first)
            raise RunError(
                bad.path, f'has neither qform nor sform, unlike {good.path}: convert it again'
            )
    if not first.oriented and b0_dir is None:
        raise RunError(
            first.path,
            'has neither qform nor sform (both codes are 0), so that the direction of B0 is not '
            'known: convert it again, or give --b0-dir X Y Z along the voxel axes',
        )
    notes = [Note(first.path, first.note)] if first.note else []
    if first.oriented and b0_dir is not None:
        along, stated = b0_direction(first.affine), np.asarray(b0_dir, dtype=np.float64)
        stated = stated / np.linalg.norm(stated)
        angle = _degrees_between(along, stated)
        if angle > SAME_DIRECTION:
            message = (
                f'B0 is along {stated.round(3).tolist()} of the voxel axes by --b0-dir, which '
                f'is used, and along {along.round(3).tolist()} by the affine, {angle:.1f} '
                'degrees apart; the maps keep the affine'
            )
            notes.append(Note(first.path, message))
    return first, notes
