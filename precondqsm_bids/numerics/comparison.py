"""Comparison of the two arms without a truth: did the prior help?"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import fft

from precondqsm_bids.numerics.bodies import bodies
from precondqsm_bids.numerics.dipole import dipole_kernel, frequencies
from precondqsm_bids.numerics.solver import solver_grid

CONE = 0.1
"""``|D|`` below which a frequency lies in the cone that the field hardly tells of."""
SHELLS = 24
"""Spheres of equal width in k-space over which the spectrum is averaged."""


RIM = 12.0
"""Depth below the surface of the region, mm, from which susceptibility and R2* are compared: air
and errors of the background raise R2* nearer to it."""
STRONGEST = 0.01
"""Fraction of those voxels, of the strongest R2*, that are compared with the others. Iron, blood
and contrast agents are among them; less strong R2* is also that of myelin, a diamagnet."""
REVERSED = -0.4
"""Rank correlation of the two groups from which the sign of the phase may be reversed. Heads of
the right sign have 0.6 to 0.8 (3 to 5 mm, with and without brain mask, hard), tubes 1.0."""


class Comparison(NamedTuple):
    """Result of :func:`compare`."""

    explained: float
    """Fraction of the local field's energy that preconditioning takes off; negative if it adds."""
    streaking: float
    """Preconditioned map: spectral power in the cone over that beside it; 1 without preference."""
    conventional_streaking: float
    """The same for the conventional map."""
    by_body: tuple[float, ...]
    """``explained`` within each body of the region, the largest first."""
    warnings: tuple[str, ...]
    """Says so if the prior did not help."""

    def record(self, agreement: float | None, assumed_sign: int | None) -> dict[str, Any]:
        """Measured values, and a warning if R2* (:func:`r2star_agreement`) contradicts the sign.

        >>> result = Comparison(0.5, 1.0, 1.0, (0.5,), ())
        >>> result.record(-0.9, assumed_sign=1)['warnings'][0][:45]
        'the susceptibility falls where R2* rises (ran'
        """
        warnings = list(self.warnings)
        if assumed_sign is not None and agreement is not None and agreement <= REVERSED:
            warnings.append(
                'the susceptibility falls where R2* rises (rank correlation '
                f'{agreement:.2f}): the sign of the phase, which was assumed to be '
                f'{assumed_sign:+d}, may be wrong; state phase_sign {-assumed_sign:+d} if the '
                'strongest R2* is that of iron or blood'
            )
        record: dict[str, Any] = {
            'explained': self.explained,
            'streaking': self.streaking,
            'conventional_streaking': self.conventional_streaking,
            'r2star_agreement': agreement,
            'warnings': warnings,
        }
        if len(self.by_body) > 1:
            record['explained_by_body'] = list(self.by_body)
        return record


