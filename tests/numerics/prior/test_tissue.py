"""Names of tissues as the public segmentations write them, and R2 by class."""

import numpy as np
import pytest
from scipy import ndimage

from precondqsm_bids.numerics.dipole import Geometry
from precondqsm_bids.numerics.prior.fit import FitOptions, fit_prior
from precondqsm_bids.numerics.prior.tissue import (
    CHI_ORDER,
    R2_LITERATURE,
    class_means,
    contradictions,
    literature_r2,
    tissue_class,
    tissue_parcels,
)
from precondqsm_bids.phantom.head import simulate_head
from precondqsm_bids.phantom.head_spec import HeadSpec
from precondqsm_bids.phantom.tissues import INDEX, TISSUES

NAMES = {
    # FreeSurfer's table: aseg, aparc+aseg, wmparc (sMRIPrep, FastSurfer)
    'Left-Cerebral-White-Matter': 'WM',
    'Right-Cerebellum-White-Matter': 'WM',
    'wm-lh-bankssts': 'WM',
    'CC_Mid_Posterior': 'WM',
    'WM-hypointensities': 'WM-hypointensities',
    'Left-Cerebral-Cortex': 'GM',
    'ctx-lh-superiorfrontal': 'GM',
    'ctx_rh_G_cuneus': 'GM',
    'Right-Cerebellum-Cortex': 'GM',
    'Left-Hippocampus': 'GM',
    'Left-Amygdala': 'GM',
    'Left-Lateral-Ventricle': 'CSF',
    'Right-Inf-Lat-Vent': 'CSF',
    '3rd-Ventricle': 'CSF',
    'CSF': 'CSF',
    'Left-Caudate': 'caudate',
    'Left-Putamen': 'putamen',
    'Right-Pallidum': 'pallidum',
    'Left-Thalamus-Proper': 'thalamus',
    'Left-Thalamus': 'thalamus',
    'Left-Accumbens-area': 'accumbens',
    'Brain-Stem': 'brainstem',
    'Left-VentralDC': 'ventral-diencephalon',
    'Left-choroid-plexus': 'choroid-plexus',
    'Right-vessel': 'vessel',
    'Unknown': None,
    # SynthSeg
    'left cerebral white matter': 'WM',
    'right cerebellum cortex': 'GM',
    'left inferior lateral ventricle': 'CSF',
    'brain-stem': 'brainstem',
    'background': None,
    # BIDS, atlases, plain words
    'GM': 'GM',
    'CGM': 'GM',
    'SCGM': 'deep-GM',
    'white matter': 'WM',
    'Gray Matter': 'GM',
    'red_nucleus_L': 'red-nucleus',
    'SN_R': 'substantia-nigra',
    'GPe': 'pallidum',
    'Globus Pallidus (left)': 'pallidum',
    'dentate nucleus': 'dentate',
    'STN': 'subthalamic-nucleus',
    'soft-tissue': 'soft-tissue',
    'microbleed 2': 'microbleed-2',
}


@pytest.mark.parametrize('name', NAMES)
def test_class_of_a_name(name):
    assert tissue_class(name) == NAMES[name]


def test_a_class_is_its_own_class():
    for name in {name for name in NAMES.values() if name}:
        assert tissue_class(name) == name


def test_literature_values_are_those_that_were_measured():
    """Gelman et al.: pallidum 25.8 +- 1.1, prefrontal cortex 14.4 +- 1.8, white matter 18.0."""
    assert R2_LITERATURE['pallidum'] == pytest.approx(25.8)
    assert R2_LITERATURE['GM'] == pytest.approx(14.4, abs=0.2)
    assert R2_LITERATURE['WM'] == 18.0
    assert 12.7 < R2_LITERATURE['thalamus'] < R2_LITERATURE['caudate'] < R2_LITERATURE['putamen']


