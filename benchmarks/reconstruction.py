"""The method's stages on arrays, joined as the workflow joins them, and scored against the truth.

Numerics only: what :func:`reconstruct` computes is what ``precondqsm_bids.workflows.qsm``
computes node by node.
"""

import time
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from scipy import fft, ndimage

from precondqsm_bids.method import LONGER
from precondqsm_bids.numerics import (
    DipoleInversion,
    EchoFit,
    PriorFit,
    ShapeMask,
    b0_direction,
    bias_field,
    clusters,
    coefficient_errors,
    compare,
    contrast_cells,
    fit_echoes,
    fit_prior,
    flatten_field,
    forward_field,
    l2_inversion,
    noise_weights,
    pdf,
    r2prime_prior,
    recombine,
    shape_mask,
    solver,
    whole_map,
    without_outliers,
)
from precondqsm_bids.numerics.closed_form import gradient_power
from precondqsm_bids.numerics.constants import AIR_CHI, WATER_CHI
from precondqsm_bids.numerics.dipole import dipole_kernel
from precondqsm_bids.numerics.prior.fit import MODEL_ERROR as FIT_MODEL_ERROR
from precondqsm_bids.numerics.solver import solver_grid
from precondqsm_bids.phantom.tubes import r2prime

WORKERS = 2
ARMS = ('conventional', 'none', 'global', 'clusters', 'contrast')
GRID = np.logspace(-2, 0, 21)
"""Lambda (mm) among which the best in hindsight is sought."""
RIM = 5
"""Depth of the rim of the region of interest, voxels."""


class Variant(NamedTuple):
    """Departures from the workflow, to show what they cost."""

    pdf_model_error: float | None = None
    """Floor of the noise weights in PDF, ppm; None: the expected size after contrast."""
    fit_model_error: float = FIT_MODEL_ERROR
    """Floor of the weights in the prior's fit, relative to the expected size."""
    size_factor: float = 1.0
    """Factor on the expected size of the fitted susceptibility, which must be given."""
    free_voxels: bool = True
    """Whether what the contrast prior leaves gives it sources of their own."""
    bias_field: bool = True
    """Whether the magnitude's bias field is removed before it makes cells."""
    clip_outliers: bool | None = None
    """Whether the residual is held down where it is no more than noise; None: after contrast."""


class Stages(NamedTuple):
    """What all arms share."""

    shape: ShapeMask
    roi: np.ndarray
    voxel_size: np.ndarray
    b0_dir: np.ndarray
    first: np.ndarray
    fit: EchoFit
    theory: np.ndarray
    inner_size: float
    seconds: dict

    @property
    def geometry(self):
        return self.roi, self.voxel_size, self.b0_dir


class Arm(NamedTuple):
    """One arm, inverted with the lambda that the workflow takes by default."""

    name: str
    prior: PriorFit | None
    prior_chi: np.ndarray | None
    parcels: int
    errors: np.ndarray | None
    local_field: np.ndarray
    clip_outliers: bool
    inversion: DipoleInversion
    seconds: dict


def strongest_for(t2star, spec):
    """Susceptibility (ppm) of the tube whose T2* (s) is this one."""
    return float((1 / t2star - spec.r2) / r2prime(1.0, spec.field_strength, spec.relaxivity_scale))


@contextmanager
def timed(seconds, name):
    """Add the time that the block takes to ``seconds[name]``."""
    start = time.perf_counter()
    yield
    seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start


