"""What is validated apart from the maps: R2*, the forward field, the prior's fit and its cost."""

import time
from dataclasses import replace

import numpy as np
from reconstruction import WORKERS, first_stages, r2star_table, strongest_for

from precondqsm_bids.numerics import (
    clusters,
    constant_parcels,
    contrast_cells,
    fit_prior,
    forward_field,
    noise_weights,
    pdf,
)
from precondqsm_bids.numerics.dipole import cyclic_prism_kernel
from precondqsm_bids.numerics.prior.fit import MODEL_ERROR, FitOptions
from precondqsm_bids.numerics.solver import solver_grid
from precondqsm_bids.phantom.fields import sphere_field
from precondqsm_bids.phantom.tubes import simulate_tubes

SEED = 0
BLOCK = 5.0
"""Edge of the blocks that make thousands of parcels, mm."""
SPHERE_RADIUS = 20.0
SPHERE_VOXELS = ((1, 1, 1), (1, 1, 2), (1, 1, 3))
SPHERE_TILTS = (0, 25, 45)


def short_t2star(spec):
    """R2* of a tube with T2* of 1.5 ms at SNR 50, eight echoes of 1.2 ms."""
    spec = replace(spec, snr=50.0, echo_times=tuple(1.2e-3 * i for i in range(1, 9)))
    spec = replace(spec, tubes_dchi=(*spec.tubes_dchi[:-1], strongest_for(1.5e-3, spec)))
    phantom = simulate_tubes(spec, seed=SEED)
    stages = first_stages(phantom)
    return r2star_table(phantom, stages.roi, stages.measured.r2star)


def _filled(shape, voxel_size, radius, factor=6):
    """Share of each voxel that lies in a sphere at the centre of the grid."""
    axes = [
        (np.arange(n * factor) - (n * factor - 1) / 2) * (d / factor)
        for n, d in zip(shape, voxel_size, strict=True)
    ]
    x, y, z = np.meshgrid(*axes, indexing='ij', sparse=True)
    inside = x**2 + y**2 + z**2 <= radius**2
    blocks = inside.reshape([m for n in shape for m in (n, factor)])
    return blocks.mean(axis=(1, 3, 5), dtype=np.float32)


def sphere(spec):
    """Forward field of a sphere against its closed form, two and four voxels off its surface."""
    rows = []
    for voxel_size in SPHERE_VOXELS:
        shape = tuple(int(np.ceil(56 / d)) for d in voxel_size)
        chi = _filled(shape, voxel_size, SPHERE_RADIUS)
        axes = [(np.arange(n) - (n - 1) / 2) * d for n, d in zip(shape, voxel_size, strict=True)]
        points = np.stack(np.meshgrid(*axes, indexing='ij'), axis=-1)
        r = np.linalg.norm(points, axis=-1)
        off = np.abs(r - SPHERE_RADIUS) / max(voxel_size)
        for tilt in SPHERE_TILTS:
            b0_dir = (0.0, np.sin(np.radians(tilt)), np.cos(np.radians(tilt)))
            truth = sphere_field(points, SPHERE_RADIUS, b0_dir)
            error = forward_field(chi, voxel_size, b0_dir, workers=WORKERS) - truth
            outside = (r > SPHERE_RADIUS) & (off >= 2)
            inside, deep = ((r < SPHERE_RADIUS) & (off >= n) for n in (2, 4))
            rows.append(
                {
                    'voxel_size': voxel_size,
                    'tilt': tilt,
                    'outside_norm': float(
                        np.linalg.norm(error[outside]) / np.linalg.norm(truth[outside])
                    ),
                    'outside_max': float(np.abs(error[outside]).max() / (2 / 3)),
                    'inside_rms': float(np.sqrt(np.mean(error[inside] ** 2))),
                    'deep_max': float(np.abs(error[deep]).max()),
                }
            )
    return rows


