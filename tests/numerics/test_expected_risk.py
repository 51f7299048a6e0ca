"""Lambda of least expected error against simulations that do not use the solver's operators."""

from types import SimpleNamespace

import numpy as np
import pytest
from kernels import full_kernel
from scipy import fft

from precondqsm_bids.numerics import Geometry, closed_form
from precondqsm_bids.numerics.dipole_inversion import l2_inversion
from precondqsm_bids.numerics.expected_risk import Classes, least_risk
from precondqsm_bids.phantom.fields import sphere_field

TILTED = np.array([0.3, -0.4, 0.87]) / np.linalg.norm([0.3, -0.4, 0.87])
LAMBDAS = np.logspace(-2.5, 1, 22)


def errors(scene, reg_weights):
    """Norm of the map's error within the region, relative to the mean, per lambda."""
    truth = scene.chi[scene.mask]
    out = []
    for weight in reg_weights:
        chi = l2_inversion(scene.field, scene.mask, scene.voxel_size, TILTED, weight).chi
        found = chi[scene.mask]
        out.append(np.linalg.norm(found - found.mean() - truth + truth.mean()))
    return np.array(out)


def chosen(field, mask, voxel_size):
    return l2_inversion(field, mask, voxel_size, TILTED, rule='risk').reg_weight


def ratio_to_best(scene):
    """Error at the lambda of the rule over the least error in hindsight."""
    weight = chosen(scene.field, scene.mask, scene.voxel_size)
    return (errors(scene, [weight]) / errors(scene, LAMBDAS).min()).item()


def region(kind, shape, voxel_size):
    axes = [(np.arange(n) - (n - 1) / 2) * d for n, d in zip(shape, voxel_size, strict=True)]
    points = np.stack(np.meshgrid(*axes, indexing='ij'), axis=-1)
    if kind == 'slab':
        return np.abs(points[..., 2]) < 5
    return np.linalg.norm(points, axis=-1) < 14


def random_sources(kind, voxel_size, noise, decay, seed=0):
    """Sources of the spectrum ``|k|^-decay`` in a region, their field by the kernel of the tests.

    The sources stand in the region alone, on a grid of twice its size.
    """
    rng = np.random.default_rng(seed)
    shape = tuple(round(36 / d) for d in voxel_size)
    double = tuple(2 * n for n in shape)
    mask = np.zeros(double, bool)
    inner = tuple(slice(0, n) for n in shape)
    mask[inner] = region(kind, shape, voxel_size)
    k = np.meshgrid(
        *(fft.fftfreq(n, d) for n, d in zip(double, voxel_size, strict=True)), indexing='ij'
    )
    radius = np.maximum(np.sqrt(sum(axis**2 for axis in k)), 1 / 36)
    chi = fft.ifftn(fft.fftn(rng.normal(size=double)) * radius**-decay).real
    chi = np.where(mask, chi - chi[mask].mean(), 0)
    chi /= chi[mask].std()
    field = fft.ifftn(fft.fftn(chi) * full_kernel(double, voxel_size, TILTED)).real
    field += noise * rng.normal(size=double)
    cut = (np.where(mask, field, 0)[inner], chi[inner], mask[inner])
    return SimpleNamespace(
        **dict(zip(('field', 'chi', 'mask'), cut, strict=True)), voxel_size=voxel_size
    )


@pytest.mark.parametrize('noise', [0.01, 0.1, 0.5])
@pytest.mark.parametrize('decay', [0, 1.5])
@pytest.mark.parametrize(
    'kind, voxel_size', [('ball', (1, 1, 1)), ('slab', (1, 1, 1)), ('ball', (1, 1, 3))]
)
def test_within_five_per_cent_of_the_best_in_hindsight(kind, voxel_size, decay, noise):
    assert ratio_to_best(random_sources(kind, voxel_size, noise, decay)) < 1.05


def balls(shape, voxel_size, noise, seed=0):
    """Field and susceptibility of balls, in closed form, in a spherical region."""
    axes = [(np.arange(n) - (n - 1) / 2) * d for n, d in zip(shape, voxel_size, strict=True)]
    points = np.stack(np.meshgrid(*axes, indexing='ij'), axis=-1)
    rng = np.random.default_rng(seed)
    field, chi = np.zeros(shape), np.zeros(shape)
    for centre in rng.uniform(-11, 11, (12, 3)):
        radius, value = rng.uniform(2, 4), rng.normal()
        field += value * sphere_field(points - centre, radius, TILTED)
        chi += value * (np.linalg.norm(points - centre, axis=-1) < radius)
    mask = np.linalg.norm(points, axis=-1) < 19
    field = (field + noise * rng.normal(size=shape)) * mask
    return SimpleNamespace(field=field, chi=chi * mask, mask=mask, voxel_size=voxel_size)


