"""The simulated head against its own specification and against anatomy."""

import subprocess
import sys
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from scipy import ndimage

from precondqsm_bids.numerics.constants import GAMMA_BAR
from precondqsm_bids.phantom import anatomy, atlas, head_parts
from precondqsm_bids.phantom.atlas import Map, Planes
from precondqsm_bids.phantom.head import _Head, r2prime, simulate_head
from precondqsm_bids.phantom.head_spec import FIELD_CENTRE, HeadSpec, hard_head
from precondqsm_bids.phantom.shapes import Capsule, Ellipsoid
from precondqsm_bids.phantom.tissues import INDEX, NUCLEI, TISSUES, spoiled_signal

SMALL = HeadSpec(voxel_size=(4.0, 4.0, 4.0))


@cache
def simulated(**changes):
    return simulate_head(replace(SMALL, **changes))


@cache
def hard(**changes):
    return simulate_head(hard_head(voxel_size=SMALL.voxel_size, **changes))


@cache
def tissue_on_2mm():
    """Tissues and outline of the brain at points of 2 mm, (X, Y, Z), and their coordinates."""
    x, y, z = np.arange(-92, 93, 2.0), np.arange(-128, 105, 2.0), np.arange(-92, 105, 2.0)
    whole = anatomy.Anatomy(x, y, hard=True)
    planes = [whole.plane(height) for height in z]
    tissue, brain = (np.stack(maps, axis=-1) for maps in zip(*planes, strict=True))
    return tissue, brain, (x, y, z)


def centre_of(tissue, name, axes, side=1):
    """Mean coordinates of a tissue on one side of the head, mm."""
    x, y, z = axes
    i, j, k = np.nonzero((tissue == INDEX[name]) & (side * x > 0)[:, None, None])
    return np.array([x[i].mean(), y[j].mean(), z[k].mean()])


# -- anatomy -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'name, place, volume',
    [
        # centres from atlases (AAL, its third version, and the atlas of the cerebellum), mm;
        # volumes of both sides, ml
        ('caudate', (13, 11, 9), (5, 9)),
        ('putamen', (26, 4, 2), (6, 11)),
        ('pallidum', (19, -3, 0), (1.5, 4)),
        ('thalamus', (12, -18, 8), (8, 15)),
        ('red-nucleus', (5, -20, -9), (0.2, 0.8)),
        ('substantia-nigra', (10, -18, -12), (0.4, 1.2)),
        ('dentate', (16, -57, -35), (1, 4)),
    ],
)
def test_nuclei(name, place, volume):
    tissue, _, axes = tissue_on_2mm()
    for side in (-1, 1):
        found = centre_of(tissue, name, axes, side)
        np.testing.assert_allclose(found, np.array(place) * [side, 1, 1], atol=5)
    assert volume[0] <= 8e-3 * np.sum(tissue == INDEX[name]) <= volume[1]


def test_head_in_the_large():
    tissue, brain, (x, y, z) = tissue_on_2mm()
    assert 1500 < 8e-3 * brain.sum() < 2000
    for name, least, most in (('GM', 700, 1100), ('WM', 500, 700), ('air-cavity', 30, 120)):
        assert least < 8e-3 * np.sum(tissue == INDEX[name]) < most, name
    # brain, then bone, then scalp on the way up and out; air last
    column = np.argmin(abs(x - 24)), np.argmin(abs(y + 20))
    top = z[brain[column]].max()
    order = [tissue[column][np.argmin(abs(z - top - d))] for d in (6, 12, 20)]
    assert order == [INDEX['bone'], INDEX['soft-tissue'], INDEX['air']]
    # the neck leaves the field of view, the head does not touch its other faces but for the nose
    assert (tissue[:, :, 0] > 0).any()
    assert not (tissue[:, :, -1] > 0).any()
    assert not (tissue[[0, -1]] > 0).any()
    assert not (tissue[:, 0] > 0).any()


