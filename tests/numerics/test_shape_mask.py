"""The object of a sphere of known size, with and without noise, shading and cavities."""

import warnings

import numpy as np
import pytest
from scipy import ndimage

from precondqsm_bids.numerics.dipole import forward_field
from precondqsm_bids.numerics.shape_mask import filled_fraction, shape_mask, surface_fraction

STEP = -9.05 - 0.36  # water against air, Schenck 1996


def sphere_share(n, radius, factor=8, centre=(0.0, 0.0, 0.0)):
    """Share of each voxel of an ``n`` cube in a sphere at (about) its centre, by supersampling."""
    fine = (np.arange(n * factor) + 0.5) / factor - n / 2
    x, y, z = (fine - c for c in centre)
    out = np.zeros((n, n, n))
    for k, height in enumerate(z):
        plane = x[:, None] ** 2 + y[None] ** 2 + height**2 <= radius**2
        out[:, :, k // factor] += plane.reshape(n, factor, n, factor).mean(axis=(1, 3)) / factor
    return out


SHARE = sphere_share(40, 14.3, centre=(0.3, -0.2, 0.4))


def noisy(magnitude, snr, seed=0):
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, magnitude.max() / snr, (2, *magnitude.shape))
    return np.hypot(magnitude + noise[0], noise[1])


def test_sphere_without_noise():
    result = shape_mask(700 * SHARE)
    # a quarter of the smooth level, which the border's voxels lower
    assert result.threshold == pytest.approx(175, rel=0.05)
    # of the border the voxels that are half filled stay
    np.testing.assert_array_equal(result.shape_mask[SHARE > 0.51], True)
    np.testing.assert_array_equal(result.shape_mask[SHARE < 0.49], False)
    # the border's share is measured: volume to 0.1 %, each voxel to 2 %
    assert result.shape_chi.sum() == pytest.approx(STEP * 4 / 3 * np.pi * 14.3**3, rel=1e-3)
    np.testing.assert_allclose(result.shape_chi, STEP * SHARE, atol=0.02 * -STEP)
    # nothing that is partly air belongs to the region of interest
    assert SHARE[result.roi_mask].min() >= 0.89
    assert np.count_nonzero(result.roi_mask) > 0.9 * np.count_nonzero(SHARE > 0.9)
    assert not np.any(result.roi_mask & ~result.shape_mask)


@pytest.mark.parametrize('snr', [10, 40])
@pytest.mark.parametrize('shading', [0.0, 0.3])
def test_sphere_with_noise_and_shading(snr, shading):
    ramp = 1 + shading * np.linspace(-1, 1, 40)[:, None, None]
    result = shape_mask(noisy(SHARE * ramp, snr))
    wrong = np.count_nonzero(result.shape_mask ^ (SHARE > 0.5))
    assert wrong < 0.12 * np.count_nonzero((SHARE > 0) & (SHARE < 1))
    assert result.shape_chi.sum() == pytest.approx(STEP * 4 / 3 * np.pi * 14.3**3, rel=0.02)


def test_field_of_the_measured_shape():
    # Inside a sphere the field is zero; a surface known to a fraction of a voxel keeps it so.
    shape = shape_mask(noisy(SHARE, 80))
    x, y, z = np.indices(SHARE.shape) - 19.5
    deep = (x - 0.3) ** 2 + (y + 0.2) ** 2 + (z - 0.4) ** 2 < 10.3**2
    field = forward_field(shape.shape_chi, (1, 1, 1), (0, 0, 1))
    binary = forward_field(STEP * shape.shape_mask, (1, 1, 1), (0, 0, 1))
    rms = np.sqrt(np.mean(field[deep].astype(float) ** 2))
    assert rms < 1e-3 * -STEP
    assert rms < 0.5 * np.sqrt(np.mean(binary[deep].astype(float) ** 2))


@pytest.mark.parametrize('signal', [0.2, 0.4])
def test_weak_sources_belong_to_the_object_and_islands_do_not(signal):
    magnitude = SHARE.copy()
    magnitude[17:23, 17:23, 17:23] = signal  # a strong source: little signal, but some
    magnitude[1:4, 1:4, 1:4] = 1  # an island
    result = shape_mask(noisy(magnitude, 60))
    assert result.shape_mask[17:23, 17:23, 17:23].all()
    assert result.roi_mask[18:22, 18:22, 18:22].all()
    assert not result.shape_mask[:5, :5, :5].any()
    inside = result.shape_chi[18:22, 18:22, 18:22]
    np.testing.assert_allclose(inside, STEP, rtol=1e-3)  # as much object as anywhere else