def test_r2_of_shares_is_their_mean():
    rng = np.random.default_rng(0)
    names = ['GM', 'WM', 'CSF', 'tumour']
    shares = rng.dirichlet(np.ones(5), size=(3, 4, 5))[..., :4].astype(np.float32)
    shares[shares < 0.02] = 0
    mask = rng.random((3, 4, 5)) < 0.9
    rates = np.array([14.5, 18.0, 0.5])
    known, total = shares[..., :3].sum(-1), shares[..., :3] @ rates
    mean = total[mask].sum() / known[mask].sum()
    expected = np.where(mask, total + (1 - known) * mean, 0)
    found = literature_r2(shares, names, mask, 3.0)
    np.testing.assert_allclose(found, expected, atol=0.05)
    assert found.dtype == np.float32


@pytest.mark.parametrize('largest', [100, 255])
def test_fractions_in_percent_or_codes_are_refused(largest):
    shares = np.zeros((2, 2, 2, 2))
    shares[..., 0], shares[0, ..., 1] = 0.9 * largest, 0.1 * largest
    with pytest.raises(ValueError, match=f'fractions up to {0.9 * largest:g}'):
        tissue_parcels(shares, 2, np.ones((2, 2, 2), bool))


@pytest.mark.parametrize('field_strength', [1.5, 7.0])
def test_literature_is_for_3_tesla(field_strength):
    with pytest.raises(ValueError, match='that of 3 T, and the field strength'):
        literature_r2(np.ones((1, 1, 1), int), ['GM'], np.ones((1, 1, 1), bool), field_strength)


def test_class_means_take_only_voxels_that_are_mostly_of_a_class():
    mask = np.ones((3, 3, 8), bool)
    shares = np.zeros((*mask.shape, 3), np.float32)
    shares[..., :3, 0] = 1  # 27 voxels
    shares[..., 3:7, 1] = 0.6
    shares[..., 3:7, 0] = 0.4
    shares[..., 7, 2] = 1  # 9 voxels, too few
    chi = shares @ np.float32([-0.03, 0.1, 1.0])
    means = class_means(chi, tissue_parcels(shares, 3, mask), ['WM', 'pallidum', 'dentate'])
    mean = float(chi.mean(dtype=float))
    assert means == pytest.approx({'WM': -0.03 - mean, 'pallidum': 0.048 - mean}, abs=1e-6)


def test_the_tissues_of_the_phantom_have_the_order_of_the_literature():
    means = {tissue.name: tissue.chi for tissue in TISSUES}
    assert not contradictions(means)
    for low, high, _ in CHI_ORDER:
        swapped = {**means, low: TISSUES[INDEX[high]].chi, high: TISSUES[INDEX[low]].chi}
        assert any(f'{low} (' in text and f'{high} (' in text for text in contradictions(swapped))


def test_classes_that_are_not_there_contradict_nothing():
    assert not contradictions({})
    assert not contradictions({'GM': -1.0, 'CSF': 1.0, 'tumour': 3.0})


@pytest.fixture(scope='module')
def head():
    """A head of 4 mm without noise."""
    return simulate_head(HeadSpec(voxel_size=(4.0, 4.0, 4.0), snr=np.inf))


def shifted(shares):
    """By 2 mm, half a voxel."""
    return ndimage.shift(shares, (0.5, 0, 0, 0), order=1)


def eroded(shares):
    """Nothing is left of a class in the voxels that have a neighbour of another one."""
    finest = shares.argmax(-1)
    whole = ndimage.minimum_filter(finest, 3) == ndimage.maximum_filter(finest, 3)
    return shares * whole[..., None]


@pytest.mark.slow
@pytest.mark.parametrize(
    ('spoil', 'wrong'),
    [
        (lambda shares: shares, False),
        (shifted, False),
        (eroded, False),
        (lambda shares: shares[..., [1, 0, 2]], True),
    ],
    ids=['right', 'shifted', 'eroded', 'swapped'],
)
def test_only_swapped_classes_contradict_the_literature(head, spoil, wrong):
    names = ['GM', 'WM', 'CSF']
    shares = spoil(np.stack([head.probsegs[name] for name in names], axis=-1))
    basis = tissue_parcels(shares, 3, head.brain_mask)
    geometry = Geometry(head.brain_mask, head.spec.voxel_size, head.spec.b0_dir)
    fit = fit_prior(head.field, [basis], geometry, options=FitOptions(30, rounds=1))
    assert bool(contradictions(class_means(fit.prior_chi, basis, names))) == wrong
