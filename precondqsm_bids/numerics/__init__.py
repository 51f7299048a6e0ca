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

from precondqsm_bids.numerics.background_removal import BackgroundRemoval, pdf, remove_background
from precondqsm_bids.numerics.bodies import bodies
from precondqsm_bids.numerics.brain import Brain, find_brain
from precondqsm_bids.numerics.closed_form import ClosedForm, closed_form
from precondqsm_bids.numerics.comparison import Comparison, compare
from precondqsm_bids.numerics.dipole import Geometry, b0_direction, dipole_kernel, forward_field
from precondqsm_bids.numerics.dipole_inversion import (
    DipoleInversion,
    invert,
    l2_inversion,
    without_outliers,
)
from precondqsm_bids.numerics.echo_fit import EchoFit, fit_echoes
from precondqsm_bids.numerics.expected_risk import least_risk
from precondqsm_bids.numerics.flattening import Flattening, flatten_field
from precondqsm_bids.numerics.given_field import GivenField, take_field
from precondqsm_bids.numerics.l_curve import LCurve, l_curve
from precondqsm_bids.numerics.measure_field import MeasuredField, measure_field
from precondqsm_bids.numerics.noise import noise_inside
from precondqsm_bids.numerics.one_echo import OneEcho, field_of_one_echo
from precondqsm_bids.numerics.phase.repair import PhaseRepair, repair_phase
from precondqsm_bids.numerics.phase.scale import PhaseScale, phase_scale, phase_to_radians
from precondqsm_bids.numerics.phase.shape_field import ShapeField, shape_field
from precondqsm_bids.numerics.phase.sign import PhaseSign, phase_sign
from precondqsm_bids.numerics.precondition import Preconditioned, precondition
from precondqsm_bids.numerics.prior.basis import (
    Basis,
    Overlap,
    clusters,
    constant_parcels,
    whole_map,
)
from precondqsm_bids.numerics.prior.bias_field import bias_field
from precondqsm_bids.numerics.prior.contrast import contrast_cells
from precondqsm_bids.numerics.prior.errors import coefficient_errors
from precondqsm_bids.numerics.prior.estimate import PriorEstimate, PriorInputs, estimate_prior
from precondqsm_bids.numerics.prior.fit import FitOptions, PriorFit, fit_prior
from precondqsm_bids.numerics.prior.maps import map_by_tissue, map_scale, susceptibility_map
from precondqsm_bids.numerics.prior.r2prime import (
    R2Inputs,
    R2PrimePrior,
    r2prime_prior,
    relaxivity,
    transverse_rate,
)
from precondqsm_bids.numerics.prior.tissue import (
    class_means,
    contradictions,
    literature_r2,
    tissue_class,
    tissue_parcels,
)
from precondqsm_bids.numerics.quality_mask import QualityMask, quality_mask
from precondqsm_bids.numerics.recombination import (
    BodyReference,
    Recombination,
    recombine,
)
from precondqsm_bids.numerics.reconstruct import (
    ArmResult,
    Companions,
    FieldReconstruction,
    Reconstruction,
    reconstruct,
    reconstruct_field,
)
from precondqsm_bids.numerics.residual_inversion import Residual, residual_inversion
from precondqsm_bids.numerics.scan import Scan
from precondqsm_bids.numerics.shape_mask import (
    Region,
    ShapeMask,
    region_of_interest,
    shape_mask,
    surface_fraction,
)
from precondqsm_bids.numerics.solver import noise_weights
from precondqsm_bids.numerics.total_variation import TotalVariation, tv_inversion
from precondqsm_bids.numerics.uncertainty import (
    MapInputs,
    RegionUncertainty,
    Uncertainty,
    map_uncertainty,
)
from precondqsm_bids.numerics.unwrapping import ambiguous_fraction
from precondqsm_bids.numerics.vsharp import Vsharp, vsharp

# All that is imported above, and nothing else:
__all__ = sorted(name for name, value in globals().items() if callable(value))