def first_stages(phantom, true_field=False):
    """Shape mask, echo fit and prior by theory of a phantom.

    With ``true_field`` the phantom's own field, with noise of the fitted standard deviation,
    takes the place of the fitted one.
    """
    seconds = {}
    voxel_size = np.asarray(phantom.spec.voxel_size, float)
    b0_dir = b0_direction(phantom.affine)
    first = phantom.magnitude[..., 0]
    with timed(seconds, 'shape_mask'):
        shape = shape_mask(first, voxel_size=voxel_size)
    roi = shape.roi_mask
    with timed(seconds, 'echo_fit'):
        solid = np.float32(WATER_CHI - AIR_CHI) * shape.shape_mask
        fit = fit_echoes(
            phantom.magnitude,
            phantom.phase,
            phantom.echo_times,
            phantom.spec.field_strength,
            roi,
            object_mask=shape.shape_mask,
            voxel_size=voxel_size,
            predicted_field=forward_field(solid, voxel_size, b0_dir, roi, WORKERS),
            workers=WORKERS,
        )
    if true_field:
        noise = np.random.default_rng(1).standard_normal(roi.shape, np.float32)
        fit = fit._replace(total_field=np.where(roi, phantom.field + noise * fit.field_sd, 0))
    with timed(seconds, 'r2prime_prior'):
        theory = r2prime_prior(
            fit.r2star, roi, phantom.spec.field_strength, reliable=fit.reliable
        ).prior_chi
    return Stages(shape, roi, voxel_size, b0_dir, first, fit, theory, 0.0, seconds)


def fit_basis(stages, name, shape_chi, variant, inner_size):
    """The prior of one arm, fitted to the field; its bases and the field it was fitted to."""
    field = stages.fit.total_field
    if shape_chi is not None:
        field = field - forward_field(
            shape_chi, stages.voxel_size, stages.b0_dir, stages.roi, WORKERS
        )
    if name == 'contrast':
        r2star, first = stages.fit.r2star, stages.first
        if variant.bias_field:
            first = first / bias_field(first, r2star, stages.roi)
        bases = contrast_cells([r2star, first], stages.roi, stages.voxel_size)
    elif name == 'clusters':
        bases = [clusters(stages.theory, stages.roi)]
    else:
        bases = [whole_map(stages.theory, stages.roi)]
    fit = fit_prior(
        field,
        bases,
        *stages.geometry,
        stages.fit.field_sd,
        stages.shape.shape_sd if name == 'contrast' and shape_chi is not None else None,
        inner_size=inner_size,
        free_voxels=name == 'contrast' and variant.free_voxels,
        workers=WORKERS,
        model_error=variant.fit_model_error,
    )
    return fit, bases, field


def reconstruct(stages, name, *, shape=True, variant=None, inner_size=None):
    """One arm of the reconstruction, from the echo fit to the inverted residual.

    Parameters
    ----------
    stages : Stages
        What :func:`first_stages` found.
    name : str
        One of `ARMS`; all but ``conventional`` name the form of the prior.
    shape : bool
        Whether the shape in air is part of the first estimate.
    variant : Variant, optional
        Departures from the workflow.
    inner_size : float, optional
        Expected size of the fitted susceptibility, ppm, if another arm's fit has found it (from
        the same field and weights, so that it is the same number).

    Returns
    -------
    Arm
    """
    variant = variant or Variant()
    seconds = {}
    fit, prior, prior_chi, parcels, errors = stages.fit, None, None, 0, None
    shape_chi = stages.shape.shape_chi if shape else None
    field = fit.total_field
    if name != 'conventional':
        prior_chi = stages.theory
        if name != 'none':
            with timed(seconds, 'prior_fit'):
                size = None if inner_size is None else variant.size_factor * inner_size
                prior, bases, fitted = fit_basis(stages, name, shape_chi, variant, size)
            prior_chi = prior.prior_chi
            parcels = sum(basis.parcels for basis in bases)
            if shape_chi is not None:
                shape_chi = shape_chi + prior.surface_chi
            if name == 'global':
                errors = coefficient_errors(
                    fitted, bases[0], prior, *stages.geometry, fit.field_sd, workers=WORKERS
                )
        with timed(seconds, 'flattening'):
            field = flatten_field(
                field, prior_chi, *stages.geometry, shape_chi, WORKERS
            ).flattened_field
    interior = name == 'contrast'
    with timed(seconds, 'background_removal'):
        model_error = (
            prior.inner_size
            if interior and variant.pdf_model_error is None
            else variant.pdf_model_error
        )
        model_error = solver.MODEL_ERROR if model_error is None else model_error
        weights = noise_weights(fit.field_sd, stages.roi, model_error)
        iterations = 30 * (LONGER if interior else 1)
        local = pdf(field, *stages.geometry, weights, iterations, WORKERS).local_field
    clip_outliers = interior if variant.clip_outliers is None else variant.clip_outliers
    with timed(seconds, 'dipole_inversion'):
        rule = 'l-curve' if name == 'conventional' else 'risk'
        inversion = invert(local, stages, clip_outliers, rule)
    return Arm(name, prior, prior_chi, parcels, errors, local, clip_outliers, inversion, seconds)


