"""NIfTI in, NIfTI out: what every stage's interface does around its one function."""

import os
from pathlib import Path

import nibabel as nb
import numpy as np


def load(path: str, dtype: type = np.float32) -> np.ndarray:
    """Volume of a NIfTI file, C-ordered (nibabel's Fortran order slows every later pass down).

    Raises
    ------
    OSError
        The file cannot be read to its end; the message names it.
    """
    try:
        image = nb.load(path)
        data = np.asanyarray(image.dataobj)
    except Exception as error:  # truncated gzip, short data, a header that is none
        raise OSError(f'{path} cannot be read (truncated or damaged?): {error}') from error
    if data.ndim == 4 and data.shape[3] == 1:
        data = data[..., 0]
    return np.ascontiguousarray(data, dtype=dtype)


def load_echoes(paths: list[str]) -> np.ndarray:
    """Echoes of one run, (X, Y, Z, E), float32."""
    first = load(paths[0])
    echoes = np.empty((*first.shape, len(paths)), np.float32)
    for i, path in enumerate(paths):
        echo = first if i == 0 else load(path)
        if echo.shape != first.shape:
            raise ValueError(
                f'{paths[0]} {first.shape} and {path} {echo.shape} differ in matrix size'
            )
        echoes[..., i] = echo
    return echoes


def geometry(path: str) -> tuple[np.ndarray, tuple[float, float, float]]:
    """Affine and voxel size (mm) of a NIfTI file."""
    image = nb.load(path)
    dx, dy, dz = nb.affines.voxel_sizes(image.affine)
    return image.affine, (float(dx), float(dy), float(dz))


def save(data: np.ndarray, like: str, folder: str, name: str) -> str:
    """Write ``data`` as ``folder/name.nii.gz`` on the grid of the file ``like``; its path.

    Booleans and small integers are stored as they are, everything else as float32.
    """
    source = nb.load(like)
    if data.dtype == bool:
        data = data.astype(np.uint8)
    elif data.dtype not in (np.uint8, np.int16, np.int32):
        data = data.astype(np.float32)
    image = nb.Nifti1Image(data, source.affine)
    image.header.set_xyzt_units('mm')
    for code, setter in (
        (source.header['qform_code'], image.set_qform),
        (source.header['sform_code'], image.set_sform),
    ):
        setter(source.affine, int(code) or 1)
    path = Path(folder) / f'{name}.nii.gz'
    nb.save(image, path)
    return os.fspath(path)
