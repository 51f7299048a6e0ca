"""Comparison of the two arms without a truth: did the prior help?"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import fft

from precondqsm_bids.numerics.arguments import checked
from precondqsm_bids.numerics.bodies import bodies
from precondqsm_bids.numerics.closed_form import closed_form
from precondqsm_bids.numerics.dipole import (
    Geometry,
    PrismConvolution,
    bounding_box,
    frequencies,
)
from precondqsm_bids.numerics.morphology import deeper
from precondqsm_bids.numerics.solver import noise_weights, solver_grid

OCTAVES = 5
"""Shells of |k|, each of half the wavelengths of the one before; the last ends at the shortest."""
SIGNAL = 2.0
"""Power of the local field over that of its noise from which a shell is compared."""
LEAST_SHARE = 0.01
"""Fraction of the local field's power above its noise from which a shell is compared: of less,
such as 0.001 at wavelengths as long as the region, background that is left is most."""
SILENT = 0.1
"""What the preconditioned map may explain less than the conventional one in a shell."""
RIM = 0.09
"""Depth below the surface of the region, in cube roots of its volume (10 mm in a brain), from
which susceptibility and R2* are compared: air and errors of the background raise R2* nearer to
it."""
STRONGEST = 0.01
"""Fraction of those voxels, of the strongest R2*, that are compared with the others. Iron, blood
and contrast agents are among them; less strong R2* is also that of myelin, a diamagnet."""
REVERSED = -0.4
"""Rank correlation of the two groups from which the sign of the phase may be reversed. Heads of
the right sign have 0.6 to 0.8 (3 to 5 mm, with and without brain mask, hard), tubes 1.0."""


class ScaleExplained(NamedTuple):
    """Part of the conventional local field's power in a shell of |k| that the maps explain."""

    longest: float
    """Longest wavelength, mm; infinite in the first shell."""
    shortest: float
    """Shortest wavelength, mm."""
    preconditioned: float
    conventional: float
    """The conventional map at the lambda of the preconditioned one."""


class Comparison(NamedTuple):
    """Result of :func:`compare`."""

    explained: float
    """Fraction of the local field's energy that preconditioning takes off; negative if it adds."""
    by_body: tuple[float, ...]
    """``explained`` within each body of the region, the largest first."""
    by_scale: tuple[ScaleExplained, ...]
    """What the maps explain at each scale at which the local field stands above its noise, and has
    a hundredth of its power."""
    warnings: tuple[str, ...]
    """Says so if the prior did not help."""

    def record(self, agreement: float | None, assumed_sign: int | None) -> dict[str, Any]:
        """Measured values, and a warning if R2* (:func:`r2star_agreement`) contradicts the sign.

        >>> result = Comparison(0.5, (0.5,), (), ())
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
            'explained_by_scale': [
                {**scale._asdict(), 'longest': min(scale.longest, 1e6)} for scale in self.by_scale
            ],
            'r2star_agreement': agreement,
            'warnings': warnings,
        }
        if len(self.by_body) > 1:
            record['explained_by_body'] = list(self.by_body)
        return record


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
    >>> rate = np.zeros((40, 40, 40)); rate[5:35, 5:35, 5:35] = 10; rate[16:24, 16:24, 16:24] = 99
    >>> r2star_agreement(-rate, rate, rate > 0, (2, 2, 2))
    -1.0
    """
    rim = RIM * np.cbrt(np.count_nonzero(mask) * np.prod(np.asarray(voxel_size, float)))
    deep = deeper(mask, rim, voxel_size) & (r2star > 0)
    if np.count_nonzero(deep) < 1000:
        return None
    rate, values = r2star[deep], chi[deep]
    strong = rate >= np.quantile(rate, 1 - STRONGEST)
    n, m = int(strong.sum()), int((~strong).sum())
    if not m:
        return None
    # Each strong voxel's rank, that of equal values the mean of theirs.
    ordered, own = np.sort(values), values[strong]
    twice = np.searchsorted(ordered, own) + np.searchsorted(ordered, own, 'right') + 1
    return float(2 * (twice.sum() / 2 - n * (n + 1) / 2) / (n * m) - 1)