def test_large_source_of_little_signal_belongs_to_the_object():
    # A sphere of 7 voxels radius at 2.3 mm is 17 mL: a sixth of the signal is some, none is air.
    voxel_size = (2.3, 2.3, 2.3)
    inner = sphere_share(40, 7.0, centre=(0.3, -0.2, 0.4))
    weak = shape_mask(noisy(SHARE - 0.83 * inner, 80), voxel_size=voxel_size)
    assert np.all(weak.roi_mask[inner > 0])
    empty = shape_mask(noisy(SHARE - inner, 80), voxel_size=voxel_size)
    assert np.mean(empty.shape_mask[inner == 1]) < 0.01


def test_air_bubble_stays_open():
    bubble = sphere_share(40, 4.2, centre=(3.4, 0.3, -2.1))
    result = shape_mask(noisy(SHARE - bubble, 60))
    assert not result.shape_mask[bubble > 0.9].any()
    assert not result.roi_mask[bubble > 0.25].any()
    assert result.shape_mask[(bubble < 0.1) & (SHARE > 0.9)].all()
    # its volume is known to a few per cent, from the shares on its surface
    near = sphere_share(40, 7.0, centre=(3.4, 0.3, -2.1)) > 0
    air = np.sum(1 - result.shape_chi[near] / STEP)
    assert air == pytest.approx(4 / 3 * np.pi * 4.2**3, rel=0.05)


def test_single_voxels_without_signal_are_no_bubbles():
    magnitude = SHARE.copy()
    magnitude[20:22, 20:22, 20:22] = 0
    assert shape_mask(magnitude).shape_mask[20:22, 20:22, 20:22].all()


def layered_head(n=64):
    """Scalp, skull without signal, fluid of two fifths of the brain's signal, and a sinus.

    The skull is 7 % of the radius thick, as in a head. The sinus touches it, as sinuses do, and a
    channel leads from the skull through the scalp.
    """
    x, y, z = np.indices((n, n, n)) - (n - 1) / 2
    depth = 27 - np.sqrt(x**2 + y**2 + z**2)  # voxels
    magnitude = np.where(depth > 0, 0.8, 0.0)
    skull = (depth > 4) & (depth < 6)
    magnitude[skull] = 0
    magnitude[(depth >= 6) & (depth < 8)] = 0.32
    sinus = (x - 16) ** 2 + y**2 + z**2 < 6**2
    magnitude[sinus] = 0
    magnitude[(np.abs(x) < 1) & (np.abs(y) < 1) & (z > 0) & (depth < 5)] = 0
    return magnitude, depth, skull, sinus


def test_skull_is_object_and_sinus_is_air():
    magnitude, depth, skull, sinus = layered_head()
    result = shape_mask(noisy(magnitude, 60), voxel_size=(2, 2, 2))
    brain = (depth >= 6) & ~sinus
    assert np.mean(result.roi_mask[brain & ~near(sinus, 3)]) > 0.999
    assert np.mean(result.shape_mask[skull & ~near(sinus, 3)]) > 0.98
    assert not np.any(result.roi_mask & skull)
    assert np.mean(result.shape_mask[sinus]) < 0.01
    assert not np.any(result.shape_mask[depth < -0.5])


def test_thicker_bone_counts_as_air():
    magnitude, depth, _, _ = layered_head()
    skull = (depth > 4) & (depth < 9)
    magnitude[skull] = 0
    assert np.mean(shape_mask(noisy(magnitude, 60)).shape_mask[skull]) < 0.2


@pytest.mark.parametrize('scale', [0.02, 0.5, 10])
def test_scale_of_the_header_does_not_matter(scale):
    magnitude = noisy(layered_head()[0], 60)
    plain, scaled = (shape_mask(magnitude, voxel_size=(k, k, 1.5 * k)) for k in (1, scale))
    np.testing.assert_array_equal(scaled.shape_mask, plain.shape_mask)
    np.testing.assert_array_equal(scaled.roi_mask, plain.roi_mask)
    np.testing.assert_allclose(scaled.shape_chi, plain.shape_chi, atol=1e-5)


