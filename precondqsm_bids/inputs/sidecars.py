"""What sidecars say of images: which part they are, how they were processed, and the field."""

import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

SAME_TIME = 1e-6
"""s; echo times that differ by no more are equal: scanners and converters round them."""
STRENGTH_TOLERANCE = 0.1
"""Share by which the field strength of the imaging frequency may differ from the nominal one:
scanners of 3 T have 2.89 to 3.0 T, and no two nominal field strengths are as near."""
KINDS = {
    'mag': ('M', 'MAGNITUDE'),
    'phase': ('P', 'PHASE', 'PHASEMAP'),
    'real': ('R', 'REAL'),
    'imag': ('I', 'IMAGINARY'),
}
"""Words of ``ImageType`` for each label of ``part``."""
FILTERED = ('SWI', 'MNIP', 'MINIP', 'FILTERED', 'HIGHPASS', 'HOMODYNE')
"""Words of ``ImageType`` for a phase whose slow variations were removed."""
DIFFERENCE = ('PHASEDIFF', 'PHASEDIFFERENCE', 'DIFFERENCE')
"""Words of ``ImageType`` for the difference of two echoes' phases."""


def read_sidecar(path: Path) -> tuple[dict[str, Any], str]:
    """Content of a sidecar, and what is to be told of it.

    Raises
    ------
    OSError
        It cannot be read.
    ValueError
        It is not JSON, or not a JSON object.
    """
    raw, note = path.read_bytes(), ''
    try:
        text = raw.decode('utf-8-sig')
    except UnicodeDecodeError as error:
        text = raw.decode('latin-1')
        note = (
            f'is not UTF-8, as JSON is (byte {raw[error.start]:#04x} at {error.start}); it was '
            'read as latin-1: save it as UTF-8'
        )
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ValueError(f'is not a readable JSON file: {error}') from error
    if not isinstance(content, dict):
        raise ValueError('a sidecar is a JSON object, {"EchoTime": 0.004, ...}')
    return content, note


def image_words(image_type: Any) -> list[str]:
    """Words of an ``ImageType``, capital letters alone.

    >>> image_words(['ORIGINAL', 'Phase Map', 'P'])
    ['ORIGINAL', 'PHASEMAP', 'P']
    >>> image_words('ORIGINAL\\\\PRIMARY\\\\M')
    ['ORIGINAL', 'PRIMARY', 'M']
    """
    if isinstance(image_type, str):
        image_type = re.split(r'[\\/,]', image_type)
    if not isinstance(image_type, list):
        return []
    return [re.sub('[^A-Z]', '', str(word).upper()) for word in image_type]


def image_kinds(image_type: Any) -> set[str]:
    """Labels of ``part`` that an ``ImageType`` names; more than one decides nothing.

    >>> sorted(image_kinds(['ORIGINAL', 'PRIMARY', 'P', 'ND']))
    ['phase']
    >>> sorted(image_kinds(['ORIGINAL', 'PRIMARY', 'M_FFE', 'M', 'FFE', 'PHASE']))
    ['mag', 'phase']
    >>> image_kinds(['ORIGINAL', 'PRIMARY', 'OTHER'])
    set()
    """
    words = image_words(image_type)
    return {kind for kind, names in KINDS.items() if any(name in words for name in names)}


def named(image_type: Any, words: Collection[str]) -> str:
    """The first word of an ``ImageType`` that is among some others, or an empty string.

    >>> named(['DERIVED', 'PRIMARY', 'P', 'SWI'], FILTERED)
    'SWI'
    """
    return next((word for word in image_words(image_type) if word in words), '')


def strength_of(frequency: float) -> float:
    """Field strength (T) at which water has an imaging frequency (MHz).

    By the shielded proton, so that 1 ppm of the field is 1 ppm of this frequency.

    >>> round(strength_of(123.2), 4)
    2.8936
    """
    from precondqsm_bids.numerics.constants import GAMMA_BAR

    return frequency * 1e6 / GAMMA_BAR
