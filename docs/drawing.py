"""Figures of the pages: sections of maps, and what the cone of the dipole does to them."""

import matplotlib.pyplot as plt
import numpy as np

from precondqsm_bids.numerics import dipole_kernel

CONE = np.linspace(0, 2 / 3, 15)
"""Edges of the bins of the size of the dipole's spectrum, which ends at 2/3."""


def show_maps(maps, limits, where, unit='ppm'):
    """Draw a coronal and an axial section of each map in one row of columns.

    Parameters
    ----------
    maps : dict
        Title to (X, Y, Z) ndarray, axes towards right, front and top.
    limits : tuple of 2 float
        Values of black and white.
    where : tuple of 2 int
        Index of the coronal and of the axial plane.
    unit : str
        Unit of the colour bar.
    """
    columns = len(maps)
    figure, axes = plt.subplots(2, columns, figsize=(1.9 * columns + 0.8, 3.9), squeeze=False)
    for (title, volume), pair in zip(maps.items(), axes.T, strict=True):
        for axis, plane in zip(pair, (volume[:, where[0]], volume[:, :, where[1]]), strict=True):
            drawn = axis.imshow(plane.T, origin='lower', vmin=limits[0], vmax=limits[1])
            axis.set_axis_off()
        pair[0].set_title(title)
    figure.subplots_adjust(0.01, 0.01, 0.87, 0.93, 0.03, 0.03)
    figure.colorbar(drawn, cax=figure.add_axes((0.89, 0.15, 0.02, 0.7)), label=unit)


def power_in_cone(volume, voxel_size, b0_dir):
    """Mean power of a map's spectrum at each size of the dipole's, ``|D|``.

    Returns
    -------
    sizes : (14,) ndarray
        Middle of each bin of ``|D|``; 0 is the cone, whose susceptibility has no field.
    power : (14,) ndarray
        Mean of ``|F x|^2`` over each bin.
    """
    size = np.abs(dipole_kernel(volume.shape, voxel_size, b0_dir))
    spectrum = np.fft.fftn(volume)[..., : size.shape[-1]]
    which = np.digitize(size.ravel(), CONE[1:-1])
    counts = np.bincount(which, minlength=len(CONE) - 1)
    power = np.bincount(which, (np.abs(spectrum) ** 2).ravel(), minlength=len(CONE) - 1)
    return (CONE[1:] + CONE[:-1]) / 2, power / np.maximum(counts, 1)


def show_transfer(weights, size=64):
    """Draw what the closed-form inversion keeps, ``D^2 / (D^2 + lambda^2 |G|^2)``, in k-space.

    Parameters
    ----------
    weights : sequence of float
        lambda, mm, for voxels of 1 mm.
    size : int
        Voxels of the plane along k_x and k_z (B0 upwards), ``|k|`` up to half a period a voxel.
    """
    k = (np.arange(size) - size / 2 + 0.5) / size  # 1/mm, 0 left out
    x, z = np.meshgrid(k, k)
    kernel = 1 / 3 - z**2 / (x**2 + z**2)
    gradient = 4 * (np.sin(np.pi * x) ** 2 + np.sin(np.pi * z) ** 2)
    figure, axes = plt.subplots(
        1, len(weights), figsize=(2.4 * len(weights) + 0.8, 2.8), sharey=True, layout='constrained'
    )
    for axis, weight in zip(axes, weights, strict=True):
        kept = kernel**2 / (kernel**2 + weight**2 * gradient)
        drawn = axis.imshow(kept, origin='lower', vmin=0, vmax=1, extent=(-0.5, 0.5, -0.5, 0.5))
        axis.set(title=f'lambda {weight:g} mm', xlabel='k across B0 (1/mm)')
    axes[0].set_ylabel('k along B0 (1/mm)')
    figure.colorbar(drawn, ax=axes, label='part that is kept')