def invert(local_field, stages, clip_outliers, rule):
    """The dipole inversion as the workflow calls it."""
    return l2_inversion(
        local_field,
        *stages.geometry,
        workers=WORKERS,
        rule=rule,
        clip_outliers=clip_outliers,
    )


# --- lambda ----------------------------------------------------------------------------------


def default(arm, stages):
    """What the workflow takes: the corner in the conventional arm, else the least risk."""
    return arm.inversion.reg_weight


def corner(arm, stages):
    """The published rule: the corner of the L-curve."""
    return arm.inversion.curve.reg_weight


def risk(arm, stages):
    """The least expected error, the noise being read in the dipole's cone."""
    return invert(arm.local_field, stages, arm.clip_outliers, 'risk').reg_weight


def convex_corner(arm, stages):
    """Where the L-curve bends upwards most: the corner that noise makes, of the textbooks."""
    curve = arm.inversion.curve
    return float(curve.reg_weights[np.argmax(curve.curvature)])


def sharpest_corner(arm, stages):
    """Where the L-curve bends most, upwards or downwards."""
    curve = arm.inversion.curve
    return float(curve.reg_weights[np.argmax(np.abs(curve.curvature))])


RULES = {
    'default': default,
    'corner': corner,
    'risk': risk,
    'convex': convex_corner,
    'sharpest': sharpest_corner,
}
"""Rules for lambda: name -> function of an arm and the stages; each is scored in every arm."""


class Division:
    """The closed form of :func:`l2_inversion` for many lambdas of one field."""

    def __init__(self, arm, stages):
        roi, voxel_size, b0_dir = stages.geometry
        field = arm.local_field
        if arm.clip_outliers:
            field = without_outliers(field, roi)
        self.roi, self.grid = roi, solver_grid(roi)
        self.kernel = dipole_kernel(self.grid.shape, voxel_size, b0_dir)
        self.gradient = gradient_power(self.grid.shape, voxel_size)
        self.spectrum = fft.rfftn(self.grid.embed(field * roi), workers=WORKERS) * self.kernel
        self.spectrum[0, 0, 0] = 0
        self.prior = arm.prior_chi
        # the sweep must be that of the program
        difference = self.residual(arm.inversion.reg_weight) - arm.inversion.chi
        if np.abs(difference).max() > 1e-4:
            raise AssertionError(f'{arm.name}: the sweep departs from l2_inversion')

    def residual(self, weight):
        """Susceptibility of the local field at one lambda, ppm."""
        denominator = self.gradient * np.float32(weight**2)
        denominator += self.kernel**2
        denominator[0, 0, 0] = 1
        chi = fft.irfftn(self.spectrum / denominator, s=self.grid.shape, workers=WORKERS)
        chi = self.grid.extract(chi, self.roi.shape)
        chi[~self.roi] = 0
        return chi

    def chi(self, weight):
        """Recombined map relative to the mean of the region, ppm."""
        return recombine(self.residual(weight), self.prior, self.roi, self.roi).chi


# --- scores ----------------------------------------------------------------------------------


class Error:
    """Voxelwise error of maps over a region, rim included."""

    def __init__(self, chi, roi):
        self.roi = roi
        truth = chi[roi].astype(float)
        self.truth = truth - truth.mean()

    def nrmse(self, chi):
        """Error relative to the deviation of the true map, each map less its mean; 1 is 100 %."""
        found = chi[self.roi].astype(float)
        error = found - found.mean() - self.truth
        return float(np.linalg.norm(error) / np.linalg.norm(self.truth))