@pytest.mark.parametrize('size', [1.0, 1.5, 4.0])
def test_air_surrounds_all_that_is_simulated(size):
    head = _Head(HeadSpec(voxel_size=(size,) * 3))
    # every fourth plane will do, and the two faces
    for z in (head.z[0], *head.z[4:-4:4], head.z[-1]):
        tissue, _ = head._anatomy.plane(z)
        rim = np.concatenate([tissue[[0, -1]].ravel(), tissue[:, [0, -1]].ravel()])
        assert not rim.any()
        if z in (head.z[0], head.z[-1]):
            assert not tissue.any()


def test_air_stays_off_the_brain():
    tissue, brain, _ = tissue_on_2mm()
    distance = ndimage.distance_transform_edt(~brain, sampling=2.0)
    cavity = tissue == INDEX['air-cavity']
    assert distance[cavity].min() > 3
    # and yet near enough to disturb it, as sphenoid sinus and ear canals do
    assert distance[cavity].min() < 8
    assert not (brain & np.isin(tissue, [INDEX[n] for n in ('bone', 'air', 'soft-tissue')])).any()


def test_head_is_symmetric_but_for_what_is_hidden():
    x = np.arange(-90, 91, 2.0)
    plane, brain = anatomy.Anatomy(x, np.arange(-120, 101, 2.0)).plane(4.0)
    same = (plane == plane[::-1]) | (brain != brain[::-1])
    assert same.mean() > 0.995


def test_template_that_is_missing(monkeypatch, tmp_path):
    class Found:
        origin = str(tmp_path / '__init__.py')

    monkeypatch.setattr('importlib.util.find_spec', lambda name: Found)
    with pytest.raises(FileNotFoundError, match='nilearn'):
        atlas._template('gm')


def test_nilearn_is_found_and_not_imported():
    program = (
        'import sys\n'
        'from precondqsm_bids.phantom.atlas import _template\n'
        '_template("gm")\n'
        'assert "nilearn" not in sys.modules\n'
    )
    subprocess.run([sys.executable, '-c', program], check=True)


@pytest.mark.parametrize(
    'shape, volume',
    [
        (Ellipsoid((3, -2, 1), (6, 9, 5), 30, -20), 4 / 3 * np.pi * 6 * 9 * 5),
        (Capsule((-4, -3, -5), (6, 2, 4), 4.0), np.pi * 16 * np.sqrt(206) + 4 / 3 * np.pi * 64),
    ],
)
def test_shapes(shape, volume):
    x, y, z = np.ogrid[-15:15:0.5, -15:15:0.5, -15:15:0.5]
    inside = shape.inside(x, y, z)
    assert inside.sum() / 8 == pytest.approx(volume, rel=0.02)
    np.testing.assert_array_equal(inside, shape.mirrored().inside(-x, y, z))
    points = np.argwhere(inside) / 2 - 15
    assert (np.abs(points - shape.centre) <= np.array(shape.reach) + 1e-9).all()


def test_tilted_ellipsoid_points_where_it_says():
    ahead = Ellipsoid((0, 0, 0), (1, 10, 1), about_x=30)
    assert ahead.inside(0.0, 9 * np.cos(np.pi / 6), 9 * np.sin(np.pi / 6))
    turned = Ellipsoid((0, 0, 0), (1, 10, 1), about_z=30)
    assert turned.inside(-9 * np.sin(np.pi / 6), 9 * np.cos(np.pi / 6), 0.0)


def test_interpolation_is_exact_for_a_linear_map():
    z, x, y = np.meshgrid(np.arange(4.0), np.arange(5.0), np.arange(6.0), indexing='ij')
    source = Map((x + 2 * y - 3 * z).astype(np.float32), (10.0, 20.0, 30.0), 2.0)
    at_x, at_y = np.array([11.0, 12.6]), np.array([20.5, 29.9, 31.0])
    plane = Planes(source, at_x, at_y).at(33.5)
    expected = (at_x[:, None] - 10) / 2 + (at_y - 20) - 3 * 3.5 / 2
    np.testing.assert_allclose(plane[:, :2], expected[:, :2], atol=1e-5)
    assert not plane[:, 2].any()
    far = Planes(source, at_x, at_y, beyond=9.0)
    np.testing.assert_allclose(far.at(33.5)[:, :2], plane[:, :2])
    assert (far.at(33.5)[:, 2] == 9).all()
    assert (far.at(99.0) == 9).all()


