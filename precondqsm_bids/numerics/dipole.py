"""The magnetic dipole: B0's direction, its kernel in k-space and in space, the forward field.

Everything here is linear in the susceptibility and dimensionless: ppm in, ppm out. Voxel axes
are the axes of the array; ``b0_dir`` is a unit vector along them (in mm, not in voxels).
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import fft, special

from precondqsm_bids.numerics.arguments import as_numbers, checked
from precondqsm_bids.numerics.arrays import check_shapes

Array = npt.NDArray[np.floating]
GAUSSIAN = 1.25
"""Standard deviation of the Gaussian source that splits the periodic kernel, in longest edges of a
voxel: its spectrum has 5e-4 left at the highest frequency of that axis."""


class Geometry(NamedTuple):
    """Region of interest, how it lies to B0, and the threads: what travels together."""

    mask: npt.NDArray[np.bool_]
    """Region of interest, (X, Y, Z)."""
    voxel_size: npt.ArrayLike
    """mm, (3,)."""
    b0_dir: npt.ArrayLike
    """Direction of B0 along the voxel axes, (3,)."""
    workers: int = 1
    """Threads of the Fourier transforms."""

    @property
    def voxel_length(self) -> float:
        """Cube root of a voxel's volume, mm."""
        return float(np.cbrt(np.prod(np.asarray(self.voxel_size, float))))


