"""NIfTI in, NIfTI out: the files around the one function of a stage.

Arrays have their axes along right, anterior and superior, as near as the affine lets them, and
files are as they are stored: the same object stored with its axes permuted or reversed is the
same array, and so gives the same map to the last bit.
"""

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import nibabel as nb
import numpy as np
from isal import igzip
from scipy import ndimage

from precondqsm_bids.inputs.grid import GRID_TOLERANCE, sheared
from precondqsm_bids.numerics.arguments import as_mask, check_labels
from precondqsm_bids.numerics.arrays import check_finite, side_by_side
from precondqsm_bids.numerics.dipole import b0_direction
from precondqsm_bids.numerics.phase.checks import check_not_negative, check_not_phase

OBJECT_LEVEL = 0.25
"""Fraction of the median signal above which a voxel certainly is object."""

STATED = 'B0 is along'
"""How the description in the header of a working copy begins whose affine does not say where B0
is (``b0_dir``); three numbers follow, along the stored axes. It goes from file to file."""


def load(path: str, dtype: type | None = np.float32) -> np.ndarray:
    """Volume of a NIfTI file in :func:`canonical` order, of its own type if ``dtype`` is None.

    It is C-ordered (nibabel's Fortran order slows every later pass down).

    Raises OSError, with its name, if the file cannot be read to its end.
    """
    data, image = load_stored(path)
    return np.ascontiguousarray(canonical(data, image.affine), dtype=dtype)


def load_mask(path: str) -> np.ndarray:
    """A mask in :func:`canonical` order, as booleans.

    Raises ValueError, with its name, if it has more than one value beside 0.
    """
    return as_mask(load(path, None), path)


def open_image(path: str) -> nb.spatialimages.SpatialImage:
    """A NIfTI file whose header can be read; OSError, with its name, otherwise."""
    try:
        return nb.load(path)
    except Exception as error:  # no file, no image, a header that is none
        raise OSError(f'{path} cannot be read: {error}') from error


def view(path: str) -> np.ndarray:
    """As :func:`load`, of its own type and in any memory order, mapped where the file allows it.

    For those who need few of the voxels.
    """
    data, image = load_stored(path)
    return canonical(data, image.affine)


