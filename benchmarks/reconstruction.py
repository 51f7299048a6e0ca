"""The arms of the validation on arrays, by the pieces of the package, and their scores."""

import time
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from scipy import fft, ndimage

from precondqsm_bids.method import Arm as ArmOfMethod
from precondqsm_bids.method import Method
from precondqsm_bids.numerics import (
    Companions,
    DipoleInversion,
    Geometry,
    MeasuredField,
    PriorEstimate,
    PriorInputs,
    Region,
    Scan,
    b0_direction,
    bias_field,
    compare,
    contrast_cells,
    fit_prior,
    forward_field,
    invert,
    measure_field,
    recombine,
    region_of_interest,
    without_outliers,
)
from precondqsm_bids.numerics.closed_form import closed_form, gradient_power
from precondqsm_bids.numerics.dipole import dipole_kernel
from precondqsm_bids.numerics.prior.fit import MODEL_ERROR as FIT_MODEL_ERROR
from precondqsm_bids.numerics.prior.fit import FitOptions, outer_start
from precondqsm_bids.numerics.reconstruct import (
    Left,
    first_estimate,
    flatten,
    invert_field,
    left_by,
    prior_inputs,
    theory_prior,
)
from precondqsm_bids.numerics.residual_inversion import Residual, residual_inversion
from precondqsm_bids.numerics.solver import noise_weights, solver_grid
from precondqsm_bids.phantom.tubes import r2prime

WORKERS = 2
METHODS = {
    'conventional': Method(prior='r2prime'),
    'none': Method(prior='r2prime', prior_fit='none'),
    'global': Method(prior='r2prime', prior_fit='global'),
    'clusters': Method(prior='r2prime', prior_fit='clusters'),
    'contrast': Method(prior='contrast'),
}
"""Arms of the page; of the first one the arm without a prior."""
GRID = np.logspace(-2, 0, 21)
"""Lambda (mm) among which the best in hindsight is sought."""
RIM = 5
"""Depth of the rim of the region of interest, voxels."""


class Variant(NamedTuple):
    """Departures from the method, to show what they cost."""

    pdf_model_error: float | None = None
    """Model error of the weights in PDF, ppm; None: that of the method."""
    clip_outliers: bool | None = None
    """Whether the residual is shrunk where it is no more than noise; None: as the method."""
    fit: dict[str, Any] | None = None
    """Of the contrast prior: parameters of `fit_prior` that differ, and `bias_field`."""


class Stages(NamedTuple):
    """What all arms share."""

    region: Region
    geometry: Geometry
    measured: MeasuredField
    images: PriorInputs
    seconds: dict

    @property
    def roi(self):
        return self.region.roi_mask

    @property
    def theory(self):
        return self.images.prior_chi


class Arm(NamedTuple):
    """One arm, inverted with the lambda that the workflow takes by default."""

    name: str
    geometry: Geometry
    field_sd: np.ndarray
    prior_chi: np.ndarray | None
    local_field: np.ndarray
    weights: np.ndarray | None
    """What the field was held to its neighbours by before it was inverted; None: it was not."""
    inversion: DipoleInversion
    residual: Residual | None = None
    """By what the residual was inverted; None: in closed form."""
    trust: float = 1.0
    fit: dict | None = None
    """Measured values of the prior's fit, ready for JSON."""
    seconds: dict | None = None

    @property
    def inverted_field(self):
        """The local field as it was inverted, ppm."""
        if self.weights is None:
            return self.local_field
        return without_outliers(self.local_field, self.geometry.mask, self.weights)


def strongest_for(t2star, spec):
    """Susceptibility (ppm) of the tube whose T2* (s) is this one."""
    return float((1 / t2star - spec.r2) / r2prime(1.0, spec.field_strength, spec.relaxivity_scale))


@contextmanager
def timed(seconds, name):
    """Add the time that the block takes to ``seconds[name]``."""
    start = time.perf_counter()
    yield
    seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start