def long_way(spec):
    """Coefficients of the clusters, jointly and by one PDF projection per basis map.

    The long way: the field of every basis map, by the same kernel, goes through PDF as the
    measured field does, and the coefficients are those of weighted least squares of what is
    left. Both start from the same weights; the joint solution is shown with a single round, which
    is the same problem, and as the program uses it.
    """
    phantom = simulate_tubes(spec, seed=SEED)
    stages = first_stages(phantom)
    roi, voxel_size, b0_dir, _ = geometry = stages.geometry
    field = stages.measured.total_field - forward_field(
        stages.region.shape_chi, voxel_size, b0_dir, roi, WORKERS
    )
    basis = clusters(stages.theory, roi)
    field_sd = stages.measured.field_sd
    used = fit_prior(field, [basis], geometry, field_sd)
    size = used.inner_size
    weights = noise_weights(field_sd, roi, MODEL_ERROR * size)

    grid = solver_grid(roi)
    kernel = cyclic_prism_kernel(grid.shape, voxel_size, b0_dir)

    def cyclic_field(chi):
        spectrum = np.fft.rfftn(grid.embed(chi)) * kernel
        return grid.extract(np.fft.irfftn(spectrum, s=grid.shape), roi.shape) * roi

    maps = [basis.weight * (basis.labels == j) for j in range(basis.parcels)]
    fields = [cyclic_field(chi) for chi in maps]
    w = weights[roi].astype(float)
    rows = []
    for iterations in (30, 90):

        def project(f, iterations=iterations):
            local = pdf(f, roi, voxel_size, b0_dir, weights, iterations, WORKERS).local_field
            return local[roi] * w

        columns = np.stack([project(f) for f in fields], axis=1)
        longhand = np.linalg.lstsq(columns, project(field), rcond=None)[0]
        options = FitOptions(iterations, rounds=1, inner_size=size)
        joint = fit_prior(field, [basis], geometry, field_sd, options=options)
        rows.append(
            {
                'iterations': iterations,
                'long': longhand.tolist(),
                'joint': joint.coefficients[0].tolist(),
            }
        )
    return {
        'rows': rows,
        'used': used.coefficients[0].tolist(),
        'expected': [float(np.vdot(chi, phantom.chi) / np.vdot(chi, chi)) for chi in maps],
    }


def cost(spec, repeats=9, iterations=150):
    """Seconds of the prior's fit and of a PDF of as many iterations, medians of ``repeats``.

    The speed of a shared machine wanders by more than what is to be measured. Each fit is
    therefore timed between two PDFs and compared with their mean.
    """
    stages = first_stages(simulate_tubes(spec, seed=SEED))
    field_sd, geometry = stages.measured.field_sd, stages.geometry
    options = FitOptions(iterations, inner_size=0.1)
    weights = noise_weights(field_sd, stages.roi)
    contrasts = [stages.measured.r2star, stages.images.magnitude]
    blocks = [
        index * size // BLOCK
        for index, size in zip(np.indices(stages.roi.shape), geometry.voxel_size, strict=True)
    ]
    blocks = ((blocks[0] * 1000 + blocks[1]) * 1000 + blocks[2]).astype(np.int64)
    bases = {
        'clusters': [clusters(stages.theory, stages.roi)],
        f'blocks of {BLOCK:g} mm': [constant_parcels(blocks, stages.roi)],
        'contrast': contrast_cells(contrasts, *geometry[:2]),
    }
    field = stages.measured.total_field

    def timed(function, *arguments):
        start = time.perf_counter()
        function(field, *arguments)
        return time.perf_counter() - start

    def pdf_seconds():
        return timed(pdf, *geometry[:3], weights, iterations, WORKERS)

    seconds, ratios = ({name: [] for name in ('pdf', *bases)} for _ in range(2))
    pdf_seconds()
    for _ in range(repeats):
        before = pdf_seconds()
        for name, basis in bases.items():
            own = timed(fit_prior, basis, geometry, field_sd, None, options)
            after = pdf_seconds()
            seconds['pdf'].append(after)
            seconds[name].append(own)
            ratios[name].append(2 * own / (before + after))
            before = after
    return {
        'iterations': iterations,
        'repeats': repeats,
        'seconds': {name: float(np.median(values)) for name, values in seconds.items()},
        'ratios': {name: sorted(values) for name, values in ratios.items() if values},
        'parcels': {name: sum(b.parcels for b in basis) for name, basis in bases.items()},
    }