# -- tissues -----------------------------------------------------------------------------------


def test_tissue_table():
    chi = {tissue.name: tissue.chi for tissue in TISSUES}
    # Marques et al. 2021
    assert chi['GM'] == pytest.approx(0.02)
    assert chi['WM'] == pytest.approx(-0.03)
    assert chi['air-cavity'] == pytest.approx(9.41)
    for tissue in TISSUES:
        assert tissue.chi_dia <= 0 <= tissue.chi_para, tissue.name
    signal = spoiled_signal(0.032)
    assert signal[INDEX['WM']] == 1
    assert signal[INDEX['air']] == 0
    assert signal[INDEX['CSF']] < signal[INDEX['GM']] < 1
    # fully relaxed, proton density is what is left
    assert spoiled_signal(100.0)[INDEX['CSF']] == pytest.approx(1 / 0.7)


@pytest.mark.parametrize('b0, relaxivity', [(3.0, 137.0), (7.0, 114.0), (1.5, 323.0)])
def test_r2prime_is_of_both_parts_and_grows_with_b0(b0, relaxivity):
    spec = HeadSpec(field_strength=b0, relaxivity=relaxivity)
    assert r2prime(0.03, -0.05, spec) == pytest.approx(relaxivity * b0 / 3 * 0.08)


# -- simulation --------------------------------------------------------------------------------


def test_truth():
    phantom = simulated()
    shape = SMALL.matrix
    assert shape == (46, 58, 49)
    assert phantom.magnitude.shape == phantom.phase.shape == (*shape, 7)
    assert phantom.label_names[2] == 'WM'
    assert set(phantom.label_names.values()).isdisjoint({'vein', 'microbleed', 'calcification'})
    assert phantom.label_dchi[INDEX['pallidum']] == pytest.approx(0.131)
    # voxels of one tissue have its susceptibility, within texture
    for name in ('GM', 'WM', 'bone', 'soft-tissue', 'air-cavity'):
        inside = phantom.labels == INDEX[name]
        inside &= ndimage.minimum_filter(inside, 2) if name in ('soft-tissue', 'bone') else inside
        expected = phantom.label_dchi[INDEX[name]]
        assert np.median(phantom.chi[inside]) == pytest.approx(
            expected, abs=0.01 + abs(expected) / 8
        )
    outside = phantom.density == 0
    assert not phantom.r2star[outside].any()
    assert not phantom.signal[outside].any()
    air = ndimage.binary_erosion((phantom.labels == 0) & outside, border_value=1)
    assert not phantom.chi[air].any()


def test_probsegs_and_mask():
    phantom = simulated()
    total = sum(phantom.probsegs.values())
    assert total.min() >= 0
    assert total.max() <= 1 + 1e-6
    inner = ndimage.binary_erosion(phantom.brain_mask)
    assert np.mean(np.abs(total[inner] - 1) < 1e-6) > 0.999
    assert total[phantom.brain_mask].min() > 0.49
    # the spinal cord is white matter too, and outside
    assert total[phantom.brain_mask].sum() > 0.95 * total.sum()
    for name in NUCLEI:
        inside = phantom.labels == INDEX[name]
        if inside.any():
            assert (phantom.probsegs['GM'][inside] > 0.3).all()
    assert ndimage.label(phantom.brain_mask)[1] == 1