def tube_labels(phantom):
    """Labels of the tubes: not of agar, oil, bottle or flow."""
    return [i for i, name in phantom.label_names.items() if name.startswith('tube')]


class Score(Error):
    """Compares maps with the truth of one phantom of tubes."""

    def __init__(self, phantom, roi):
        super().__init__(phantom.chi, roi)
        self.tubes = [roi & (phantom.labels == i) for i in tube_labels(phantom)]
        (agar,) = (i for i, name in phantom.label_names.items() if name == 'agar')
        self.agar = roi & (phantom.labels == agar)
        depth = ndimage.distance_transform_edt(np.pad(roi, 1))[1:-1, 1:-1, 1:-1]
        self.rim = self.agar & (depth <= RIM)

    def __call__(self, chi):
        """Tubes relative to the agar (ppm; NaN outside), deviations of the agar (ppm), NRMSE."""
        agar = chi[self.agar].astype(float)
        return {
            'tubes': [
                float(chi[tube].mean(dtype=float) - agar.mean()) if tube.any() else np.nan
                for tube in self.tubes
            ],
            'agar_sd': float(agar.std()),
            'rim_sd': float(chi[self.rim].std(dtype=float)),
            'nrmse': self.nrmse(chi),
        }


def r2star_table(phantom, roi, r2star):
    """True R2* of each tube and of the agar beside the fitted mean and deviation, 1/s."""
    rows = []
    for label, name in phantom.label_names.items():
        inside = roi & (phantom.labels == label)
        fitted = r2star[inside]
        rows.append(
            {
                'name': name,
                'true': float(phantom.r2star[inside].mean(dtype=float)),
                'mean': float(fitted.mean(dtype=float)),
                'sd': float(fitted.std(dtype=float)),
            }
        )
    return rows


def assess(arm, stages, score, conventional=None):
    """All that is reported of one arm, ready for JSON; compared with another without the truth."""
    division = Division(arm, stages)
    curve = arm.inversion.curve
    rules = {}
    for name, rule in RULES.items():
        weight = rule(arm, stages)
        rules[name] = {'weight': weight, **score(division.chi(weight))}
    sweep = [score.nrmse(division.chi(weight)) for weight in GRID]
    candidates = dict(zip(GRID.tolist(), sweep, strict=True))
    candidates |= {rule['weight']: rule['nrmse'] for rule in rules.values()}
    best = min(candidates, key=candidates.get)
    record = {
        'rules': rules | {'best': {'weight': best, **score(division.chi(best))}},
        'sweep': sweep,
        'curve': {
            'reg_weights': curve.reg_weights.tolist(),
            'consistency': curve.consistency.tolist(),
            'regularization': curve.regularization.tolist(),
            'curvature': curve.curvature.tolist(),
        },
        'warnings': list(curve.warnings),
        'seconds': arm.seconds,
    }
    if conventional is not None:
        chi = division.chi(arm.inversion.reg_weight)
        fields = arm.local_field, conventional.local_field
        weights = noise_weights(stages.fit.field_sd, stages.roi)
        found = compare(
            *fields, chi, conventional.inversion.chi, *stages.geometry, weights, WORKERS
        )
        record['comparison'] = found._asdict()
    if arm.prior_chi is not None:
        record['prior'] = score(arm.prior_chi)
    if arm.prior is not None:
        record['fit'] = {
            'parcels': arm.parcels,
            'inner_size': arm.prior.inner_size,
            'explained': arm.prior.explained,
            'down_weighted': arm.prior.down_weighted,
        }
        if arm.parcels <= 20:
            record['fit']['coefficients'] = arm.prior.coefficients[0].tolist()
        if arm.errors is not None:
            record['fit']['errors'] = arm.errors.tolist()
    return record
