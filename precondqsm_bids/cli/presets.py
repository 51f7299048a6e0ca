"""Presets: several settings of the method by one word of the command line."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from precondqsm_bids.terms import PUBLISHED


class Preset(NamedTuple):
    """Settings of the method by one word."""

    help: str
    values: Mapping[str, Any]
    """Fields of :class:`~precondqsm_bids.method.Method`."""


PRESETS = {
    'abstract': Preset(
        'the published method: the prior r2prime, not fitted, with the shape; 30 iterations of '
        'pdf; l2 at the corner of the L-curve in both arms',
        {
            'prior': PUBLISHED, 'prior_fit': 'auto', 'r2': 'median', 'shape': True,
            'conventional': True, 'background': 'pdf', 'pdf_iterations': 30, 'inversion': 'l2',
            'reg_rule': 'l-curve', 'reg_weight': None,
        },
    ),
    'consensus': Preset(
        'beside the other arms that of the QSM consensus (border voxels of uncertain field left '
        'out, V-SHARP, total variation, the mean of the region as reference), and the '
        'conventional map of least expected error beside that at the corner of the L-curve',
        {'consensus': True},
    ),
}  # fmt: skip
"""In the order in which they are applied."""


def preset_values(words: Sequence[str]) -> dict[str, Any]:
    """Settings of the method that presets give.

    >>> preset_values(['consensus'])
    {'consensus': True}
    """
    given = [preset.values for word, preset in PRESETS.items() if word in words]
    return {name: value for values in given for name, value in values.items()}
