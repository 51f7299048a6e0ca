"""Arrays in, arrays out: the public numerical API.

Conventions, at every boundary:

==================  ======================================================================
field, chi          ppm (SI volume susceptibility; relative field, Lorentz-corrected)
echo_times          s
phase               rad
r2star, r2prime     1/s
voxel_size          mm
field_strength      T
b0_dir              unit vector along the voxel axes (:func:`b0_direction`)
reg_weight          lambda of ``|| D chi - f ||^2 + lambda^2 || grad chi ||^2``, mm
maps                (X, Y, Z), float32, zero outside the mask; echoes in the last axis
==================  ======================================================================
"""

from precondqsm_bids.numerics.background_removal import BackgroundRemoval, noise_weights, pdf
from precondqsm_bids.numerics.bias_field import bias_field
from precondqsm_bids.numerics.bodies import bodies
from precondqsm_bids.numerics.comparison import Comparison, compare
from precondqsm_bids.numerics.dipole import b0_direction, dipole_kernel, forward_field
from precondqsm_bids.numerics.dipole_inversion import (
    DipoleInversion,
    LCurve,
    l2_inversion,
    l_curve,
    least_risk,
    trusted_field,
)
from precondqsm_bids.numerics.echo_fit import EchoFit, fit_echoes
from precondqsm_bids.numerics.flattening import Flattening, flatten_field
from precondqsm_bids.numerics.measure_field import MeasuredField, measure_field
from precondqsm_bids.numerics.noise import noise_inside
from precondqsm_bids.numerics.one_echo import OneEcho, field_of_one_echo
from precondqsm_bids.numerics.phase.repair import PhaseRepair, repair_phase
from precondqsm_bids.numerics.phase.scale import PhaseScale, phase_scale, phase_to_radians
from precondqsm_bids.numerics.phase.shape_field import ShapeField, shape_field
from precondqsm_bids.numerics.phase.sign import PhaseSign, phase_sign
from precondqsm_bids.numerics.prior_basis import (
    further_cells,
    map_by_tissue,
    map_scale,
    susceptibility_map,
    tissue_parcels,
)
from precondqsm_bids.numerics.prior_fit import (
    Basis,
    Overlap,
    PriorFit,
    clusters,
    coefficient_errors,
    constant_parcels,
    contrast_cells,
    fit_prior,
    whole_map,
)
from precondqsm_bids.numerics.r2prime_prior import R2PrimePrior, r2prime_prior, relaxivity
from precondqsm_bids.numerics.recombination import BodyReference, Recombination, recombine
from precondqsm_bids.numerics.scan import Scan
from precondqsm_bids.numerics.shape_mask import ShapeMask, shape_mask, surface_share
from precondqsm_bids.numerics.tissue import (
    class_means,
    contradictions,
    literature_r2,
    tissue_class,
)
from precondqsm_bids.numerics.unwrapping import ambiguous_fraction

__all__ = [
    'BackgroundRemoval',
    'Basis',
    'BodyReference',
    'Comparison',
    'DipoleInversion',
    'EchoFit',
    'Flattening',
    'LCurve',
    'MeasuredField',
    'OneEcho',
    'Overlap',
    'PhaseRepair',
    'PhaseScale',
    'PhaseSign',
    'PriorFit',
    'R2PrimePrior',
    'Recombination',
    'Scan',
    'ShapeField',
    'ShapeMask',
    'ambiguous_fraction',
    'b0_direction',
    'bias_field',
    'bodies',
    'class_means',
    'clusters',
    'coefficient_errors',
    'compare',
    'constant_parcels',
    'contradictions',
    'contrast_cells',
    'dipole_kernel',
    'field_of_one_echo',
    'fit_echoes',
    'fit_prior',
    'flatten_field',
    'forward_field',
    'further_cells',
    'l2_inversion',
    'l_curve',
    'least_risk',
    'literature_r2',
    'map_by_tissue',
    'map_scale',
    'measure_field',
    'noise_inside',
    'noise_weights',
    'pdf',
    'phase_scale',
    'phase_sign',
    'phase_to_radians',
    'r2prime_prior',
    'recombine',
    'relaxivity',
    'repair_phase',
    'shape_field',
    'shape_mask',
    'surface_share',
    'susceptibility_map',
    'tissue_class',
    'tissue_parcels',
    'trusted_field',
    'whole_map',
]