def canonical(data: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """The data (X, Y, Z, ...) of an affine with axes nearest to right, anterior and superior.

    >>> canonical(np.arange(3).reshape(1, 3, 1), np.diag([1, -1, 1, 1])).ravel()
    array([2, 1, 0])
    """
    return nb.apply_orientation(data, nb.io_orientation(affine))


def stored_axes(affine: np.ndarray, axes: Iterable[int]) -> list[int]:
    """Axes of the file that are these axes of the array.

    >>> stored_axes(np.eye(4)[[2, 0, 1, 3]], [2])
    [1]
    """
    order = nb.io_orientation(affine)[:, 0].tolist()
    return [order.index(axis) for axis in axes]


def load_stored(path: str) -> tuple[np.ndarray, nb.spatialimages.SpatialImage]:
    """Data of a NIfTI file in the order they are stored (with its scaling), and the image.

    Raises OSError, with its name, if the file cannot be read to its end, or a compressed one is
    not whole, to its checksum; ValueError if its voxels are no real numbers.
    """
    try:
        image = nb.load(path)
        if str(path).endswith('.gz'):
            with igzip.open(path) as stream:
                image = type(image).from_stream(stream)
                data = np.asanyarray(image.dataobj)
                while stream.read(1 << 20):  # the voxels end before the checksum
                    pass
        else:
            data = np.asanyarray(image.dataobj)
    except MemoryError:
        raise
    except Exception as error:  # truncated gzip, short data, a header that is none
        raise OSError(
            f'{path} cannot be read (truncated or damaged?): {error}; copy the file again'
        ) from error
    if data.dtype.kind not in 'biuf':
        what = 'complex numbers' if data.dtype.kind == 'c' else 'colours'
        raise ValueError(f'{path} has {what}, where one real number a voxel is needed: convert it')
    if data.ndim == 4 and data.shape[3] == 1:
        data = data[..., 0]
    return data, image


def object_in(magnitude: np.ndarray) -> np.ndarray:
    """The object of a magnitude (X, Y, Z) and what it surrounds; NaN counts as no signal.

    What reaches an edge of the field of view is surrounded if it is so within the edge's plane.

    >>> magnitude = np.zeros((7, 7, 7)); magnitude[1:6, 1:6, 1:6] = 1; magnitude[3, 3, 3] = np.nan
    >>> object_in(magnitude)[3, 3, [0, 3]].tolist()
    [False, True]
    """
    signal = np.nan_to_num(magnitude, nan=0.0, posinf=0.0, neginf=0.0)
    bright = signal[signal > 0]
    if not bright.size:
        return np.zeros(signal.shape, bool)
    level = OBJECT_LEVEL * np.median(bright[bright >= bright.mean()])
    filled = signal > level
    for axis in range(3):
        for plane in (0, -1):
            face = np.moveaxis(filled, axis, 0)[plane]
            face |= ndimage.binary_fill_holes(face)
    return ndimage.binary_fill_holes(filled)


def clear_nan(data: np.ndarray, path: str, where: np.ndarray) -> np.ndarray:
    """Set part of an echo, (X, Y, Z), to 0 in place where it is NaN: no signal; where that was.

    Raises ValueError, with the name of the file, if it is NaN in the object (``where``).
    """
    nan = np.isnan(data)
    if not nan.any():
        return nan
    if inside := int(np.count_nonzero(nan & where)):
        raise ValueError(
            f'{path} has {inside} voxels that are not finite (NaN) inside the object, where there '
            f'is signal, of {int(nan.sum())} in all: export the image again, or give the '
            'magnitude 0 where there is no object'
        )
    data[nan] = 0
    return nan


def clear_pair(
    magnitude: np.ndarray, phase: np.ndarray, paths: tuple[str, str], inside: np.ndarray
) -> None:
    """Set one echo's magnitude and phase to 0, in place, where either is NaN for lack of signal.

    Raises ValueError if that is inside the object; for the phase, where the magnitude is not 0.
    """
    nan = clear_nan(magnitude, paths[0], inside)
    nan |= clear_nan(phase, paths[1], inside & (magnitude > 0))
    if nan.any():
        magnitude[nan] = 0
        phase[nan] = 0


def check_magnitude(data: np.ndarray, path: str) -> None:
    """Raise ValueError if a magnitude is not finite, negative or one value everywhere."""
    check_finite(data, path)
    check_not_negative(data, path)
    check_varies(data, path)


def check_varies(data: np.ndarray, path: str) -> None:
    """Raise ValueError if the data of a file are one value everywhere.

    >>> check_varies(np.zeros(2), 'echo.nii')
    Traceback (most recent call last):
    ...
    ValueError: echo.nii is 0 in every voxel and tells nothing: export the image again, or ...
    """
    if data.max() <= data.min():
        raise ValueError(
            f'{path} is {data.min():g} in every voxel and tells nothing: export the image again, '
            'or leave this echo out'
        )


def load_magnitude(path: str) -> np.ndarray:
    """Magnitude of an echo, (X, Y, Z), float32; 0 where there is no signal (NaN).

    Raises
    ------
    OSError
        The file cannot be read to its end, or is damaged.
    ValueError
        It is not a magnitude (:func:`check_magnitude`), or NaN inside the object.
    """
    data = load(path)
    if data.ndim != 3:
        raise ValueError(f'{path} {data.shape} should be one volume of three axes: give one echo')
    if np.isnan(data).any():
        clear_nan(data, path, object_in(data))
    if np.isfinite(data).all():
        check_not_phase(data, path)
    check_magnitude(data, path)
    return data


def load_signal(
    magnitudes: list[str], phases: list[str], workers: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Magnitude and phase of a run as :func:`load_echoes`; both are 0 where either is NaN.

    Raises
    ------
    OSError
        A file cannot be read to its end, or is damaged.
    ValueError
        Matrix sizes differ; an echo is infinite, NaN inside the object of the first magnitude, or
        one value everywhere.
    """
    half = max(workers // 2, 1)
    magnitude, phase = side_by_side(
        workers, *(partial(load_echoes, paths, half) for paths in (magnitudes, phases))
    )
    if magnitude.shape != phase.shape:
        raise ValueError(
            f'{magnitudes[0]} {magnitude.shape} and {phases[0]} {phase.shape} differ in matrix '
            'size or number of echoes'
        )
    if any(np.isnan(echo.min()) for part in (magnitude, phase) for echo in part.T):
        inside = object_in(magnitude[..., 0])
        for i, paths in enumerate(zip(magnitudes, phases, strict=True)):
            clear_pair(magnitude[..., i], phase[..., i], paths, inside)

    def check(echo: np.ndarray, path: str) -> None:
        check_finite(echo, path)
        check_varies(echo, path)

    pairs = zip((*magnitude.T, *phase.T), (*magnitudes, *phases), strict=True)
    side_by_side(workers, *(partial(check, echo.T, path) for echo, path in pairs))
    return magnitude, phase


def load_echoes(paths: list[str], workers: int = 1) -> np.ndarray:
    """Files on one grid, (X, Y, Z, E), float32, read by ``workers`` threads.

    Each echo is C-ordered, and lies in memory one after the other.

    Raises
    ------
    OSError
        A file cannot be read to its end, or is damaged.
    ValueError
        Matrix sizes differ.
    """
    shape = grid(paths[0])[0]
    echoes = np.empty((len(paths), *shape), np.float32)

    def read(i: int) -> None:
        data, image = load_stored(paths[i])
        echo = canonical(data, image.affine)
        if echo.shape != shape:
            raise ValueError(
                f'{paths[0]} {shape} and {paths[i]} {echo.shape} differ in matrix size'
            )
        echoes[i] = echo

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(read, range(len(paths))))
    return np.moveaxis(echoes, 0, -1)


def is_image(value: object) -> bool:
    """Tell the path of a NIfTI file from other values of an input.

    >>> is_image('/a/chi.nii.gz'), is_image('roi-mean'), is_image(['chi.nii'])
    (True, False, False)
    """
    return isinstance(value, str) and value.endswith(('.nii', '.nii.gz'))


BETWEEN = 1e-3
"""Distance from the next integer up to which a label is one."""


def whole_numbers(data: np.ndarray, path: str) -> np.ndarray:
    """Labels of an image as integers.

    Raises ValueError for values between them, as an interpolation leaves them, negative ones, of
    which no table of values has a row, or not finite.

    >>> whole_numbers(np.array([0.0, 2.0]), 'labels.nii')
    array([0, 2])
    >>> whole_numbers(np.array([0, -5]), 'labels.nii')
    Traceback (most recent call last):
    ...
    ValueError: labels.nii has negative labels, such as -5 (in 1 voxels): labels are 1 and more ...
    """
    if data.dtype.kind in 'iu':
        check_labels(data, path)
        return data
    if np.isnan(data).any():
        raise ValueError(
            f'{path} is not a number (NaN) in {np.count_nonzero(np.isnan(data))} voxels: set it '
            'to 0 where there is no label'
        )
    with np.errstate(invalid='ignore'):
        wrong = ~(np.abs(data - np.rint(data)) <= BETWEEN)
    if wrong.any():
        raise ValueError(
            f'{path} has labels that are no whole numbers, such as {data[wrong][0]:g} (in '
            f'{np.count_nonzero(wrong)} voxels): it was interpolated; resample it to the nearest '
            'neighbour'
        )
    labels = np.rint(data).astype(int)
    check_labels(labels, path)
    return labels


def grid(path: str) -> tuple[tuple[int, ...], np.ndarray]:
    """Matrix and affine of the array that :func:`load` gives, from the header alone."""
    image = open_image(path)
    axes = nb.io_orientation(image.affine)
    stored = image.shape[:3]
    matrix = tuple(stored[i] for i in np.argsort(axes[:, 0]))
    return matrix, image.affine @ nb.orientations.inv_ornt_aff(axes, stored)


def check_grid(paths: Iterable[str]) -> None:
    """Raise ValueError unless images have one matrix and one affine as arrays of :func:`load`.

    The axes of the affine are perpendicular.
    """
    first, *others = [(path, *grid(path)) for path in dict.fromkeys(paths)]
    if wrong := sheared(first[2]):
        raise ValueError(f'{first[0]} {wrong}')
    for path, matrix, affine in others:
        if matrix != first[1]:
            raise ValueError(
                f'{path} {matrix} and {first[0]} {first[1]} differ in matrix size: resample one '
                'to the other'
            )
        if (most := float(np.abs(affine - first[2]).max())) > GRID_TOLERANCE:
            raise ValueError(
                f'{path} and {first[0]} differ in the affines of their headers, by up to '
                f'{most:.4g} mm: they are not on one grid; resample one to the other'
            )


def check_once(paths: Iterable[str]) -> None:
    """Raise ValueError if a file is given for two images, under whatever name.

    >>> check_once(['mag1.nii', 'mag2.nii', './mag1.nii'])
    Traceback (most recent call last):
    ...
    ValueError: ./mag1.nii is given twice, as mag1.nii too: give the file of each echo and part
    """
    given: dict[str, str] = {}
    for path in paths:
        if (first := given.setdefault(os.path.realpath(path), path)) is not path:
            too = f', as {first} too' if first != path else ''
            raise ValueError(f'{path} is given twice{too}: give the file of each echo and part')


def geometry(path: str) -> tuple[np.ndarray, tuple[float, float, float]]:
    """Affine and voxel size (mm) of the array that :func:`load` gives."""
    _, affine = grid(path)
    dx, dy, dz = nb.affines.voxel_sizes(affine)
    return affine, (float(dx), float(dy), float(dz))


def b0_along(path: str) -> np.ndarray:
    """Direction of B0 along the axes of the array that :func:`load` gives.

    That which the header's description states comes first, then the affine's.
    """
    image = open_image(path)
    stated = stated_b0(image.header)
    if stated is None:
        return b0_direction(grid(path)[1])
    axes, flips = nb.io_orientation(image.affine).T
    direction = np.empty(3)
    direction[axes.astype(int)] = flips * stated
    return direction / np.linalg.norm(direction)


def affine_along_b0(path: str) -> np.ndarray:
    """Affine of the array that :func:`load` gives, its third axis along B0.

    That of the file, turned where the header's description states another direction.
    """
    affine, size = geometry(path)
    if stated_b0(open_image(path).header) is None:
        return affine
    along = affine[:3, :3] / size @ b0_along(path)
    across = np.cross(along, np.eye(3)[np.argmin(np.abs(along))])
    rows = np.stack([across, np.cross(along, across), along])
    turn = np.eye(4)
    turn[:3, :3] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return turn @ affine


def stated_b0(header: nb.Nifti1Header) -> np.ndarray | None:
    """Direction of B0 along the stored axes by the description, None where it states none.

    >>> header = nb.Nifti1Header(); state_b0(header, (0, 1, 0)); stated_b0(header)
    array([0., 1., 0.])
    """
    text = header['descrip'].item().decode('latin-1')
    try:
        direction = np.array(text.removeprefix(STATED).split(), float)
    except ValueError:
        return None
    whole = direction.shape == (3,) and np.isfinite(direction).all() and direction.any()
    return direction if whole and text.startswith(STATED) else None


def state_b0(header: nb.Nifti1Header, b0_dir: Iterable[float]) -> None:
    """Write a direction of B0 along the stored axes into the description of a header."""
    direction = np.asarray(list(b0_dir), float)
    direction = direction / np.linalg.norm(direction)
    header['descrip'] = ' '.join([STATED, *(f'{v:.9f}' for v in direction)]).encode()


def save(data: np.ndarray, like: str, folder: str, name: str) -> str:
    """Write ``data`` as ``folder/name.nii`` on the grid of the file ``like``; its path.

    ``data`` are in :func:`canonical` order, the file in that of ``like``. Booleans and small
    integers are stored as they are, everything else as float32. It is not compressed, so that the
    nodes that read it take their time for other things, and map it into memory.
    """
    source = open_image(like)
    back = nb.orientations.ornt_transform(
        nb.io_orientation(np.eye(4)), nb.io_orientation(source.affine)
    )
    data = nb.apply_orientation(data, back)
    if data.dtype == bool:
        data = data.astype(np.uint8)
    elif data.dtype not in (np.uint8, np.int16, np.int32):
        data = data.astype(np.float32, copy=False)
    image = nb.Nifti1Image(data, source.affine)
    image.header.set_xyzt_units('mm')
    if (stated := stated_b0(source.header)) is not None:
        state_b0(image.header, stated)
    for code, setter in (
        (source.header['qform_code'], image.set_qform),
        (source.header['sform_code'], image.set_sform),
    ):
        setter(source.affine, int(code) or 1)
    path = Path(folder) / f'{name}.nii'
    nb.save(image, path)
    return os.fspath(path)


def images_gb(files: Iterable[str]) -> float:
    """Size of images in memory as float32, GiB, by their headers."""
    return sum(float(np.prod(open_image(file).shape)) for file in files) * 4 / 1024**3
