"""The method on arrays: preconditioned and conventional susceptibility of one scan."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from precondqsm_bids.method import Arm, Method
from precondqsm_bids.numerics.arguments import checked
from precondqsm_bids.numerics.background_removal import BackgroundRemoval, remove_background
from precondqsm_bids.numerics.dipole import Geometry
from precondqsm_bids.numerics.dipole_inversion import DipoleInversion, invert
from precondqsm_bids.numerics.echoes import check_echoes
from precondqsm_bids.numerics.flattening import Flattening, flatten_field
from precondqsm_bids.numerics.given_field import GivenField, check_parts, region_asked, take_field
from precondqsm_bids.numerics.measure_field import MeasuredField, measure_field
from precondqsm_bids.numerics.prior.estimate import PriorEstimate, PriorInputs, estimate_prior
from precondqsm_bids.numerics.prior.r2prime import (
    R2Inputs,
    R2PrimePrior,
    r2prime_prior,
    transverse_rate,
)
from precondqsm_bids.numerics.quality_mask import quality_mask
from precondqsm_bids.numerics.recombination import Recombination, recombine, reference_region
from precondqsm_bids.numerics.residual_inversion import Residual
from precondqsm_bids.numerics.scan import Scan
from precondqsm_bids.numerics.shape_mask import Region, region_of_interest
from precondqsm_bids.numerics.solver import MODEL_ERROR, noise_weights
from precondqsm_bids.numerics.uncertainty import MapInputs, Uncertainty, map_uncertainty

F32 = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]


class Companions(NamedTuple):
    """Images beside the echoes, on their grid; each is read where the method asks for it."""

    mask: npt.NDArray | None = None
    """Region of interest, (X, Y, Z); found in the magnitude if None."""
    tissue: npt.NDArray | None = None
    """Class of each voxel, 1 to C, (X, Y, Z), or fractions of the classes, (X, Y, Z, C)."""
    tissue_names: tuple[str, ...] = ()
    """Names of the C classes."""
    r2_map: npt.NDArray | None = None
    """R2, 1/s, or T2, s."""
    r2_map_kind: str = 'R2map'
    """``R2map`` or ``T2map``."""
    contrasts: Mapping[str, npt.NDArray] = {}
    """Further images for the cells of the contrast, by name."""
    maps: Mapping[str, npt.NDArray] = {}
    """Susceptibility maps, ppm, by what follows ``map:`` in the terms of the prior."""
    labels: npt.NDArray | None = None
    """Segmentation with the region of the reference."""
    label_names: Mapping[int, str] | None = None
    """Names of the labels."""


class ArmResult(NamedTuple):
    """One arm, from its field to its map."""

    local: BackgroundRemoval
    """Field of the sources inside the region, and of those outside."""
    inversion: DipoleInversion
    """Susceptibility of the local field, lambda and L-curve."""
    map: Recombination
    """Susceptibility relative to the reference."""


class FieldReconstruction(NamedTuple):
    """Result of :func:`reconstruct_field`."""

    prior: PriorEstimate
    """First estimate."""
    flattened_field: F32
    """ppm, (X, Y, Z)."""
    preconditioned: ArmResult
    """Arm of the flattened field."""
    uncertainty: Uncertainty
    """Of the preconditioned map."""
    conventional: ArmResult | None = None
    """None if the method has no conventional arm."""
    conventional_risk: ArmResult | None = None
    """The conventional map of least expected error; None if the method does not ask for it."""
    consensus: ArmResult | None = None
    """Arm by the choice of the QSM consensus; None if the method does not ask for it."""

    @property
    def chi(self) -> F32:
        """Preconditioned susceptibility, ppm."""
        return self.preconditioned.map.chi


class Reconstruction(NamedTuple):
    """Result of :func:`reconstruct`, stage by stage."""

    region: Region
    """Object and region of interest."""
    measured: MeasuredField
    """Field and decay."""
    theory: R2PrimePrior | None
    """Susceptibility from R2'; None without R2*."""
    maps: FieldReconstruction
    """The prior, and both arms."""

    @property
    def chi(self) -> F32:
        """Preconditioned susceptibility, ppm."""
        return self.maps.chi