def test_r2star_in_white_matter():
    phantom = simulated()
    pure = phantom.probsegs['WM'] == 1
    # R2 13 /s, 137 Hz/ppm of 0.07 ppm
    assert phantom.r2star[pure].mean() == pytest.approx(13 + 137 * 0.07, rel=0.02)
    assert phantom.r2star[pure].std() > 0.2
    assert simulated(relaxivity=0.0).r2star[pure].mean() == pytest.approx(13, abs=1e-4)
    at_7t = simulated(field_strength=7.0)
    assert at_7t.r2star[pure].mean() == pytest.approx(13 + 7 / 3 * 137 * 0.07, rel=0.02)
    np.testing.assert_array_equal(at_7t.chi, phantom.chi)
    np.testing.assert_allclose(at_7t.field, phantom.field, atol=1e-6)


def test_signal_follows_field_and_r2star():
    phantom = simulated()
    # deep white matter: no edge, hardly a gradient
    pure = ndimage.binary_erosion(phantom.probsegs['WM'] == 1)
    assert pure.sum() > 100
    ratio = phantom.signal[..., 1][pure] / phantom.signal[..., 0][pure]
    field = np.angle(ratio) / (2 * np.pi * GAMMA_BAR * 3e-6 * 0.004)
    np.testing.assert_allclose(field, phantom.field[pure], atol=0.005)
    rate = -np.log(np.abs(ratio)) / 0.004
    # what is above is the dephasing by the field's gradient
    np.testing.assert_allclose(rate, phantom.r2star[pure], rtol=0.2)
    assert np.median(rate / phantom.r2star[pure]) == pytest.approx(1, abs=0.02)
    assert np.abs(phantom.signal[..., 0])[pure].mean() == pytest.approx(
        np.exp(-0.004 * 22.6), rel=0.15
    )


def test_shim_leaves_no_low_order():
    phantom = simulated()
    voxel = np.argwhere(phantom.brain_mask)
    x, y, z = ((voxel - (np.array(SMALL.matrix) - 1) / 2) * 4.0 + FIELD_CENTRE).T / 90
    terms = (x * y, y * z, x * z, x**2 - y**2, 2 * z**2 - x**2 - y**2)
    harmonics = np.stack([np.ones_like(x), x, y, z, *terms], axis=1)
    left = np.linalg.lstsq(harmonics, phantom.field[phantom.brain_mask], rcond=None)[0]
    assert np.abs(harmonics @ left).std() < 0.03
    assert 0.03 < phantom.field[phantom.brain_mask].std() < 0.3


def test_air_disturbs_the_field_and_takes_the_signal():
    phantom = simulated()
    brain = np.argwhere(phantom.brain_mask)
    mm = (brain - (np.array(SMALL.matrix) - 1) / 2) * 4.0 + FIELD_CENTRE
    # above the sphenoid and ethmoid air, in the gyri recti, against the centrum semiovale
    above = (abs(mm[:, 0]) < 12) & (mm[:, 1] > 20) & (mm[:, 1] < 45) & (mm[:, 2] < -14)
    deep = (abs(mm[:, 0]) < 30) & (abs(mm[:, 1] + 10) < 30) & (abs(mm[:, 2] - 35) < 10)
    field = phantom.field[phantom.brain_mask]
    assert field[above].mean() > 0.1 + field[deep].mean()
    assert field[above].std() > 3 * field[deep].std()
    first, last = (np.abs(phantom.signal[phantom.brain_mask, echo]) for echo in (0, -1))
    apparent = np.log(first / last) / 0.024 - phantom.r2star[phantom.brain_mask]
    assert apparent[above].mean() > 5 + apparent[deep].mean()


def test_snr_and_seed():
    phantom = simulated(snr=50.0)
    air = phantom.density == 0
    assert np.sqrt(np.mean(phantom.magnitude[air] ** 2) / 2) == pytest.approx(1 / 50, rel=0.01)
    again = phantom.remeasure(0)
    np.testing.assert_array_equal(again.magnitude, phantom.magnitude)
    other = phantom.remeasure(1)
    assert (other.magnitude != phantom.magnitude).any()
    np.testing.assert_array_equal(simulated(snr=50.0).chi, simulated().chi)
    silent = phantom.spec
    assert replace(silent, snr=np.inf).snr == np.inf


