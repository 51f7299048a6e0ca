"""How often the standard errors of the prior's coefficients cover the truth, over noise seeds."""

import numpy as np
from reconstruction import WORKERS, first_stages, tube_labels

from precondqsm_bids.numerics import (
    Geometry,
    b0_direction,
    clusters,
    coefficient_errors,
    fit_echoes,
    fit_prior,
    forward_field,
    susceptibility_map,
)
from precondqsm_bids.phantom.head import simulate_head
from precondqsm_bids.phantom.tubes import simulate_tubes

SEEDS = 100
"""How many; the noise of seed n is that of `remeasure(n)`."""


def tubes(spec, seeds):
    """Coefficients of the clusters of the R2' prior, one row a seed: found, error, expected.

    The coefficient that is expected is that of the projection of the true map; only the clusters
    of tubes have one, the rest being noise.
    """
    phantom = simulate_tubes(spec, seed=0)
    for seed in seeds:
        measured = phantom.remeasure(seed)
        stages = first_stages(measured)
        roi, voxel_size, b0_dir, _ = geometry = stages.geometry
        shape = forward_field(stages.region.shape_chi, voxel_size, b0_dir, roi, WORKERS)
        field, field_sd = stages.measured.total_field - shape, stages.measured.field_sd
        basis = clusters(stages.theory, roi)
        fit = fit_prior(field, [basis], geometry, field_sd)
        errors = coefficient_errors(field, basis, fit, geometry, field_sd)
        row = []
        for j in range(basis.parcels):
            inside = basis.labels == j
            chi = basis.weight[inside].astype(float)
            expected = float(np.vdot(chi, phantom.chi[inside]) / np.vdot(chi, chi))
            if np.isin(phantom.labels[inside], tube_labels(phantom)).mean() > 0.25:
                row.append((float(fit.coefficients[0][j]), float(errors[j]), expected))
        yield row


def head(spec, seeds):
    """The coefficient of the true map of a head as prior, 1; rows as in :func:`tubes`."""
    phantom = simulate_head(spec, seed=0)
    mask, size = phantom.brain_mask, spec.voxel_size
    b0_dir = b0_direction(phantom.affine)
    basis = susceptibility_map(phantom.chi * mask, mask, 'global')
    geometry = Geometry(mask, size, b0_dir, WORKERS)
    for seed in seeds:
        measured = phantom.remeasure(seed)
        echoes = fit_echoes(
            measured.magnitude,
            measured.phase,
            measured.echo_times,
            spec.field_strength,
            mask,
            workers=WORKERS,
        )
        fit = fit_prior(echoes.total_field, [basis], geometry, echoes.field_sd)
        errors = coefficient_errors(echoes.total_field, basis, fit, geometry, echoes.field_sd)
        yield [(float(fit.coefficients[0][0]), float(errors[0]), 1.0)]