@checked
def reconstruct(
    scan: Scan | GivenField,
    method: Method | None = None,
    companions: Companions = Companions(),  # noqa: B008 (never changed)
    workers: int = 1,
) -> Reconstruction:
    """Preconditioned susceptibility of a scan, and the conventional one beside it.

    A first estimate of the susceptibility is made, its field subtracted from the measured one,
    the rest inverted as usual, and the estimate added back:

        f = measured field,  f' = f - D chi_prior,  chi = inversion(PDF(f')) + chi_prior

    Parameters
    ----------
    scan : Scan or GivenField
        Echoes as stored, or the field that was found from them elsewhere; its field strength,
        direction of B0 and sign count, and not those of the method.
    method : Method, optional
        Everything that changes the maps.
    companions : Companions
        Images beside the echoes.
    workers : int
        Threads of the Fourier transforms.

    Raises
    ------
    ValueError
        The scan or a companion is not what it should be, or one that the method needs is missing.

    References
    ----------
    The stages: :func:`measure_field`, :func:`estimate_prior`, :func:`flatten_field`,
    :func:`remove_background`, :func:`invert`, :func:`recombine`, each in its module.

    Examples
    --------
    A ball of water, its upper half 0.1 ppm above the lower one, in air:

    >>> from precondqsm_bids.numerics import forward_field
    >>> x = np.indices((20, 20, 20)) - 9.5
    >>> ball = (x**2).sum(axis=0) < 64
    >>> chi = np.where(x[0] > 0, 0.1, 0) * ball
    >>> field = forward_field(chi - 9.41 * ball, (2, 2, 2), (0, 0, 1))
    >>> te = np.array([2e-3, 4e-3, 6e-3])
    >>> signal = ball[..., None] * np.exp(-te * 20 + 2j * np.pi * 63.864 * field[..., None] * te)
    >>> noise = 0.01 * np.random.default_rng(0).normal(size=(2, *signal.shape))
    >>> signal = signal + noise[0] + 1j * noise[1]
    >>> scan = Scan(np.abs(signal), np.angle(signal), te, 1.5, (2, 2, 2), phase_units='rad')
    >>> found = reconstruct(scan, Method(prior='r2prime', conventional=False))
    >>> inside = found.region.roi_mask
    >>> print(found.chi[inside & (x[0] > 0)].mean() > found.chi[inside & (x[0] < 0)].mean())
    True
    """
    method = method or Method()
    found = measure(scan, method, companions, workers)
    maps = reconstruct_field(
        found.images, found.geometry, method, found.reference, companions.labels
    )
    return Reconstruction(found.region, found.measured, found.theory, maps)


class Measured(NamedTuple):
    """What the arms start from; result of :func:`measure`."""

    region: Region
    """Object and region of interest."""
    measured: MeasuredField
    """Field and decay."""
    theory: R2PrimePrior | None
    """Susceptibility from R2'; None without R2*."""
    images: PriorInputs
    """What the prior may be made of."""
    geometry: Geometry
    """Region of interest, voxel size, direction of B0, threads."""
    reference: Bools | None
    """Where the maps have mean 0."""


def measure(
    scan: Scan | GivenField, method: Method, companions: Companions, workers: int
) -> Measured:
    """Region and field of a scan, and all that the prior is made of."""
    field = scan.total_field if isinstance(scan, GivenField) else None
    if isinstance(scan, GivenField):
        check_parts(scan)
    else:
        check_echoes(scan.magnitude, scan.phase, scan.echo_times, least=1)
    known = scan.r2star is not None if isinstance(scan, GivenField) else not scan.one_echo
    if method.r2star_terms and not known:
        raise ValueError(
            f'prior {" ".join(method.r2star_terms)} is made of R2*, which takes two echoes, or '
            'r2star beside a given field'
        )
    companions = companions._replace(contrasts=_asked(companions.contrasts, method.contrasts))
    mask = region_asked(field, companions.mask, method.inside)
    region = region_of_interest(
        _first(scan), scan.voxel_size, mask, method.mask_erosion, shape=method.shape
    )
    masks = region.roi_mask, region.shape_mask
    if isinstance(scan, GivenField):
        measured = take_field(scan, *masks, workers)
    else:
        measured = measure_field(scan, *masks, workers=workers)
    region = region._replace(roi_mask=measured.roi_mask)
    geometry = Geometry(region.roi_mask, scan.voxel_size, scan.b0_dir, workers)
    theory = theory_prior(scan, region.roi_mask, measured, method, companions)
    images = prior_inputs(scan, region, measured, theory, companions)
    reference = reference_region(
        method.reference, region.roi_mask, companions.labels, companions.label_names
    )
    return Measured(region, measured, theory, images, geometry, reference)


