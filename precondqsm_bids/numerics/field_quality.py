"""Judgement of a fitted field: warnings of what is doubtful, errors for what is not a field."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from precondqsm_bids.numerics.bodies import bodies
from precondqsm_bids.numerics.echo_fit import MIXED, EchoFit
from precondqsm_bids.numerics.one_echo import OneEcho

Bools = npt.NDArray[np.bool_]
MOST_MISFIT, REFUSED_MISFIT = 0.35, 0.9
"""Fraction of the region that one field and one rate do not describe: warned of, refused. Cropped
heads have 0.08, with everything that a scanner does wrong 0.13; a signal of two fields has 1."""
LEAST_LEFT = 0.02
"""Residual of the echoes over S0 from which a misfit may be refused: that of a signal with hardly
any noise is small, and its field good, although it exceeds the noise."""
MOST_FIELD_SD, REFUSED_FIELD_SD = 0.05, 0.5
"""Median standard deviation of the field, ppm: warned of, refused. Tissue differs by 0.05 ppm, air
and water by 9; in usual scans it is 0.001 to 0.01."""
MOST_UNUSABLE, REFUSED_UNUSABLE = 0.25, 0.9
"""Fraction of the region of which fewer than two echoes (of one echo: none) exceed the noise."""
MOST_ZERO_RATE = 0.75
"""Fraction of the region whose R2* is zero from which it is refused: noise alone makes half."""
LARGE_ECHO_PHASE = 0.3
"""Root mean square phase of an echo, rad, from which its correction is mentioned."""
MOST_NOISE_RATIO = 2.5
"""Ratio of the noise of the phase and that of the air from which they disagree; ringing of a head
that is cut off in k-space makes up to 1.8."""
MOST_OWN = 0.01
"""Fraction of the region around poles of the receive phase from which they are mentioned."""


class FieldQuality(NamedTuple):
    """Result of :func:`judge_field`."""

    misfit_fraction: float | None
    """Fraction of the region that one field and one rate do not describe; None of one echo."""
    unusable_fraction: float
    """Fraction of which fewer than two echoes (of one echo: none) exceed twice the noise."""
    zero_rate_fraction: float | None
    """Fraction whose R2* is zero; None of one echo."""
    noise_ratio: float | None
    """Noise of the phase fit over that of the air; None where there is no air or no such fit."""
    own_offset_fraction: float | None
    """Fraction whose phase offset is its own; None of one echo."""
    bodies: int
    """Bodies that are not connected."""
    warnings: tuple[str, ...]
    """Doubts, in sentences."""


def judge_field(fit: EchoFit | OneEcho, mask: Bools) -> FieldQuality:
    """Judge the field of the whole region, by the limits of this module.

    Parameters
    ----------
    fit : EchoFit or OneEcho
        Result of the echo fit.
    mask : (X, Y, Z) ndarray of bool
        Region that was fitted, without fat.

    Raises
    ------
    ValueError
        Most of the region has no field: nothing but noise, no echo that is usable, a signal that
        is not that of one field, or a magnitude that does not decay. The message has the values.

    Examples
    --------
    >>> from precondqsm_bids.numerics.one_echo import field_of_one_echo
    >>> rng = np.random.default_rng(0)
    >>> one = field_of_one_echo(np.ones((8, 8, 8)), rng.normal(0, 0.01, (8, 8, 8)), 0.02, 3.0,
    ...                         np.ones((8, 8, 8), bool), noise_sd=0.01)
    >>> judge_field(one, np.ones((8, 8, 8), bool)).warnings
    ()
    """
    many = isinstance(fit, EchoFit)
    field_sd = float(np.median(fit.field_sd[mask]))
    unusable = float(np.mean(fit.usable_echoes[mask] < (2 if many else 1)))
    said = [
        _limit(field_sd, MOST_FIELD_SD, REFUSED_FIELD_SD, 'the field is uncertain by '
               '{:.2g} ppm in the median voxel'),
        _limit(unusable, MOST_UNUSABLE, REFUSED_UNUSABLE,
               f'fewer than {"two echoes are" if many else "one echo is"} above the noise in '
               '{:.0%} of the region'),
    ]  # fmt: skip
    misfit = zero = ratio = own = None
    if isinstance(fit, EchoFit):
        mixed = fit.misfit[mask] > np.sqrt(MIXED)
        large = fit.misfit[mask] * fit.noise_sd >= LEAST_LEFT * fit.s0[mask]
        misfit = float(np.mean(mixed))
        words = 'one field and one R2* do not describe the echoes in {:.0%} of the region'
        _limit(float(np.mean(mixed & large)), np.inf, REFUSED_MISFIT, words)
        said.append(_limit(misfit, MOST_MISFIT, np.inf, words))
        zero = float(np.mean(fit.r2star[mask] <= 0))
        said.append(
            _limit(zero, np.inf, MOST_ZERO_RATE, 'R2* is zero in {:.0%} of the region: the '
                   'magnitude does not decay with the echo time')
        )  # fmt: skip
        own = float(np.mean(fit.own_offset[mask]))
        if fit.air is not None and fit.noise_source == 'phase':
            ratio = fit.noise_sd / fit.air.noise_sd
        said += _of_echoes(fit, own, ratio)
        if fat := np.count_nonzero(fit.fat):
            said.append(
                f'fat was recognised by its chemical shift in {fat / np.sum(mask | fit.fat):.1%} '
                'of the region and left out of it: the maps are zero there. Look whether the '
                'region holds more of it'
            )
    count = int(bodies(mask).max())
    if count > 1:
        said.append(
            f'the region has {count} bodies that are not connected: they have no reference in '
            'common, and differences between them are undetermined'
        )
    return FieldQuality(
        misfit, unusable, zero, ratio, own, count, tuple(words for words in said if words)
    )


def _limit(value: float, most: float, refused: float, words: str) -> str:
    """A warning if ``value`` exceeds ``most``; beyond ``refused`` an error."""
    if value > refused:
        raise ValueError(
            f'{words.format(value)}; look at the phase images and the echo times, and restrict '
            'the mask to what has signal'
        )
    return words.format(value) if value > most else ''


def _of_echoes(fit: EchoFit, own: float, ratio: float | None) -> list[str]:
    """Doubts about phase per echo, offset and noise of a fit of several echoes."""
    said = []
    if fit.echo_phase is None:
        said.append(
            'two echoes: what eddy currents or alternating readouts add to the phase of one of '
            'them is not known, and is part of the field'
        )
    elif (size := float(fit.echo_phase.size.max())) > LARGE_ECHO_PHASE:
        echo = int(fit.echo_phase.size.argmax()) + 1
        said.append(
            f'the phase of the echoes departs from a line in TE by up to {size:.2f} rad (echo '
            f'{echo}; eddy currents or alternating readouts): corrected'
        )
    if fit.offset_model == 'voxelwise' and fit.offset_misfit > 0:  # else the region is small
        said.append(
            'the phase offset is not a smooth function of position: it was left free in each '
            'voxel, which makes the field less precise'
        )
    elif fit.offset_model == 'spline' and own > MOST_OWN:
        said.append(
            f'the receive phase has poles, where coils cancel: around them ({own:.1%} of the '
            'region) the field is uncertain'
        )
    if ratio is not None and not 1 / MOST_NOISE_RATIO < ratio < MOST_NOISE_RATIO:
        said.append(
            f'the noise of the phase is {ratio:.1f} times that of the air: the phase has errors '
            'that the magnitude does not show, or the background was changed'
        )
    return said
