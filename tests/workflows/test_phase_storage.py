"""A scan stored as scanners may store it gives the values of its plain twin, files to maps."""

import logging

import nibabel as nb
import numpy as np
import pytest

from precondqsm_bids.method import Method
from precondqsm_bids.phantom.spec import TubesSpec
from precondqsm_bids.phantom.tubes import simulate_tubes
from precondqsm_bids.workflows.qsm import init_precondqsm_wf

SPEC = TubesSpec(
    object_scale=0.5, matrix=(63, 61, 39), voxel_size=(1.0, 1.0, 1.5), b0_tilt=25.0
)  # odd, anisotropic, oblique
TUBES = range(1, len(SPEC.tubes_dchi) + 1)
ODD_STORAGE = {  # codes of 12 bits alone: tests/faults/test_storage.py
    'given in degrees': {'turn': 360.0, 'first': -180.0, 'dtype': np.float32},
    'bipolar, alternating slices': {'bipolar': 0.04, 'alternating': True},
}


@pytest.fixture(scope='module')
def phantom():
    return simulate_tubes(SPEC, seed=2)


def write(folder, volume, affine):
    path = folder.with_suffix('.nii')
    nb.save(nb.Nifti1Image(volume, affine), path)
    return str(path)


def reconstructed(folder, magnitude, phase, affine, phase_units, **settings):
    """The preconditioned map and the record of the echo fit."""
    folder.mkdir()
    method = Method(conventional=False, reference='none', **settings)
    workflow = init_precondqsm_wf(method, name='qsm')
    workflow.base_dir = str(folder)
    given = workflow.inputs.inputnode
    echoes = range(magnitude.shape[-1])
    given.magnitude = [write(folder / f'mag{i}', magnitude[..., i], affine) for i in echoes]
    given.phase = [write(folder / f'phase{i}', phase[..., i], affine) for i in echoes]
    given.echo_times = list(SPEC.echo_times)
    given.field_strength = SPEC.field_strength
    if phase_units:
        given.phase_units = phase_units
    logging.getLogger('nipype.workflow').setLevel(logging.ERROR)
    workflow.config['execution'] = {'remove_unnecessary_outputs': 'false'}
    nodes = {node.name: node for node in workflow.run(plugin='Linear').nodes()}
    chi = np.asanyarray(nb.load(nodes['recombination'].result.outputs.chi).dataobj)
    roi = np.asanyarray(nb.load(nodes['shape_mask'].result.outputs.roi_mask).dataobj) > 0
    return chi, roi, nodes['echo_fit'].result.outputs.record


def tube_values(phantom, chi, roi):
    """Mean of each tube less that of the agar, ppm."""
    means = [chi[roi & (phantom.labels == i)].mean() for i in (*TUBES, len(TUBES) + 1)]
    return np.array(means[:-1]) - means[-1]


@pytest.fixture(scope='module')
def plain(phantom, tmp_path_factory):
    folder = tmp_path_factory.mktemp('plain') / 'run'
    chi, roi, record = reconstructed(
        folder, phantom.magnitude, phantom.phase, phantom.affine, 'rad'
    )
    assert record['phase_sign'] == 1
    assert record['phase_scale'] == 'radians'
    assert record['warnings'] == []
    return tube_values(phantom, chi, roi)


@pytest.mark.slow
@pytest.mark.parametrize('name', ODD_STORAGE)
def test_values_are_those_of_the_plain_twin(name, phantom, plain, tmp_path):
    how = ODD_STORAGE[name]
    phase = -phantom.phase.astype(float)  # the sign is reversed
    if 'bipolar' in how:
        position = np.arange(63)[:, None, None, None] - 25
        phase[..., 1::2] += 0.5 + how['bipolar'] * position
        phase[:, :, 1::2] += np.pi
    turn, first = how.get('turn', 4096), how.get('first', 0)
    stored = np.floor((phase / (2 * np.pi) + 0.5) % 1.0 * 4096) * turn / 4096 + first
    stored = stored.astype(how.get('dtype', np.int16))
    # the first axis is stored from the other end
    affine = phantom.affine @ np.diag([-1.0, 1, 1, 1])
    affine[:3, 3] = phantom.affine[:3, 3] + 62 * phantom.affine[:3, 0]
    chi, roi, record = reconstructed(
        tmp_path / 'run', phantom.magnitude[::-1].copy(), stored[::-1].copy(), affine, None
    )
    assert record['phase_sign'] == -1
    assert record['phase_turn'] == pytest.approx(turn, rel=1e-6)
    assert (record['echo_phase_size'] > 0.1) == ('bipolar' in how)
    assert record['alternating_axes'] == ([2] if 'bipolar' in how else [])
    values = tube_values(phantom, chi[::-1], roi[::-1])
    np.testing.assert_allclose(values[1:], plain[1:], rtol=0.01)
    assert values[0] == pytest.approx(plain[0], abs=0.01)  # a tube that is none
    np.testing.assert_allclose(values[1:], SPEC.tubes_dchi[1:], rtol=0.15)


@pytest.mark.slow
def test_slab_across_the_tubes_has_their_values(phantom, tmp_path):
    cut = slice(13, 26)
    affine = phantom.affine.copy()
    affine[:3, 3] += 13 * phantom.affine[:3, 2]
    chi, roi, _ = reconstructed(
        tmp_path / 'run',
        phantom.magnitude[:, :, cut],
        phantom.phase[:, :, cut],
        affine,
        'rad',
        phase_sign=1,  # hardly told by the field of a slab
    )
    labels = phantom.labels[:, :, cut]
    means = [chi[roi & (labels == i)].mean() for i in (*TUBES, len(TUBES) + 1)]
    values = np.array(means[:-1]) - means[-1]
    np.testing.assert_allclose(values[1:], SPEC.tubes_dchi[1:], rtol=0.04)
    assert values[0] == pytest.approx(0, abs=0.01)  # a tube that is none