def test_bone_is_out_of_the_region_whatever_its_thickness():
    # A closed shell, so that nothing of it is open to the outside, with a sixth of the signal.
    for inner in (21, 18):
        magnitude, depth, _, sinus = layered_head()
        magnitude[sinus | (depth >= 4)] = 0.8
        magnitude[(depth > 4) & (depth < 27 - inner)] = 0.12
        result = shape_mask(noisy(magnitude, 60))
        assert not np.any(result.roi_mask[(depth > 4.5) & (depth < 26.5 - inner)])
        assert np.mean(result.roi_mask[depth > 28 - inner]) > 0.999


def near(mask, voxels):
    return ndimage.binary_dilation(mask, iterations=voxels)


def test_share_of_the_surface():
    magnitude, depth, _, _ = layered_head()
    shape = shape_mask(noisy(magnitude, 60), voxel_size=(2, 2, 2))
    assert surface_fraction(shape.shape_mask, shape.shape_mask) == 1
    assert surface_fraction((depth >= 6) & shape.roi_mask, shape.shape_mask) < 0.3
    # a slab of the object still has the object's surface
    slab = shape.shape_mask[:, :, 24:40]
    assert surface_fraction(slab, slab) == 1


def test_bright_inclusion_does_not_set_the_threshold():
    magnitude = SHARE.copy()
    magnitude[17:23, 17:23, 17:23] = 6
    result = shape_mask(magnitude)
    assert np.count_nonzero(result.shape_mask ^ (SHARE > 0.5)) < 0.01 * np.sum(SHARE)


def test_unit_of_the_magnitude_does_not_matter():
    image = noisy(SHARE, 30)
    a, b = shape_mask(image), shape_mask(4321 * image)
    assert np.array_equal(a.shape_mask, b.shape_mask)
    assert np.array_equal(a.roi_mask, b.roi_mask)
    np.testing.assert_allclose(a.shape_chi, b.shape_chi, atol=1e-4)


@pytest.mark.parametrize('axes', [(2, 0, 1), (1, 0, 2)])
def test_storage_does_not_matter(axes):
    image = noisy(SHARE, 30)
    plain = shape_mask(image)
    moved = shape_mask(np.flip(image.transpose(axes), 0))
    back = np.argsort(axes)
    for name in ('shape_mask', 'roi_mask', 'shape_chi'):
        again = np.flip(getattr(moved, name), 0).transpose(back)
        np.testing.assert_allclose(again, getattr(plain, name), atol=1e-3, err_msg=name)


def test_object_too_thin_to_know_its_own_signal():
    magnitude = np.zeros((9, 9, 9))
    magnitude[3:6, 3:6, 3:6] = 1
    np.testing.assert_array_equal(filled_fraction(magnitude, magnitude > 0), magnitude)


@pytest.mark.parametrize('slices', [3, 4])
def test_few_slices_are_no_colours(slices):
    """Nothing is said of channels, and the threshold is that of the same voxels as a cube."""
    rng = np.random.default_rng(0)
    x, y = np.indices((24, 24)) - 11.5
    disc = np.repeat((np.hypot(x, y) < 8)[..., None], slices, axis=2)
    magnitude = 100 * disc + rng.rayleigh(1, disc.shape)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        found = shape_mask(magnitude)
        turned = shape_mask(np.moveaxis(magnitude, -1, 0))
    assert found.threshold == pytest.approx(turned.threshold)
    np.testing.assert_array_equal(found.shape_mask, np.moveaxis(turned.shape_mask, 0, -1))
    assert np.mean(found.shape_mask == disc) > 0.99


def test_errors():
    with pytest.raises(ValueError, match='3 everywhere'):
        shape_mask(np.full((4, 4, 4), 3.0))
    bad = SHARE.copy()
    bad[0, 0, 0] = np.nan
    with pytest.raises(ValueError, match='1 voxels that are not finite'):
        shape_mask(bad)
    with pytest.raises(ValueError, match='no object found'):
        shape_mask(SHARE - 2)  # no value is positive