@checked
def compare(
    local_field: npt.NDArray,
    residual_chi: npt.NDArray,
    conventional_local_field: npt.NDArray,
    geometry: Geometry,
    field_sd: npt.NDArray,
    reg_weight: float | None = None,
) -> Comparison:
    """Compare the preconditioned with the conventional arm where the truth is not known.

    ``explained = 1 - || w local ||^2 / || w conventional local ||^2``: the local field that is
    left after flattening against that without. A prior that does not lower it has added field
    instead of explaining it. Where the region has bodies that are not connected, the same within
    each: a large body must not hide that the prior harms a small one.

    By scale: with ``f`` the conventional local field, ``r = f' - D chi'`` what the inversion of
    the flattened one leaves of it (or of ``f``), both weighted, ``P`` the power in a shell of |k|
    and ``N`` that of the noise, ``1 - (P_r - N) / (P_f - N)``: without the weights a surface whose
    field is uncertain, and a hundred times that of the rest, would be all that counts. Where a
    map explains less than the conventional one at the same lambda does, its residual has been
    silenced.

    Parameters
    ----------
    local_field, conventional_local_field : (X, Y, Z) ndarray
        Local field of either arm, ppm.
    residual_chi : (X, Y, Z) ndarray
        Susceptibility that the inversion made of ``local_field``, ppm.
    geometry : Geometry
        Region of interest, voxel size (mm), direction of B0, threads.
    field_sd : (X, Y, Z) ndarray
        Standard deviation of the field, ppm; the weights are
        :func:`~precondqsm_bids.numerics.solver.noise_weights` of it.
    reg_weight : float, optional
        Lambda of the preconditioned map, mm; without it scales are not compared.

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
    >>> field = rng.normal(size=(16, 16, 16)); mask = np.ones(field.shape, bool)
    >>> geometry = Geometry(mask, (1, 1, 1), (0, 0, 1))
    >>> result = compare(field, 0 * field, field / 2, geometry, 0 * field)
    >>> print(round(result.explained, 1), len(result.warnings))
    -3.0 1
    """
    mask = geometry.mask
    if not mask.any():
        raise ValueError('the mask is empty: there is nothing to compare')
    weights = noise_weights(field_sd, mask)
    w = weights[mask].astype(np.float64)
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
    scales: tuple[ScaleExplained, ...] = ()
    if reg_weight is not None and np.isfinite(reg_weight):
        pairs = (local_field, residual_chi), (conventional_local_field, None)
        scales = _by_scale(pairs, geometry, (field_sd, weights), reg_weight)
        warnings += _silenced(scales)
    return Comparison(explained, by_body, scales, tuple(warnings))


def _by_scale(
    arms: tuple[tuple[npt.NDArray, npt.NDArray | None], ...],
    geometry: Geometry,
    trusted: tuple[npt.NDArray, npt.NDArray],
    reg_weight: float,
) -> tuple[ScaleExplained, ...]:
    """What either arm explains of the conventional local field, the last, in shells of |k|.

    ``trusted`` is the field's standard deviation (ppm) and the weights.
    """
    mask, voxel_size, b0_dir, workers = geometry
    field_sd, weights = trusted
    grid = solver_grid(mask)
    k = frequencies(grid.shape, voxel_size)
    radius = np.sqrt(k[0] ** 2 + k[1] ** 2 + k[2] ** 2)
    edges = 0.5 / float(np.max(voxel_size)) / 2.0 ** np.arange(OCTAVES - 1, -1, -1)
    shell = np.searchsorted(edges, radius.reshape(-1))

    def power(field: npt.NDArray) -> npt.NDArray[np.float64]:
        spectrum = fft.rfftn(grid.embed(field * weights), workers=workers).reshape(-1)
        total = np.bincount(shell, np.abs(spectrum) ** 2, OCTAVES + 1)
        return total[:OCTAVES] / np.prod(grid.shape)

    left = []
    box = bounding_box(mask | np.any([chi != 0 for _, chi in arms if chi is not None], axis=0))
    convolve = PrismConvolution(mask[box].shape, voxel_size, b0_dir, workers)
    for field, chi in arms:
        if chi is None:
            form = closed_form(geometry)
            chi = form.volume(form.divided(form.spectrum(field), reg_weight))
        unexplained = field.copy()
        unexplained[box] -= convolve(chi[box])
        left.append(power(unexplained))
    count = np.bincount(shell, minlength=OCTAVES + 1)[:OCTAVES]
    noise = (
        count * float(np.sum((weights * field_sd)[mask].astype(float) ** 2)) / np.prod(grid.shape)
    )
    whole = power(arms[-1][0])
    least = LEAST_SHARE * np.maximum(whole - noise, 0).sum()
    wavelengths = [np.inf, *(1 / edges).tolist()]
    return tuple(
        ScaleExplained(
            wavelengths[i],
            wavelengths[i + 1],
            *(1 - max(float(p[i] - noise[i]), 0) / float(whole[i] - noise[i]) for p in left),
        )
        for i in range(OCTAVES)
        if whole[i] > SIGNAL * noise[i] and whole[i] - noise[i] > least
    )


def _silenced(scales: tuple[ScaleExplained, ...]) -> list[str]:
    """A warning where the preconditioned map explains less than the conventional one."""
    worse = [scale for scale in scales if scale.preconditioned < scale.conventional - SILENT]
    if not worse:
        return []
    where = ', '.join(
        f'{scale.preconditioned:.2f} of it against {scale.conventional:.2f} at wavelengths of '
        + (f'{scale.longest:.3g} to ' if np.isfinite(scale.longest) else 'more than ')
        + f'{scale.shortest:.3g} mm'
        for scale in worse
    )
    return [f'the map explains less of the local field than the conventional one would: {where}']


def _explained(left: npt.NDArray, without: npt.NDArray) -> float:
    """``1 - sum left / sum without``; 0 where there is nothing to explain."""
    energy = float(np.sum(without))
    return 1 - float(np.sum(left)) / energy if energy > 0 else 0.0