@pytest.mark.parametrize('noise', [0.003, 0.03, 0.3])
@pytest.mark.parametrize('voxel_size', [(1, 1, 1), (1, 1, 2)])
def test_close_to_the_best_in_hindsight_for_balls_in_closed_form(noise, voxel_size):
    assert ratio_to_best(balls((42, 42, 42 // voxel_size[2]), voxel_size, noise)) < 1.1


def test_grows_with_the_noise_and_not_with_the_field():
    weights = []
    for noise in (0.003, 0.03, 0.3):
        scene = balls((42, 42, 42), (1, 1, 1), noise)
        weights.append(chosen(scene.field, scene.mask, (1, 1, 1)))
        assert chosen(7 * scene.field, scene.mask, (1, 1, 1)) == pytest.approx(
            weights[-1], rel=1e-3
        )
    assert weights[0] < weights[1] < weights[2]


@pytest.mark.parametrize('factor', [0.5, 3.0])
def test_is_a_length(factor):
    scene = random_sources('ball', (1, 1, 1), 0.1, 1.5)
    plain = chosen(scene.field, scene.mask, (1, 1, 1))
    scaled = chosen(scene.field, scene.mask, (factor, factor, factor))
    assert scaled == pytest.approx(factor * plain, rel=1e-3)


@pytest.mark.parametrize('axes, flips', [((0, 1, 2), (0, 2)), ((2, 0, 1), ()), ((1, 0, 2), (1,))])
def test_storage_does_not_matter(axes, flips):
    voxel_size = np.array([1, 1, 3])
    scene = random_sources('ball', voxel_size, 0.1, 1.5)
    b0_dir = TILTED[list(axes)].copy()
    b0_dir[list(flips)] *= -1
    field, mask = (np.flip(v.transpose(axes), flips) for v in (scene.field, scene.mask))
    moved = l2_inversion(field, mask, voxel_size[list(axes)], b0_dir, rule='risk')
    assert moved.reg_weight == pytest.approx(chosen(scene.field, scene.mask, voxel_size), rel=1e-3)


def test_sources_and_noise_of_known_spectra_are_told_apart():
    # S and N flat, their power drawn: each class must find them within its sampling error
    s, n = 2.0, 0.1
    form = closed_form(Geometry(np.ones((40, 40, 40), bool), (1, 1, 1), TILTED))
    classes = Classes(form)
    drawn = np.random.default_rng(0).exponential(size=form.kernel.shape)
    power = (s * form.kernel**2 + n) * drawn * form.multiplicity
    sources, noise = classes.separated(classes.mean(power))
    count = classes.count
    weight = count[:, 3:]
    assert np.sum(sources[:, 3:] * weight) / weight.sum() == pytest.approx(s, rel=0.05)
    assert np.sum(noise * count[:, :1]) / count[:, 0].sum() == pytest.approx(n, rel=0.1)


@pytest.mark.parametrize('size', [1, 2, 5])
def test_tiny_regions_have_a_lambda(size):
    mask = np.zeros((9, 9, 9), bool)
    mask[3 : 3 + size, 3 : 3 + size, 3 : 3 + size] = True
    field = np.random.default_rng(0).normal(size=mask.shape)
    result = l2_inversion(field, mask, (1, 1, 1), (0, 0, 1), rule='risk')
    assert 0 < result.reg_weight < 10
    assert np.isfinite(result.chi).all()


@pytest.mark.parametrize('part', ['cone', 'rest'])
def test_a_field_that_has_no_power_in_the_cone_or_none_outside_has_a_lambda(part):
    form = closed_form(Geometry(np.ones((16, 16, 16), bool), (1, 1, 1), (0, 0, 1)))
    white = np.random.default_rng(0).normal(size=form.grid.shape).astype(np.float32)
    inside = np.abs(form.kernel) < 0.05
    spectrum = fft.rfftn(white) * (inside if part == 'rest' else ~inside)
    assert 0 < least_risk(form, spectrum) < 10
    assert 0 < least_risk(form, 1e-12 * spectrum) < 10
    assert 0 < least_risk(form, 0 * spectrum) < 10
