"""Dipole inversion with total variation: alternating directions around the closed form."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import fft

from precondqsm_bids.numerics.arguments import checked
from precondqsm_bids.numerics.arrays import check_shapes
from precondqsm_bids.numerics.closed_form import ClosedForm

F32 = npt.NDArray[np.float32]
Spectrum = npt.NDArray[np.complex64]

MOST_ITERATIONS = 18
"""With the 38 transforms of :func:`least_risk` these are 57 pairs in all."""
TOLERANCE = 0.01
"""Change of the map in an iteration, relative to the map, that ends them."""
RELAXATION = 1.6
"""Over-relaxation: between 1.5 and 1.8 the iterations are known to be fewest."""


class TotalVariation(NamedTuple):
    """Result of :func:`tv_inversion`."""

    chi: F32
    """Susceptibility, ppm, (X, Y, Z), zero outside the region."""
    tv_weight: float
    """``alpha``, ppm mm."""
    iterations: int
    """Iterations that were done."""
    change: float
    """Change of the map in the last one, relative to the map."""


@checked
def tv_inversion(
    form: ClosedForm,
    local_field: npt.NDArray,
    reg_weight: float,
    weights: npt.NDArray | None = None,
    iterations: int = MOST_ITERATIONS,
    tolerance: float = TOLERANCE,
) -> TotalVariation:
    """Susceptibility of least total variation that explains the field of a region.

    Problem: ``argmin_chi 1/2 || W (D chi - f) ||^2 + alpha || G chi ||_1``, ``G`` the forward
    difference in 1/mm. Each of its components counts by itself, so that how the axes are stored
    does not matter. ``W`` is zero outside the region: the field there is not known, and not taken
    for zero.

    ``alpha`` is that of the l2 map: with ``x`` the closed form at ``lambda`` and ``g`` the size
    of the components of ``G x`` within the region,

        alpha = lambda^2 b,   b = <g^2> / <g>,

    at which both penalties weigh the same on that map, ``lambda^2 sum g^2 = alpha sum g``. What
    noise there is the rule for ``lambda`` has read in the field; nothing else is chosen.

    Solution: alternating directions of multipliers for ``y = G chi`` and ``z = D chi`` with the
    scaled multipliers ``u`` and ``v``, from ``chi = x``; ``rho = lambda^2`` makes the dipole's
    step the closed form and the threshold the typical gradient ``b``::

        y = (1 - b / |G chi + u|)_+ (G chi + u),        u = G chi + u - y
        z = (W^2 f + D chi + v) / (W^2 + 1),           v = D chi + v - z
        chi = F^-1 [(D F(z - v) + rho F G'(y - u)) / (D^2 + rho |G|^2)]

    with over-relaxation of 1.6. They end when the map changes by less than ``tolerance``.

    Two pairs of transforms an iteration and one and a half besides. Memory: 100 bytes per voxel of
    the solver's grid.

    Parameters
    ----------
    form : ClosedForm
        Region of interest, kernel and gradient.
    local_field : (X, Y, Z) ndarray
        Field of the sources inside the region, ppm.
    reg_weight : float
        Lambda of the closed form, mm.
    weights : (X, Y, Z) ndarray, optional
        ``W``, see :func:`noise_weights`, of root mean square one; one if omitted.
    iterations : int
        The most that are done.
    tolerance : float
        Change relative to the map that ends them.

    References
    ----------
    Rudin, Osher & Fatemi, Physica D 1992;60:259 (total variation); Boyd et al., Found Trends Mach
    Learn 2011;3:1 (ADMM); Bilgic et al., Magn Reson Med 2014;72:1444 (closed-form step in QSM);
    Milovic et al., Magn Reson Med 2018;80:814 (weights by a second splitting).

    Examples
    --------
    A cube keeps its edges:

    >>> from precondqsm_bids.numerics import Geometry, closed_form, forward_field
    >>> chi = np.zeros((16, 16, 16)); chi[5:11, 5:11, 5:11] = 1
    >>> field = forward_field(chi, (1, 1, 1), (0, 0, 1))
    >>> form = closed_form(Geometry(np.ones(chi.shape, bool), (1, 1, 1), (0, 0, 1)))
    >>> l2 = form.volume(form.divided(form.spectrum(field), 0.1))
    >>> errors = [np.std(x - chi) for x in (tv_inversion(form, field, 0.1).chi, l2)]
    >>> print(errors[0] < 0.7 * errors[1])
    True
    """
    geometry, grid = form.geometry, form.grid
    check_shapes('mask', geometry.mask.shape, local_field=local_field, weights=weights)
    kernel, rho = form.kernel, np.float32(reg_weight**2)
    inside = grid.embed(geometry.mask)
    w_squared = (inside if weights is None else grid.embed(weights * geometry.mask)) ** 2
    data = w_squared * grid.embed(local_field * geometry.mask)
    sizes = np.asarray(geometry.voxel_size, np.float32)
    divisor = kernel**2 + rho * form.gradient
    divisor[0, 0, 0] = np.inf  # the mean is not determined

    def transformed(volume: F32) -> Spectrum:
        return fft.rfftn(volume, workers=geometry.workers)

    def back(spectrum: Spectrum) -> F32:
        return fft.irfftn(spectrum, s=grid.shape, overwrite_x=True, workers=geometry.workers)

    spectrum = form.divided(form.spectrum(local_field), reg_weight)
    chi = back(spectrum.copy())
    slopes = _gradient(chi, sizes)
    typical = _typical_size(slopes, inside > 0)
    y, u = slopes, np.zeros_like(slopes)
    z = image = back(np.multiply(spectrum, kernel, dtype=np.complex64))
    v = np.zeros_like(image)
    change, done = np.inf, 0
    while done < iterations and change > tolerance:
        # Over-relaxed; the first time y = G chi and z = D chi
        for axis in range(3):
            y[axis] = _shrunk(slopes[axis], y[axis], u[axis], np.float32(typical))
        v += RELAXATION * image + np.float32(1 - RELAXATION) * z
        z = (data + v) / (w_squared + 1)
        v -= z
        spectrum = transformed(rho * _minus_divergence(y - u, sizes))
        spectrum += kernel * transformed(z - v)
        spectrum /= divisor
        before, image = chi, back(spectrum * kernel)
        chi = back(spectrum)
        slopes = _gradient(chi, sizes)
        change, done = _change(before, chi, inside), done + 1
    chi = grid.extract(chi * inside, geometry.mask.shape)
    return TotalVariation(chi, float(rho * typical), done, change)


def _gradient(chi: F32, sizes: F32) -> F32:
    """Forward differences over the voxel's size, cyclic, (3, n0, n1, n2)."""
    out = np.empty((3, *chi.shape), np.float32)
    for axis, size in enumerate(sizes):
        out[axis] = (np.roll(chi, -1, axis) - chi) / size
    return out


def _minus_divergence(field: F32, sizes: F32) -> F32:
    """Adjoint of :func:`_gradient`."""
    return sum(
        (np.roll(part, 1, axis) - part) / size
        for axis, (part, size) in enumerate(zip(field, sizes, strict=True))
    )


def _shrunk(slope: F32, y: F32, u: F32, threshold: np.float32) -> F32:
    """The new ``y`` of one component; ``u`` is updated in place."""
    u += RELAXATION * slope
    u += np.float32(1 - RELAXATION) * y
    held = np.clip(u, -threshold, threshold)
    new = u - held
    u[...] = held
    return new


def _typical_size(slopes: F32, inside: npt.NDArray[np.bool_]) -> float:
    """``<g^2> / <g>`` of the differences between two voxels of the region."""
    within = [inside & np.roll(inside, -1, axis) for axis in range(3)]
    values = np.abs(slopes[np.stack(within)]).astype(np.float64)
    return float(np.sum(values**2) / np.maximum(values.sum(), 1e-30))


def _change(before: F32, chi: F32, inside: F32) -> float:
    """Norm of the change within the region relative to that of the map."""
    step = np.vdot((chi - before) * inside, chi - before)
    return float(np.sqrt(step / np.maximum(np.vdot(chi * inside, chi), 1e-30)))