@checked
def reconstruct_field(
    images: PriorInputs,
    geometry: Geometry,
    method: Method,
    reference: Bools | None = None,
    labels: npt.NDArray | None = None,
) -> FieldReconstruction:
    """Susceptibility of a measured field, with and without a prior: the method after the fit.

    Parameters
    ----------
    images : PriorInputs
        Field, its standard deviation, the object's shape, and what the prior may be made of.
    geometry : Geometry
        Region of interest, voxel size (mm), direction of B0, threads.
    method : Method
        Everything that changes the maps.
    reference : (X, Y, Z) ndarray of bool, optional
        Where the maps have mean 0.
    labels : (X, Y, Z) ndarray of int, optional
        Regions whose means have an error.

    Examples
    --------
    A prior of twice the susceptibility, which the field halves:

    >>> from precondqsm_bids.numerics import forward_field
    >>> mask = np.ones((24, 24, 24), bool); chi = np.zeros(mask.shape)
    >>> chi[8:16, 8:16, 8:16] = 0.1
    >>> field = forward_field(chi, (1, 1, 1), (0, 0, 1)).astype(np.float32)
    >>> images = PriorInputs(field, np.full(mask.shape, 1e-3), maps={'twice': 2 * chi})
    >>> geometry = Geometry(mask, (1, 1, 1), (0, 0, 1))
    >>> found = reconstruct_field(images, geometry, Method(prior='map:twice'), mask)
    >>> print((found.chi[chi > 0].mean() - found.chi[chi == 0].mean()).round(2))
    0.1
    """
    prior = first_estimate(images, geometry, method)
    flattened_field = flatten(images.total_field, geometry, prior).flattened_field
    found: dict[str, ArmResult] = {}
    for arm in method.arms:
        field = images.total_field if arm.conventional else flattened_field
        shared = None if arm.local_of is None else found[arm.local_of].local
        local, inversion = invert_field(
            field, images.field_sd, geometry, arm, left_by(prior, arm), shared
        )
        prior_chi = None if arm.conventional else prior.prior_chi
        of_arm = local.known if arm.certain_field else reference
        chi = recombine(inversion.chi, prior_chi, local.known, of_arm)
        found[arm.prefix] = ArmResult(local, inversion, chi)
    results = {arm.name: found[arm.prefix] for arm in method.arms}
    (local, inversion, _), arm = results['preconditioned'], method.preconditioned
    made_of = MapInputs(
        local.local_field,
        images.field_sd,
        prior.prior_chi,
        inversion.chi,
        inversion.reg_weight if np.isfinite(inversion.reg_weight) else None,
        arm.clip_outliers,
        left_by(prior, arm).model_error,
        prior.prior_sd,
    )
    known = geometry._replace(mask=local.known)
    uncertainty = map_uncertainty(made_of, known, labels, reference)
    return FieldReconstruction(prior, flattened_field, uncertainty=uncertainty, **results)


def flatten(total_field: npt.NDArray, geometry: Geometry, prior: PriorEstimate) -> Flattening:
    """A field (ppm) without that of a first estimate, of the shape and of the tissue shift."""
    return flatten_field(
        total_field, prior.prior_chi, *geometry[:3], prior.shape_chi, geometry.workers,
        prior.tissue_shift,
    )  # fmt: skip


class Left(NamedTuple):
    """What a first estimate leaves to the background removal and the inversion of an arm."""

    model_error: float = MODEL_ERROR
    """What the weights allow for besides the field's standard deviation, ppm."""
    start: F32 | None = None
    """Sources outside that the background removal begins with (:func:`pdf`), ppm."""
    trust: float = 1.0
    """How far the prior counts (:func:`invert`)."""
    prior_chi: F32 | None = None
    """Prior by which the residual is inverted (:func:`residual_inversion`), ppm."""


