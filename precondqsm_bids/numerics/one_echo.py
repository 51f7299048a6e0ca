"""Field of a single echo: its phase, unwrapped in space, over its echo time."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from precondqsm_bids.numerics.air import air_around
from precondqsm_bids.numerics.arguments import checked
from precondqsm_bids.numerics.constants import hz_per_ppm
from precondqsm_bids.numerics.echoes import TWO_PI, Echoes
from precondqsm_bids.numerics.noise import noise_inside
from precondqsm_bids.numerics.unwrapping import field_from_advance

F32 = npt.NDArray[np.float32]


class OneEcho(NamedTuple):
    """Result of :func:`field_of_one_echo`; maps are (X, Y, Z) and zero outside the mask."""

    total_field: F32
    """Relative field, ppm, with the phase offset in it."""
    field_sd: F32
    """Standard deviation of the field by the noise, ppm."""
    usable_echoes: npt.NDArray[np.uint8]
    """1 where the magnitude exceeds twice the noise."""
    noise_sd: float
    """Noise of one channel (real or imaginary), in the unit of the magnitude."""
    noise_source: str
    """``given``, ``air`` or ``magnitude`` (its second differences inside the object)."""


@checked
def field_of_one_echo(
    magnitude: npt.NDArray,
    phase: npt.NDArray,
    echo_time: float,
    field_strength: float,
    mask: npt.NDArray[np.bool_],
    *,
    object_mask: npt.NDArray[np.bool_] | None = None,
    predicted_field: npt.NDArray | None = None,
    first_field: npt.NDArray | None = None,
    noise_sd: float | None = None,
) -> OneEcho:
    """Field of a single echo: its phase, unwrapped in space, over its echo time.

    ``field = (phase - phi0) / (2 pi gammabar B0 TE)``, and one echo does not tell ``phi0``. The
    offset of coil and transmitter is smooth over the object; as far as it is harmonic, background
    removal takes it for the field of sources outside. R2* and S0 are not known.

    The standard deviation is that of the phase, ``sigma / magnitude``. It holds no more than the
    noise: a voxel that unwrapping puts a turn off does not show.

    Parameters
    ----------
    magnitude : (X, Y, Z) ndarray
        Measured magnitude, any unit.
    phase : (X, Y, Z) ndarray
        Measured phase, rad.
    echo_time : float
        s
    field_strength : float
        B0, T.
    mask : (X, Y, Z) ndarray of bool
        Voxels whose field is wanted.
    object_mask : (X, Y, Z) ndarray of bool, optional
        The whole object, around which air may be; ``mask`` if omitted.
    predicted_field, first_field : (X, Y, Z) ndarray, optional
        As for :func:`fit_echoes`: they may help unwrapping and enter nothing else.
    noise_sd : float, optional
        Noise of one channel; from the air (:func:`~precondqsm_bids.numerics.air.air_around`), or
        from the object itself where there is none
        (:func:`~precondqsm_bids.numerics.noise.noise_inside`).

    Raises
    ------
    ValueError
        See :func:`~precondqsm_bids.numerics.echoes.check_echoes`; also for an empty mask or
        values that are not finite.

    References
    ----------
    Herraez et al., Appl Opt 2002;41:7437 (unwrapping). Gudbjartsson & Patz, Magn Reson Med
    1995;34:910 (noise of magnitude and phase).

    Examples
    --------
    >>> phase = np.full((4, 4, 4), 2 * np.pi * 127.729 * 0.05 * 0.02)
    >>> one = field_of_one_echo(np.ones((4, 4, 4)), phase, 0.02, 3.0, np.ones((4, 4, 4), bool),
    ...                         noise_sd=0.01)
    >>> print(one.total_field[0, 0, 0].round(4), one.field_sd[0, 0, 0].round(5))
    0.05 0.00062
    """
    if not mask.any():
        raise ValueError('the mask is empty: there is no voxel whose field could be found')
    images = magnitude[..., None], phase[..., None]
    echoes = Echoes.of(images, [echo_time], mask, field_strength)
    noise_source = 'given'
    if noise_sd is None:
        air = air_around(magnitude[..., None], mask if object_mask is None else object_mask)
        noise_sd = air.noise_sd if air else noise_inside(magnitude, mask)
        noise_source = 'air' if air else 'magnitude'
    amplitude = np.abs(echoes.signal[:, 0])
    relative = max(noise_sd / echoes.unit, 1e-6)

    prediction = np.zeros_like(amplitude)
    if predicted_field is not None:
        prediction += predicted_field[mask]
    known = None if first_field is None else first_field[mask]
    field = field_from_advance(echoes, prediction, known) + prediction
    turn = 1 / (hz_per_ppm(field_strength) * echo_time)
    sd = relative / np.maximum(amplitude, np.finfo(np.float32).tiny) * turn / TWO_PI
    return OneEcho(
        echoes.volume(field),
        echoes.volume(np.minimum(sd, turn).astype(np.float32, copy=False)),
        echoes.volume((amplitude > 2 * relative).astype(np.uint8)),
        float(relative * echoes.unit),
        noise_source,
    )