def b0_direction(affine: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Direction of B0 (the scanner's z axis) along the voxel axes.

    The rotation (with any flips) is the orthogonal polar factor of the affine's linear part, so
    that ``world = R diag(voxel_size) ijk``; B0 along the voxel axes is ``R^T z``.

    Parameters
    ----------
    affine : (4, 4) array_like
        Voxel-to-scanner transform, mm.

    Returns
    -------
    b0_dir : (3,) ndarray
        Unit vector.

    Raises
    ------
    ValueError
        The affine is singular.

    Examples
    --------
    >>> print(b0_direction(np.diag([2.0, 2.0, 3.0, 1.0])))
    [0. 0. 1.]
    """
    linear = np.asarray(affine, dtype=np.float64)[:3, :3]
    scale = np.sqrt((linear**2).sum(axis=0))
    if not np.all(np.isfinite(linear)) or abs(np.linalg.det(linear)) < 1e-9:
        raise ValueError(
            f'the affine is singular and gives no direction of B0: {linear.tolist()}; '
            'store a valid qform or sform'
        )
    u, _, vt = np.linalg.svd(linear / scale)
    direction = (u @ vt)[2]
    # Rounding in a header's quaternion must not turn an axial slab into an oblique one.
    direction[np.abs(direction) < 1e-6] = 0.0
    return direction / np.linalg.norm(direction)


def _unit(b0_dir: npt.ArrayLike) -> npt.NDArray[np.float64]:
    b = np.asarray(b0_dir, dtype=np.float64)
    norm = float(np.linalg.norm(b))
    if b.shape != (3,) or not np.isfinite(norm) or norm == 0:
        raise ValueError(f'b0_dir must be 3 finite numbers, not all zero: {b.tolist()}')
    return b / norm


def frequencies(
    shape: tuple[int, ...], voxel_size: npt.ArrayLike
) -> list[npt.NDArray[np.float64]]:
    """Spatial frequencies (1/mm) of the half spectrum that ``rfftn`` of ``shape`` returns.

    Three arrays that broadcast against each other; the last axis is the halved one.
    """
    k = [fft.fftfreq(n, d) for n, d in zip(shape, np.asarray(voxel_size, float), strict=True)]
    k[-1] = np.abs(k[-1][: shape[-1] // 2 + 1])
    return [axis.reshape([-1 if i == j else 1 for j in range(3)]) for i, axis in enumerate(k)]


@checked
def dipole_kernel(
    shape: tuple[int, int, int], voxel_size: npt.ArrayLike, b0_dir: npt.ArrayLike
) -> npt.NDArray[np.float32]:
    """Dipole kernel in k-space, ``D = 1/3 - (k.b)^2 / k^2``, ``D(0) = 0``.

    Parameters
    ----------
    shape : (3,) tuple of int
        Matrix.
    voxel_size, b0_dir : (3,) array_like
        Voxel size, mm; direction of B0 along the voxel axes.

    Returns
    -------
    kernel : (n0, n1, n2 // 2 + 1) ndarray of float32
        Half spectrum, dimensionless, to multiply an ``rfftn``.

    Raises
    ------
    ValueError
        ``b0_dir`` is not a direction.

    References
    ----------
    Marques & Bowtell, Concepts Magn Reson B 2005;25:65, eq. 6.

    Examples
    --------
    >>> kernel = dipole_kernel((4, 4, 4), (1, 1, 1), (0, 0, 1))
    >>> print(kernel[0, 0].round(3), kernel[1, 0, 0].round(3))
    [ 0.    -0.667 -0.667] 0.333
    """
    b = _unit(b0_dir)
    if np.shape(shape) != (3,) or min(shape) < 1:
        raise ValueError(f'shape should be three numbers of voxels: {shape!r}')
    # Only ratios of lengths count: an object of another size has the same kernel, to the last bit.
    size = np.asarray(voxel_size, float)
    k = frequencies(shape, size / size[0])
    k_squared = k[0] ** 2 + k[1] ** 2 + k[2] ** 2
    k_squared[0, 0, 0] = 1.0
    # The Nyquist frequency stands for both of its signs: their mean has no cross terms, which
    # keeps the operator the same when a stored axis is flipped.
    odd = [axis.copy() for axis in k]
    for i, n in enumerate(shape):
        if n % 2 == 0:
            odd[i].reshape(-1)[n // 2] = 0.0
    along = sum(b[i] ** 2 * k[i] ** 2 for i in range(3))
    for i, j in ((0, 1), (0, 2), (1, 2)):
        along = along + 2 * b[i] * b[j] * odd[i] * odd[j]
    kernel = 1 / 3 - along / k_squared
    kernel[0, 0, 0] = 0.0
    return kernel.astype(np.float32)


def prism_kernel(
    shape: tuple[int, int, int], voxel_size: npt.ArrayLike, b0_dir: npt.ArrayLike
) -> npt.NDArray[np.float32]:
    """Field at the voxel centres of one homogeneous voxel of unit susceptibility, in space.

    With ``phi`` the Newtonian potential of the box (``laplacian phi = -1`` inside), the
    Lorentz-corrected relative field is ``sum_ij b_i b_j d_i d_j phi + 1/3 [inside]``. The second
    derivatives are sums over the box's eight corners of ``-arctan(yz / xr)`` (diagonal) and
    ``ln(z + r)`` (mixed), exact for every voxel shape.

    Parameters
    ----------
    shape : (3,) tuple of int
        Matrix; the kernel covers all offsets between two of its voxels.
    voxel_size, b0_dir : (3,) array_like
        Voxel size, mm; direction of B0 along the voxel axes.

    Returns
    -------
    kernel : (m0, m1, m2) ndarray of float32
        Field per unit susceptibility on a grid of fast length ``m >= 2 n - 1``, offset 0 first
        and negative offsets wrapped to the end.

    References
    ----------
    Jenkinson et al., Magn Reson Med 2004;52:471, eq. 9-11 (voxel-integrated field).

    Examples
    --------
    The field inside a cube is that inside a sphere, zero:

    >>> print(abs(prism_kernel((4, 4, 4), (1, 1, 1), (0, 0, 1))[0, 0, 0]) < 1e-6)
    True
    """
    return _prism(shape, padded_shape(shape), voxel_size, b0_dir)


def cyclic_prism_kernel(
    shape: tuple[int, int, int], voxel_size: npt.ArrayLike, b0_dir: npt.ArrayLike
) -> npt.NDArray[np.float32]:
    """Spectrum of :func:`prism_kernel`, repeated without end, for cyclic convolutions.

    Unlike :func:`dipole_kernel`, whose frequencies end at the faces of a voxel's spectrum, it is
    right beside a source in voxels of any shape. The sum over the repetitions is split as Ewald
    does: the field of a Gaussian source of the voxel's moment is summed in k-space, where it ends
    before the highest frequency; what the voxel has beyond that is closed form and ends a few
    voxels away. ``D(0) = 0``.

    Parameters
    ----------
    shape : (3,) tuple of int
        Matrix.
    voxel_size, b0_dir : (3,) array_like
        Voxel size, mm; direction of B0 along the voxel axes.

    Returns
    -------
    kernel : (n0, n1, n2 // 2 + 1) ndarray of float32
        Half spectrum, dimensionless, to multiply an ``rfftn``.

    References
    ----------
    Ewald PP, Ann Phys 1921;369:253 (the split of the sum).

    Examples
    --------
    >>> kernel = cyclic_prism_kernel((32, 32, 32), (1, 1, 1), (0, 0, 1))
    >>> print(kernel[0, 0, 1].round(2), kernel[1, 0, 0].round(2))
    -0.67 0.33
    """
    h = np.asarray(voxel_size, dtype=np.float64)
    width = GAUSSIAN * float(h.max())
    reach = tuple(n // 2 + 1 for n in shape)
    near = _prism(reach, shape, h, b0_dir)
    _take_off_gaussian(near, reach, h, b0_dir, width)
    for axis, n in enumerate(shape):
        if n % 2 == 0:
            np.moveaxis(near, axis, 0)[n // 2] /= 2
    kernel = fft.rfftn(near).real
    k = frequencies(shape, h)
    far = [np.exp(-2 * (np.pi * width * axis) ** 2).astype(np.float32) for axis in k]
    kernel += dipole_kernel(shape, h, b0_dir) * far[0] * far[1] * far[2]
    kernel[0, 0, 0] = 0
    return kernel.astype(np.float32, copy=False)


def _take_off_gaussian(
    kernel: Array, reach: tuple[int, ...], h: Array, b0_dir: npt.ArrayLike, width: float
) -> None:
    """Take the field of a Gaussian source of the voxel's moment off, at offsets below ``reach``.

    With ``phi`` its potential and ``rho`` its density, ``(b . grad)^2 phi + rho / 3``.
    """
    b, volume = _unit(b0_dir), float(np.prod(h))
    axes = np.meshgrid(
        *(np.arange(n) * d for n, d in zip(reach, h, strict=True)), indexing='ij', sparse=True
    )
    r = np.sqrt(axes[0] ** 2 + axes[1] ** 2 + axes[2] ** 2)
    density = volume * np.exp(-(r**2) / (2 * width**2)) / (np.sqrt(2 * np.pi) * width) ** 3
    r[0, 0, 0] = 1
    # phi' / r, and (phi'' - phi' / r) / r^2 by phi'' + 2 phi' / r = -rho
    slope = density * width**2 - volume * special.erf(r / (np.sqrt(2) * width)) / (4 * np.pi * r)
    slope /= r**2
    slope[0, 0, 0] = -density[0, 0, 0] / 3
    curve = (-density - 3 * slope) / r**2
    along = sum((b[i] * axes[i]) ** 2 for i in range(3))
    _add_octant(kernel, -(slope + curve * along + density / 3), ())
    for i, j in ((0, 1), (0, 2), (1, 2)):
        if b[i] * b[j]:
            _add_octant(kernel, -2 * b[i] * b[j] * curve * axes[i] * axes[j], (i, j))


def _prism(
    reach: tuple[int, ...],
    lengths: tuple[int, ...],
    voxel_size: npt.ArrayLike,
    b0_dir: npt.ArrayLike,
) -> npt.NDArray[np.float32]:
    """Field of a voxel at offsets of less than ``reach``, on a grid of ``lengths``, summed where
    an offset and its negative are the same place."""
    b = _unit(b0_dir)
    h = np.asarray(voxel_size, dtype=np.float64)
    h = h / h[0]  # only ratios count, as in k-space
    corner = [(np.arange(n + 1) - 0.5) * d for n, d in zip(reach, h, strict=True)]
    x, y, z = np.meshgrid(*corner, indexing='ij', sparse=True)
    r = np.sqrt(x**2 + y**2 + z**2)

    def over_corners(antiderivative: Array) -> Array:
        for axis in range(3):
            antiderivative = np.diff(antiderivative, axis=axis)
        return antiderivative / (4 * np.pi)

    # Mixed derivatives are odd along their two axes, all others even: one octant is enough.
    kernel = np.zeros(lengths, dtype=np.float32)
    axes = (x, y, z)
    even = np.zeros([n + 1 for n in reach])
    for i in range(3):
        p, q = (axes[m] for m in range(3) if m != i)
        if b[i]:
            even -= b[i] ** 2 * np.arctan(p * q / (axes[i] * r))
    _add_octant(kernel, over_corners(even), ())
    for i, j in ((0, 1), (0, 2), (1, 2)):
        if b[i] * b[j]:
            octant = over_corners(2 * b[i] * b[j] * np.log(axes[3 - i - j] + r))
            _add_octant(kernel, octant, (i, j))
    kernel[0, 0, 0] += 1 / 3
    return kernel


def _add_octant(kernel: Array, octant: Array, odd: tuple[int, ...]) -> None:
    """Add ``octant`` (offsets >= 0) and its mirror images, odd along the axes ``odd``."""
    forward, backward = slice(0, None), slice(None, 0, -1)
    for mirror in np.ndindex(2, 2, 2):
        add = np.subtract if sum(mirror[axis] for axis in odd) % 2 else np.add
        part = octant[tuple(backward if m else forward for m in mirror)]
        target = tuple(
            slice(-n, None) if m else slice(0, n) for m, n in zip(mirror, part.shape, strict=True)
        )
        if part.size:
            add(kernel[target], part, out=kernel[target], casting='same_kind')


def padded_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Fast lengths of at least ``2 n - 1``, on which a convolution does not wrap around."""
    n0, n1, n2 = (fft.next_fast_len(max(2 * n - 1, 2), real=True) for n in shape)
    return n0, n1, n2


def bounding_box(mask: npt.NDArray, margin: int = 0) -> tuple[slice, slice, slice]:
    """Smallest box (plus ``margin`` voxels) that holds the true voxels; the whole if none is.

    >>> mask = np.zeros((4, 4, 4), bool)
    >>> mask[1, 2, 1:3] = True
    >>> bounding_box(mask)
    (slice(1, 2, None), slice(2, 3, None), slice(1, 3, None))
    """
    box = []
    for axis in range(3):
        hit = np.flatnonzero(mask.any(axis=tuple(i for i in range(3) if i != axis)))
        low, high = (hit[0], hit[-1] + 1) if hit.size else (0, mask.shape[axis])
        box.append(slice(max(int(low) - margin, 0), min(int(high) + margin, mask.shape[axis])))
    return box[0], box[1], box[2]


@checked
def forward_field(
    chi: npt.ArrayLike,
    voxel_size: npt.ArrayLike,
    b0_dir: npt.ArrayLike,
    mask: npt.NDArray[np.bool_] | None = None,
    workers: int = 1,
) -> npt.NDArray[np.float32]:
    """Field of a susceptibility distribution in empty space, ``field = d * chi``.

    A linear (not cyclic) convolution with the voxel-integrated dipole of :func:`prism_kernel`.
    Only the box that holds the sources and the ``mask`` is computed. The zero padding is never
    stored: one axis is transformed first and the other two plane by plane.

    Memory: 16 bytes (kernel) + 16 bytes (spectrum) per voxel of the box; transforms: one of the
    padded kernel, one pair of the sources.

    Parameters
    ----------
    chi : (X, Y, Z) array_like
        Susceptibility relative to its surroundings, ppm.
    voxel_size, b0_dir : (3,) array_like
        Voxel size, mm; direction of B0 along the voxel axes.
    mask : (X, Y, Z) ndarray of bool, optional
        Where the field is wanted (zero elsewhere); everywhere if omitted.
    workers : int
        Threads of the Fourier transforms.

    Returns
    -------
    field : (X, Y, Z) ndarray of float32
        Relative field (Lorentz-corrected), ppm.

    Raises
    ------
    ValueError
        ``chi`` is not three-dimensional, not finite, or differs in shape from ``mask``.

    References
    ----------
    Marques & Bowtell, Concepts Magn Reson B 2005;25:65 (convolution); Jenkinson et al., Magn
    Reson Med 2004;52:471 (kernel); Bouwman & Bakker, Magn Reson Med 2012;68:621 (aliasing).

    Examples
    --------
    >>> chi = np.zeros((8, 8, 8)); chi[4, 4, 4] = 1
    >>> field = forward_field(chi, (1, 1, 1), (0, 0, 1))
    >>> print(round(float(field[4, 4, 7] * 2 * np.pi * 3**3), 2))  # a dipole: 2 / (4 pi r^3)
    1.0
    """
    chi = np.ascontiguousarray(as_numbers(chi, 'chi'), dtype=np.float32)
    if chi.ndim != 3:
        raise ValueError(f'chi must have three dimensions, not shape {chi.shape}')
    check_shapes('chi', chi.shape, mask=mask)
    if not np.all(np.isfinite(chi)):
        raise ValueError(
            f'chi has {np.count_nonzero(~np.isfinite(chi))} voxels that are not finite'
        )
    field = np.zeros_like(chi)
    if not chi.any():
        return field
    box = bounding_box((chi != 0) | mask) if mask is not None else (slice(None),) * 3
    source = chi[box]
    field[box] = PrismConvolution(source.shape, voxel_size, b0_dir, workers)(source)
    if mask is not None:
        field[~mask] = 0
    return field


class PrismConvolution:
    """Linear convolution with :func:`prism_kernel`, for many susceptibilities on one grid.

    Parameters
    ----------
    shape : (3,) tuple of int
        Matrix of the susceptibility and of the field.
    voxel_size, b0_dir
        As in :func:`forward_field`.
    workers : int
        Threads of the Fourier transforms.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        voxel_size: npt.ArrayLike,
        b0_dir: npt.ArrayLike,
        workers: int = 1,
    ):
        self.shape = (shape[0], shape[1], shape[2])
        self.padded = padded_shape(shape)
        self.workers = workers
        spectrum = prism_kernel(self.shape, voxel_size, b0_dir)
        spectrum = fft.rfft(spectrum, axis=0, workers=workers)
        self.spectrum = np.empty(spectrum.shape, dtype=np.float32)
        for plane, kernel in zip(spectrum, self.spectrum, strict=True):
            kernel[...] = fft.fftn(plane, workers=workers).real

    def __call__(self, chi: Array) -> npt.NDArray[np.float32]:
        """Field (ppm) of ``chi`` (ppm), both of the grid's shape, float32."""
        m0, m1, m2 = self.padded
        n0, n1, n2 = self.shape
        spectrum = fft.rfft(np.asarray(chi, np.float32), n=m0, axis=0, workers=self.workers)
        for plane, kernel in zip(spectrum, self.spectrum, strict=True):
            # What fftn and ifftn do, without the lines that are zero or not needed.
            padded = fft.fft(plane, m1, axis=0, workers=self.workers)
            padded = fft.fft(padded, m2, axis=1, workers=self.workers)
            padded *= kernel
            padded = fft.ifft(padded, axis=0, norm='forward', workers=self.workers)[:n1]
            padded *= np.float32(1 / (m1 * m2))
            plane[...] = fft.ifft(padded, axis=1, norm='forward', workers=self.workers)[:, :n2]
        return fft.irfft(spectrum, n=m0, axis=0, workers=self.workers)[:n0]