def test_kspace_sampling():
    phantom, box = simulated(sampling='kspace'), simulated()
    np.testing.assert_array_equal(phantom.chi, box.chi)
    pure = ndimage.binary_erosion(phantom.probsegs['WM'] == 1)
    close = np.abs(phantom.signal[pure] - box.signal[pure])
    assert 0 < close.mean() < 0.05


def test_tilt():
    tilted = simulated(b0_tilt=30.0)
    np.testing.assert_allclose(tilted.affine[2, :3] / 4.0, [0, 0.5, np.sqrt(0.75)], atol=1e-12)
    np.testing.assert_array_equal(tilted.labels, simulated().labels)
    correlation = np.corrcoef(
        tilted.field[tilted.brain_mask], simulated().field[tilted.brain_mask]
    )[0, 1]
    assert correlation < 0.95


# -- the hard head -----------------------------------------------------------------------------


def test_hidden_sources():
    phantom, plain = hard(), simulated()
    assert phantom.spec.b0_tilt == 15
    assert phantom.spec.snr == 60
    names = set(phantom.label_names.values())
    assert {'vein', 'microbleed', 'calcification'} <= names
    change = phantom.chi - plain.chi
    assert not change[~ndimage.binary_dilation(phantom.brain_mask)].any()
    # texture: 0.01 ppm, less what the mean over voxels of 4 mm takes, and nothing on R2*
    pure = (plain.probsegs['WM'] == 1) & (phantom.probsegs['WM'] == 1)
    spread = np.percentile(change[pure], [16, 84])
    assert 0.003 < np.diff(spread)[0] / 2 < 0.011
    same = np.abs(phantom.r2star - plain.r2star)[pure] < 1e-3
    assert same.mean() > 0.9
    # R2* without susceptibility, and the reverse
    shift = (phantom.r2star - plain.r2star)[pure & ~ndimage.binary_dilation(phantom.labels > 14)]
    assert shift.max() > 7
    assert shift.min() < -4


def test_lesions_on_a_finer_grid():
    tissue, brain, _ = tissue_on_2mm()
    for name, shapes in (
        ('microbleed', head_parts.MICROBLEEDS),
        ('calcification', head_parts.CALCIFICATIONS),
    ):
        found, number = ndimage.label(tissue == INDEX[name], np.ones((3, 3, 3)))
        assert number == len(shapes), name
        assert brain[found > 0].all()
    veins = tissue == INDEX['vein']
    assert 0.5 < 8e-3 * veins.sum() < 4


def test_lesions_can_obey_the_relaxivity():
    silent, visible = hard(), hard(lesion_relaxivity=1.0)
    np.testing.assert_array_equal(silent.chi, visible.chi)
    more = visible.r2star - silent.r2star
    lesion = np.isin(visible.labels, [INDEX['microbleed'], INDEX['calcification']])
    assert lesion.any()
    assert more[lesion].min() > 10
    assert more.min() > -1e-3
    assert not more[~ndimage.binary_dilation(visible.brain_mask)].any()


@pytest.mark.parametrize(
    'changes, words',
    [
        ({'voxel_size': (0.2, 0.2, 0.2)}, '0.2'),
        ({'voxel_size': (9.0, 9.0, 9.0)}, '9.0'),
        ({'supersampling': 6}, 'memory'),
        ({'relaxivity': -1.0}, 'relaxivity'),
        ({'lesion_relaxivity': float('nan')}, 'nan'),
        ({'snr': 0.0}, 'snr'),
        ({'echo_times': (4.0, 8.0)}, 'milliseconds'),
        ({'coil_shading': 2.0}, 'coil_shading'),
        ({'sampling': 'sinc'}, "'sinc'"),
        ({'field_strength': 0.0}, 'field_strength'),
    ],
)
def test_impossible_heads_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        HeadSpec(**changes)