def cone_ratio(
    chi: npt.NDArray,
    mask: npt.NDArray[np.bool_],
    voxel_size: npt.ArrayLike,
    b0_dir: npt.ArrayLike,
    workers: int = 1,
) -> float:
    """Spectral power of a map within the cone ``|D| < 0.1`` over that outside it.

    Power is averaged over spheres of equal ``|k|`` first, and the ratio is the mean of their
    logarithms', so that the fall of the spectrum with ``|k|`` cancels. An object knows nothing
    of B0: its ratio is near 1. Streaks are power in the cone (above 1), regularisation takes
    power out of it (below 1).

    Parameters
    ----------
    chi : (X, Y, Z) ndarray
        Susceptibility, ppm.
    mask : (X, Y, Z) ndarray of bool
        Region of interest; its mean is subtracted.
    voxel_size : (3,) array_like
        Voxel size, mm.
    b0_dir : (3,) array_like
        Direction of B0 along the voxel axes.
    workers : int
        Threads of the Fourier transform.

    Examples
    --------
    >>> chi = np.random.default_rng(0).normal(size=(32, 32, 32))
    >>> 0.9 < cone_ratio(chi, np.ones(chi.shape, bool), (1, 1, 1), (0, 0, 1)) < 1.1
    True
    """
    grid = solver_grid(mask)
    centred = np.where(mask, chi - np.mean(chi[mask]), 0)
    spectrum = fft.rfftn(grid.embed(centred), workers=workers)
    power = spectrum.real**2 + spectrum.imag**2
    k = frequencies(grid.shape, voxel_size)
    radius = np.sqrt(k[0] ** 2 + k[1] ** 2 + k[2] ** 2)
    edge = 0.5 / float(np.max(voxel_size))
    shell = np.minimum(radius / edge * SHELLS, SHELLS).astype(np.int64)
    cone = np.abs(dipole_kernel(grid.shape, voxel_size, b0_dir)) < CONE

    def mean_power(where: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
        count = np.bincount(shell[where], minlength=SHELLS + 1)
        total = np.bincount(shell[where], power[where], minlength=SHELLS + 1)
        return np.where(count >= 20, total / np.maximum(count, 1), np.nan)[:SHELLS]

    inside, beside = mean_power(cone), mean_power(~cone)
    used = np.isfinite(inside) & np.isfinite(beside) & (inside > 0) & (beside > 0)
    return float(np.exp(np.mean(np.log(inside[used] / beside[used])))) if used.any() else 1.0


def r2star_agreement(
    chi: npt.NDArray,
    r2star: npt.NDArray,
    mask: npt.NDArray[np.bool_],
    voxel_size: npt.ArrayLike,
) -> float | None:
    """Agreement of high susceptibility with strong R2*: a witness of the phase's sign.

    Rank-biserial correlation of the susceptibility, voxels of the strongest R2* against the
    others: 1 if all of them have more, -1 if all have less. For the conventional map, which owes
    nothing to R2*. Diamagnetic sources of strong R2* (calcium, some phantoms) have -1, too: this
    only casts doubt on a sign that is assumed.

    Parameters
    ----------
    chi : (X, Y, Z) ndarray
        Conventional susceptibility, ppm.
    r2star : (X, Y, Z) ndarray
        1/s; 0 where it is not known.
    mask : (X, Y, Z) ndarray of bool
        Region of interest.
    voxel_size : (3,) array_like
        Voxel size, mm.

    Returns
    -------
    float or None
        None where fewer than 1000 voxels are deep enough.

    Examples
    --------
    >>> rate = np.zeros((40, 40, 40)); rate[5:35, 5:35, 5:35] = 10; rate[18:22, 18:22, 18:22] = 99
    >>> r2star_agreement(-rate, rate, rate > 0, (2, 2, 2))
    -1.0
    """
    from scipy import ndimage, stats

    if mask.all():
        depth = np.full(mask.shape, np.inf)
    else:
        depth = ndimage.distance_transform_edt(mask, sampling=np.asarray(voxel_size, float))
    deep = (depth > RIM) & (r2star > 0)
    if np.count_nonzero(deep) < 1000:
        return None
    rate, ranks = r2star[deep], stats.rankdata(chi[deep])
    strong = rate >= np.quantile(rate, 1 - STRONGEST)
    n, m = int(strong.sum()), int((~strong).sum())
    if not m:
        return None
    return float(2 * (ranks[strong].sum() - n * (n + 1) / 2) / (n * m) - 1)


def compare(
    local_field: npt.NDArray,
    conventional_local_field: npt.NDArray,
    chi: npt.NDArray,
    conventional_chi: npt.NDArray,
    mask: npt.NDArray[np.bool_],
    voxel_size: npt.ArrayLike,
    b0_dir: npt.ArrayLike,
    weights: npt.NDArray | None = None,
    workers: int = 1,
) -> Comparison:
    """Compare the preconditioned with the conventional arm where the truth is not known.

    ``explained = 1 - || w local ||^2 / || w conventional local ||^2``: the local field that is
    left after flattening against that without. A prior that does not lower it has added field
    instead of explaining it. Where the region has bodies that are not connected, the same within
    each: a large body must not hide that the prior harms a small one.

    Parameters
    ----------
    local_field, conventional_local_field : (X, Y, Z) ndarray
        Local field of either arm, ppm.
    chi, conventional_chi : (X, Y, Z) ndarray
        Susceptibility of either arm, ppm.
    mask : (X, Y, Z) ndarray of bool
        Region of interest.
    voxel_size : (3,) array_like
        Voxel size, mm.
    b0_dir : (3,) array_like
        Direction of B0 along the voxel axes.
    weights : (X, Y, Z) ndarray, optional
        See :func:`~precondqsm_bids.numerics.solver.noise_weights`.
    workers : int
        Threads of the Fourier transforms.

    Returns
    -------
    Comparison

    Raises
    ------
    ValueError
        The mask is empty.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> field, chi = rng.normal(size=(2, 16, 16, 16)); mask = np.ones(field.shape, bool)
    >>> result = compare(field, field / 2, chi, chi, mask, (1, 1, 1), (0, 0, 1))
    >>> print(round(result.explained, 1), len(result.warnings))
    -3.0 1
    """
    if not mask.any():
        raise ValueError('the mask is empty: there is nothing to compare')
    w = np.ones(np.count_nonzero(mask)) if weights is None else weights[mask].astype(np.float64)
    left = (w * local_field[mask]) ** 2
    without = (w * conventional_local_field[mask]) ** 2
    explained = _explained(left, without)
    of_body = bodies(mask)[mask]
    parts = [of_body == number for number in range(1, of_body.max() + 1)]
    by_body = tuple(_explained(left[part], without[part]) for part in parts)
    warnings = []
    if explained <= 0 and left.any():
        warnings.append(
            f'the prior did not help: with it the local field has {1 - explained:.2f} times the '
            'energy that it has without; prefer the conventional map'
        )
    if len(by_body) > 1:
        warnings += [
            f'the prior did not help in body {number} of {len(by_body)} (the largest first): with '
            f'it the local field has {1 - fraction:.2f} times the energy that it has without'
            for number, (fraction, part) in enumerate(zip(by_body, parts, strict=True), start=1)
            if fraction <= 0 and left[part].any()
        ]
    arms = [cone_ratio(c, mask, voxel_size, b0_dir, workers) for c in (chi, conventional_chi)]
    return Comparison(explained, arms[0], arms[1], by_body, tuple(warnings))


def _explained(left: npt.NDArray, without: npt.NDArray) -> float:
    """``1 - sum left / sum without``; 0 where there is nothing to explain."""
    energy = float(np.sum(without))
    return 1 - float(np.sum(left)) / energy if energy > 0 else 0.0
