"""A strip of slices of a run's map: what the page of the group shows of it.

It is drawn where the map is written, and again from the map on disk where it is missing or older.
"""

from __future__ import annotations

import os
import zlib
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import nibabel as nb
import numpy as np
from PIL import Image

from precondqsm_bids.numerics.dipole import bounding_box
from precondqsm_bids.outputs.files import whole

STRIP = 'desc-strip_Chimap.jpg'
"""End of the name of a strip, beside the figures of the participant."""

AXIAL = (0.2, 0.35, 0.5, 0.65, 0.8)
"""Heights of the axial slices in the region; a coronal and a sagittal one follow."""

HEIGHT = 96
"""Of the strip, pixels."""

MAP, MASK = 'desc-precond_Chimap.nii.gz', 'desc-roi_mask.nii.gz'


class Strip(NamedTuple):
    """Slices side by side, and the susceptibility that is white."""

    pixels: np.ndarray
    """(HEIGHT, width), uint8: 0 ppm is the grey in the middle."""
    limit: float
    """ppm; minus this is black."""


def draw_strip(chi: np.ndarray, mask: np.ndarray, voxel_size: np.ndarray) -> Strip:
    """Slices of a map through its region of interest, side by side.

    Five axial slices evenly from the foot of the region, a coronal and a sagittal one through its
    middle, cut to the region. The window is that of 99 % of the region, from minus to plus.

    Parameters
    ----------
    chi : (X, Y, Z) ndarray
        Susceptibility, ppm, axes towards right, front and top.
    mask : (X, Y, Z) ndarray
        Region of interest.
    voxel_size : (3,) array_like
        mm.

    Examples
    --------
    >>> ball = np.linalg.norm(np.indices((9, 9, 9)) - 4, axis=0) < 4
    >>> strip = draw_strip(0.1 * ball, ball, (1, 1, 1))
    >>> strip.pixels.shape, strip.limit
    ((96, 696), 0.1)
    """
    mask = np.asarray(mask) > 0
    if not mask.any():
        mask = np.ones(chi.shape, bool)
    box = bounding_box(mask)
    values, mask = np.nan_to_num(np.asarray(chi[box], float)), mask[box]
    limit = float(np.percentile(np.abs(values[mask]), 99)) or 1e-6
    shown = np.where(mask, values, 0)
    size = np.asarray(voxel_size, float)
    middle = [n // 2 for n in shown.shape]
    planes = [(shown[:, :, round(share * (shown.shape[2] - 1))], size[[0, 1]]) for share in AXIAL]
    planes += [(shown[:, middle[1]], size[[0, 2]]), (shown[middle[0]], size[[1, 2]])]
    panels = []
    for plane, (across, up) in planes:
        grey = np.clip(127.5 * (1 + plane.T[::-1] / limit), 0, 255).round().astype(np.uint8)
        width = max(1, round(HEIGHT * grey.shape[1] * across / (grey.shape[0] * up)))
        width = min(width, 2 * HEIGHT)
        panel = Image.fromarray(grey).resize((width, HEIGHT), Image.Resampling.BILINEAR)
        panels += [np.asarray(panel), np.full((HEIGHT, 4), 128, np.uint8)]
    return Strip(np.hstack(panels[:-1]), float(f'{limit:.3g}'))


def write_strip(path: Path, strip: Strip) -> None:
    """Write a strip, with its limit as the file's comment."""
    with whole(path) as temporary:
        Image.fromarray(strip.pixels).save(
            temporary, 'JPEG', quality=80, optimize=True, comment=f'{strip.limit:g} ppm'
        )


def read_limit(path: Path) -> float | None:
    """The susceptibility that is white in a strip, ppm; None if the file is no strip."""
    try:
        with Image.open(path) as image:
            comment = image.info.get('comment', b'')
        return float(bytes(comment).decode('ascii').removesuffix(' ppm'))
    except (OSError, ValueError):
        return None


def current_strip(output_dir: Path, subject: str, name: str, folder: Path) -> Path | None:
    """The strip of a run on disk, drawn again from its map where it is missing or older.

    Parameters
    ----------
    output_dir : Path
        The derivatives.
    subject, name : str
        Participant, and the entities of the run.
    folder : Path
        Of the run's maps.

    Returns
    -------
    Path or None
        None where there is no map that can be read, or the strip cannot be written.
    """
    path = output_dir / f'sub-{subject}' / 'figures' / f'{name}_{STRIP}'
    chi = folder / f'{name}_{MAP}'
    with suppress(OSError):
        if path.stat().st_mtime >= chi.stat().st_mtime and read_limit(path):
            return path
    try:
        images = [nb.as_closest_canonical(nb.load(f)) for f in (chi, folder / f'{name}_{MASK}')]
        values, mask = (np.asarray(image.dataobj) for image in images)
        if values.ndim != 3 or values.shape != mask.shape:
            return None
        size = np.asarray(images[0].header.get_zooms()[:3])
        write_strip(path, draw_strip(values, mask, size))
    except (OSError, ValueError, EOFError, zlib.error, nb.filebasedimages.ImageFileError):
        return path if os.path.exists(path) and read_limit(path) else None
    return path


def refresh_strips(output_dir: Path, subject: str) -> list[Path]:
    """Draw those strips of a participant again that are missing or older than their map; all."""
    maps = sorted((output_dir / f'sub-{subject}').glob(f'**/anat/*_{MAP}'))
    found = (
        current_strip(output_dir, subject, path.name.removesuffix(f'_{MAP}'), path.parent)
        for path in maps
    )
    return [path for path in found if path]
