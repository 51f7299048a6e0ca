"""Names of tissues as the public segmentations write them, and R2 by class."""

import numpy as np
import pytest

from precondqsm_bids.numerics.tissue import R2_LITERATURE, literature_r2, tissue_class

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


@pytest.mark.parametrize('field_strength', [1.5, 7.0])
def test_literature_is_for_3_tesla(field_strength):
    with pytest.raises(ValueError, match='that of 3 T, and the field strength'):
        literature_r2(np.ones((1, 1, 1), int), ['GM'], np.ones((1, 1, 1), bool), field_strength)