def scan_of(phantom, **known):
    """The echoes of a phantom as a scan; ``known`` is what is told of them besides."""
    spec = phantom.spec
    return Scan(
        phantom.magnitude, phantom.phase, phantom.echo_times, spec.field_strength,
        tuple(spec.voxel_size), b0_direction(phantom.affine), phase_units='rad', **known,
    )  # fmt: skip


def first_stages(phantom, true_field=False):
    """Shape mask, echo fit and prior by theory of a phantom.

    With ``true_field`` the phantom's own field, with noise of the fitted standard deviation,
    takes the place of the fitted one.
    """
    seconds, scan = {}, scan_of(phantom, phase_sign=1)
    with timed(seconds, 'shape_mask'):
        region = region_of_interest(phantom.magnitude[..., 0], scan.voxel_size)
    roi = region.roi_mask
    with timed(seconds, 'echo_fit'):
        measured = measure_field(scan, roi, region.shape_mask, workers=WORKERS)
    if true_field:
        noise = np.random.default_rng(1).standard_normal(roi.shape, np.float32)
        field = np.where(roi, phantom.field + noise * measured.field_sd, 0)
        measured = measured._replace(total_field=field)
    with timed(seconds, 'r2prime_prior'):
        theory = theory_prior(scan, roi, measured, METHODS['none'], Companions())
    images = prior_inputs(scan, region, measured, theory, Companions())
    geometry = Geometry(roi, scan.voxel_size, scan.b0_dir, WORKERS)
    return Stages(region, geometry, measured, images, seconds)


def varied_prior(stages, inner_size, bias=True, size_factor=1.0, **departures):
    """Contrast prior and susceptibility of the shape, with departures from the method's fit."""
    images, (mask, voxel_size, b0_dir, workers) = stages.images, stages.geometry
    first = images.magnitude
    if bias:
        first = first / bias_field(first, images.r2star, mask)
    r2star = np.where(images.reliable, images.r2star, np.float32(np.nan))
    shape = forward_field(images.shape_chi, voxel_size, b0_dir, mask, workers)
    options = FitOptions(free_voxels=True, tissue_shift=True, model_error=FIT_MODEL_ERROR)
    field = images.total_field - shape
    start = outer_start(field, images.field_sd, stages.geometry)
    fit = fit_prior(
        field,
        contrast_cells([r2star, first], mask, voxel_size),
        stages.geometry,
        images.field_sd,
        images.shape_sd,
        options._replace(**departures),
        start._replace(inner_size=size_factor * inner_size),
    )
    return PriorEstimate(
        fit.prior_chi, images.shape_chi + fit.surface_chi, None, fit.inner_size, {},
        fit.tissue_shift, fit.outer_chi,
    )  # fmt: skip


def reconstruct(stages, name, *, shape=True, variant=None, inner_size=None):
    """One arm of the reconstruction, from the echo fit to the inverted residual.

    Parameters
    ----------
    stages : Stages
        What :func:`first_stages` found.
    name : str
        One of `METHODS`.
    shape : bool
        Whether the shape in air is part of the first estimate.
    variant : Variant, optional
        Departures from the method.
    inner_size : float, optional
        Expected size of the fitted susceptibility, ppm, for a variant of the fit.

    Returns
    -------
    Arm
    """
    variant, seconds = variant or Variant(), {}
    method = replace(METHODS[name], shape=shape)
    arm = method.arms[name == 'conventional']
    measured, geometry = stages.measured, stages.geometry
    field, prior, left = measured.total_field, None, Left()
    if not arm.conventional:
        with timed(seconds, 'prior_fit'):
            if variant.fit:
                prior = varied_prior(stages, inner_size, **variant.fit)
            else:
                prior = first_estimate(stages.images, geometry, method)
        left = left_by(prior, arm)
        with timed(seconds, 'flattening'):
            field = flatten(field, geometry, prior).flattened_field
    if variant.pdf_model_error is not None:
        left = left._replace(model_error=variant.pdf_model_error)
    if variant.clip_outliers is not None:
        arm = arm._replace(clip_outliers=variant.clip_outliers)
        left = left._replace(prior_chi=left.prior_chi if arm.weighted else None)
    with timed(seconds, 'background_removal and dipole_inversion'):
        local, inversion = invert_field(field, measured.field_sd, geometry, arm, left)
    weights = noise_weights(measured.field_sd, geometry.mask, left.model_error)
    return Arm(
        name,
        geometry,
        measured.field_sd,
        prior.prior_chi if prior else None,
        local.local_field,
        weights if arm.clip_outliers else None,
        inversion,
        None if left.prior_chi is None else Residual(measured.field_sd, left.prior_chi),
        left.trust,
        fit_record(prior.record) if prior and prior.record else None,
        seconds,
    )