def left_by(prior: PriorEstimate, arm: Arm) -> Left:
    """What a first estimate leaves to an arm."""
    size = prior.expected_size if arm.clip_outliers else None
    return Left(
        MODEL_ERROR if size is None else size,
        prior.outer_chi if arm.continued else None,
        prior.trust if arm.clip_outliers else 1.0,
        prior.prior_chi if arm.weighted else None,
    )


def invert_field(
    field: npt.NDArray,
    field_sd: npt.NDArray,
    geometry: Geometry,
    arm: Arm,
    left: Left = Left(),  # noqa: B008 (never changed)
    local: BackgroundRemoval | None = None,
) -> tuple[BackgroundRemoval, DipoleInversion]:
    """Background removal and dipole inversion of a field (ppm), as an arm of the method has it.

    ``left`` is what the first estimate leaves; with ``local`` the background is that which was
    removed already.
    """
    if arm.certain_field:
        geometry = geometry._replace(mask=quality_mask(field_sd, geometry.mask).mask)
    if local is None:
        weights = noise_weights(field_sd, geometry.mask, left.model_error)
        local = remove_background(field, geometry, arm, weights, left.start)
    known = geometry._replace(mask=local.known)
    weights = noise_weights(field_sd, local.known, left.model_error)
    residual = None if left.prior_chi is None else Residual(field_sd, left.prior_chi)
    return local, invert(local.local_field, known, arm, weights, left.trust, residual)


def theory_prior(
    scan: Scan | GivenField,
    mask: Bools,
    measured: MeasuredField,
    method: Method,
    companions: Companions,
) -> R2PrimePrior | None:
    """Susceptibility from R2' by static dephasing; None without R2*."""
    if measured.r2star is None:
        return None
    given = R2Inputs(
        companions.r2_map, companions.r2_map_kind, companions.tissue, companions.tissue_names
    )
    r2, _ = transverse_rate(method.r2, mask, scan.field_strength, given)
    return r2prime_prior(measured.r2star, mask, scan.field_strength, r2, measured.reliable)


def prior_inputs(
    scan: Scan | GivenField,
    region: Region,
    measured: MeasuredField,
    theory: R2PrimePrior | None,
    companions: Companions,
) -> PriorInputs:
    """What the prior may be made of."""
    return PriorInputs(
        total_field=measured.total_field,
        field_sd=measured.field_sd,
        shape_chi=region.shape_chi,
        shape_sd=region.shape_sd,
        inner=region.inner,
        r2star=measured.r2star,
        r2star_sd=measured.r2star_sd,
        reliable=measured.reliable,
        magnitude=_first(scan),
        combined_magnitude=None if measured.r2star is None else measured.magnitude,
        magnitude_sd=measured.magnitude_sd,
        contrasts=companions.contrasts,
        prior_chi=theory.prior_chi if theory else None,
        tissue=companions.tissue,
        tissue_names=companions.tissue_names,
        maps=companions.maps,
        field_strength=scan.field_strength,
    )


def _asked(contrasts: Mapping[str, npt.NDArray], names: Sequence[str]) -> dict[str, npt.NDArray]:
    """The contrasts that the method names."""
    if missing := [name for name in names if name not in contrasts]:
        raise ValueError(f'the method has the contrast {missing[0]}, which is not given: give it')
    return {name: contrasts[name] for name in names}


def _first(scan: Scan | GivenField) -> npt.NDArray:
    """Magnitude of the first echo, or the one there is."""
    return scan.magnitude if isinstance(scan, GivenField) else scan.magnitude[..., 0]


def first_estimate(images: PriorInputs, geometry: Geometry, method: Method) -> PriorEstimate:
    """The prior by the terms of the method, and the shape with it if the method has it."""
    interior = method.describes_interior
    if not method.shape:
        images = images._replace(shape_chi=None)
    # Only a prior that can describe what is inside leaves to the surface what is its own.
    if not (method.shape and interior):
        images = images._replace(shape_sd=None)
    if method.by_theory and images.prior_chi is not None:
        return PriorEstimate(images.prior_chi, images.shape_chi, None, None, {})
    return estimate_prior(images, geometry, method.prior, method.fit, interior)
