"""One thin Nipype interface per stage, to embed in any workflow.

Importing this package needs nipype and the numerics, nothing else. The node that writes and draws,
which needs matplotlib, is imported by its own name (``precondqsm_bids.interfaces.derivatives``).
"""

from precondqsm_bids.interfaces.background_removal import BackgroundRemoval
from precondqsm_bids.interfaces.comparison import Comparison
from precondqsm_bids.interfaces.dipole_inversion import DipoleInversion
from precondqsm_bids.interfaces.echo_fit import EchoFit
from precondqsm_bids.interfaces.flattening import FlattenField
from precondqsm_bids.interfaces.prior_fit import PriorFit
from precondqsm_bids.interfaces.quality_mask import QualityMask
from precondqsm_bids.interfaces.r2prime_prior import R2PrimePrior
from precondqsm_bids.interfaces.recombination import Recombination
from precondqsm_bids.interfaces.shape_mask import ShapeMask
from precondqsm_bids.interfaces.take_field import TakeField
from precondqsm_bids.interfaces.uncertainty import Uncertainty

__all__ = [
    'BackgroundRemoval',
    'Comparison',
    'DipoleInversion',
    'EchoFit',
    'FlattenField',
    'PriorFit',
    'QualityMask',
    'R2PrimePrior',
    'Recombination',
    'ShapeMask',
    'TakeField',
    'Uncertainty',
]