def fit_record(record):
    """What is reported of a prior's fit to the field."""
    ((word, prior),) = record['priors'].items()
    found = {
        'parcels': prior['parcels'],
        'inner_size': record['expected_size'],
        'explained': record['explained'],
        'down_weighted': record['down_weighted_fraction'],
    }
    coefficients = record.get('coefficients', {}).get(word, ())
    if 0 < len(coefficients) <= 20:
        found['coefficients'] = coefficients
    if len(coefficients) == 1:
        found['errors'] = record['coefficient_errors']
    return found


# --- lambda ----------------------------------------------------------------------------------


def default(arm):
    """What the workflow takes: the corner in the conventional arm, else the least risk."""
    return arm.inversion.reg_weight


def corner(arm):
    """The published rule: the corner of the L-curve."""
    return arm.inversion.curve.reg_weight


def risk(arm):
    """The least expected error, the noise being read in the dipole's cone."""
    return invert(arm.inverted_field, arm.geometry, ArmOfMethod(rule='risk')).reg_weight


def convex_corner(arm):
    """Where the L-curve bends upwards most: the corner that noise makes, of the textbooks."""
    curve = arm.inversion.curve
    return float(curve.reg_weights[np.argmax(curve.curvature)])


def sharpest_corner(arm):
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
"""Rules for lambda: name -> function of an arm; each is scored in every arm."""


class Division:
    """The l2 inversion of :func:`invert` for many lambdas of one field."""

    def __init__(self, arm):
        roi, voxel_size, b0_dir, _ = arm.geometry
        self.field = field = arm.inverted_field
        self.roi, self.grid = roi, solver_grid(roi)
        self.arm, self.form = arm, arm.residual and closed_form(arm.geometry)
        self.kernel = dipole_kernel(self.grid.shape, voxel_size, b0_dir)
        self.gradient = gradient_power(self.grid.shape, voxel_size)
        self.spectrum = fft.rfftn(self.grid.embed(field * roi), workers=WORKERS) * self.kernel
        self.spectrum[0, 0, 0] = 0
        self.prior = arm.prior_chi
        # the sweep must be that of the program
        difference = self.residual(arm.inversion.reg_weight) - arm.inversion.chi
        if np.abs(difference).max() > 1e-4:
            raise AssertionError(f'{arm.name}: the sweep departs from invert')

    def residual(self, weight):
        """Susceptibility of the local field at one lambda, ppm."""
        arm = self.arm
        if arm.residual is not None:
            return residual_inversion(self.form, self.field, arm.residual, weight, arm.trust)
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


def assess(arm, score, conventional=None):
    """All that is reported of one arm, ready for JSON; compared with another without the truth."""
    division = Division(arm)
    curve = arm.inversion.curve
    rules = {}
    for name, rule in RULES.items():
        weight = rule(arm)
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
        found = compare(
            arm.local_field,
            arm.inversion.chi,
            conventional.local_field,
            arm.geometry,
            arm.field_sd,
            arm.inversion.reg_weight,
        )
        record['comparison'] = found._asdict()
    if arm.prior_chi is not None:
        record['prior'] = score(arm.prior_chi)
    if arm.fit is not None:
        record['fit'] = arm.fit
    return record
