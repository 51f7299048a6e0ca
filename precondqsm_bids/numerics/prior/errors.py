"""Standard errors of the coefficients of a fitted prior."""

import numpy as np
import numpy.typing as npt

from precondqsm_bids.numerics.arguments import checked
from precondqsm_bids.numerics.background_removal import pdf
from precondqsm_bids.numerics.dipole import Geometry
from precondqsm_bids.numerics.prior.basis import Basis
from precondqsm_bids.numerics.prior.fit import PriorFit
from precondqsm_bids.numerics.solver import DipoleSystem, noise_weights

BLOCKS = 32
"""Blocks of the region over which standard errors are counted, by its volume: enough to count, and
33 mm to a side in a brain of 1.2 l."""


@checked
def coefficient_errors(
    field: npt.NDArray,
    basis: Basis,
    fit: PriorFit,
    geometry: Geometry,
    field_sd: npt.NDArray | None = None,
    block: float | None = None,
) -> npt.NDArray[np.float64]:
    """Standard errors of the coefficients of a basis of few parcels.

    With ``U`` the fields of the basis maps and ``y`` the measured one, all after PDF, and ``r = y
    - U c``, the errors are the roots of the diagonal of

        N^-1 [ sum_B s_B s_B' ] N^-1 + diag(N^-1 U' W^2 r)^2,    N = U' W^2 U,
        s_B = (1 - U_B' W^2 U_B N^-1)^-1 U_B' W^2 r_B

    with blocks ``B`` of ``block`` to a side: what the model leaves is counted with its correlation
    in space, so that an unknown source counts as much as noise does. This is the jackknife over
    blocks, the coefficients being found again without each of them: most of a small parcel's field
    lies in one or two blocks, which the fit follows. The last term is what an early stop leaves. A
    parcel whose field is gone after PDF has an infinite error.

    Parameters
    ----------
    field : (X, Y, Z) ndarray
        As in :func:`fit_prior`, ppm.
    basis : Basis
        The only basis of the fit.
    fit : PriorFit
        What :func:`fit_prior` found.
    geometry : Geometry
        Region of interest, voxel size (mm), direction of B0, threads.
    field_sd : (X, Y, Z) ndarray, optional
        Standard deviation of the field, ppm, as the fit had it.
    block : float, optional
        Edge of a block, mm; that of a 32nd of the region's volume if omitted.

    Returns
    -------
    (parcels,) ndarray
        In the unit of the coefficients. One PDF of 30 iterations per parcel.

    References
    ----------
    White, Econometrica 1980;48:817; clustered: Liang & Zeger, Biometrika 1986;73:13; without the
    block itself: Bell & McCaffrey, Surv Methodol 2002;28:169.

    Examples
    --------
    >>> from precondqsm_bids.numerics import fit_prior, forward_field, whole_map
    >>> rng = np.random.default_rng(0); mask = np.ones((24, 24, 24), bool)
    >>> chi = np.zeros(mask.shape); chi[8:16, 8:16, 8:16] = 0.5
    >>> field = forward_field(chi, (1, 1, 1), (0, 0, 1)) + rng.normal(0, 0.01, chi.shape)
    >>> basis = whole_map(chi, mask)
    >>> geometry = Geometry(mask, (1, 1, 1), (0, 0, 1))
    >>> fit = fit_prior(field, [basis], geometry)
    >>> error = coefficient_errors(field, basis, fit, geometry)
    >>> print(abs(fit.coefficients[0] - 1) < 3 * error, error < 0.02)
    [ True] [ True]
    """
    mask, voxel_size, b0_dir, workers = geometry
    sd = np.zeros(mask.shape, np.float32) if field_sd is None else field_sd
    weights = noise_weights(sd, mask, fit.model_error)
    system = DipoleSystem(*geometry)

    def projected(values: npt.NDArray) -> npt.NDArray[np.float64]:
        local = pdf(values, mask, voxel_size, b0_dir, weights, workers=workers).local_field
        return (local * weights)[mask].astype(np.float64)

    def field_of(parcel: int) -> npt.NDArray:
        chi = np.where(basis.labels == parcel, basis.weight, 0)
        return system.grid.extract(system.convolve(system.grid.embed(chi)), mask.shape)

    u = np.stack([projected(field_of(j)) for j in range(basis.parcels)], axis=1)
    r = projected(field) - u @ fit.coefficients[0]
    normal = u.T @ u
    known = np.diag(normal) > 1e-6 * np.max(np.diag(normal), initial=0.0)
    errors = np.full(basis.parcels, np.inf)
    if not known.any():
        return errors
    size = np.asarray(voxel_size, float)
    edge = block or float(np.cbrt(np.prod(size) * len(r) / BLOCKS))
    cells = [
        np.floor(i * d / edge).astype(int) for i, d in zip(np.nonzero(mask), size, strict=True)
    ]
    number = np.ravel_multi_index(cells, [int(c.max()) + 1 for c in cells])
    number = np.unique(number, return_inverse=True)[1]
    u = u[:, known]
    inverse = np.linalg.pinv(u.T @ u)
    scores = np.stack([np.bincount(number, column * r) for column in u.T], axis=1)
    stopped = inverse @ scores.sum(axis=0)
    of_block = np.stack(
        [np.stack([np.bincount(number, a * b) for a in u.T], axis=1) for b in u.T], axis=2
    )
    free = np.eye(u.shape[1]) - of_block @ inverse
    without = np.linalg.solve(free, scores[..., None])[..., 0]
    variance = np.diag(inverse @ (without.T @ without) @ inverse)
    errors[known] = np.sqrt(np.maximum(variance, 0) + stopped**2)
    return errors
