"""Faults are recognised on phantoms, and nothing good is: phantoms, nulls, and real scans.

Real scans are read from the folder of PRECONDQSM_REAL, or from ``shared/real`` beside the
repository, and skipped where they are missing.
"""

import functools
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from radians import in_radians

from precondqsm_bids.interfaces.volumes import load
from precondqsm_bids.numerics.dipole import b0_direction
from precondqsm_bids.numerics.phase.recognition import (
    ADVANCE,
    FIRST_ECHO,
    LEAST_VOXELS,
    SAME_IMAGE,
    SLOW_PHASE,
    fills_quarter_turn,
    growth,
    is_phase,
    likeness,
    phase_growth,
    slow_phase,
    unsigned_parts,
)
from precondqsm_bids.numerics.phase.shape_field import shape_field
from precondqsm_bids.numerics.scan import Scan
from precondqsm_bids.numerics.shape_mask import shape_mask
from precondqsm_bids.phantom.head import simulate_head
from precondqsm_bids.phantom.head_spec import HeadSpec
from precondqsm_bids.phantom.spec import TubesSpec
from precondqsm_bids.phantom.tubes import simulate_tubes

REAL = Path(os.environ.get('PRECONDQSM_REAL', Path(__file__).parents[3] / 'shared' / 'real'))
SMALL = {'object_scale': 0.5, 'matrix': (32, 32, 28), 'voxel_size': (2.0, 2.0, 2.0)}
TUBES = {
    'tubes': {},
    'one echo': {'echo_times': (0.006,), 'tubes_dchi': (-0.1, 0.1, 0.2, 0.3)},
    'tilted': {'b0_tilt': 40.0},
    'coarse': {'matrix': (16, 16, 16), 'voxel_size': (8.0, 8.0, 8.0), 'object_scale': 1.0},
    'noisy': {'snr': 15.0},
    'short': {'echo_times': (0.002, 0.005, 0.008)},
}
SETS = {
    'head_siemens_3t': (3.0, (0.00246,)),
    'round_phantom_3t': (3.0, (0.0025, 0.0055)),
    'crop_brain_7t': (7.0, (0.004, 0.008, 0.012)),
}


class Data:
    """Echoes, the object and the field of its shape."""

    def __init__(self, magnitude, stored, te, field_strength, affine, units=None):
        self.magnitude, self.stored = magnitude, stored
        self.phase = in_radians(stored, units)
        shape = shape_mask(magnitude[..., 0])
        self.mask = shape.roi_mask
        voxel_size = nib.affines.voxel_sizes(affine)
        field = shape_field(shape.shape_mask, voxel_size, b0_direction(affine), self.mask).field
        self.scan = Scan(magnitude, self.phase, te, field_strength)
        self.rest = (self.mask, field)

    def slow(self, phase=None):
        return slow_phase(self.with_phase(phase), *self.rest)

    def advance(self, phase=None):
        return phase_growth(self.with_phase(phase), *self.rest)

    def with_phase(self, phase):
        return self.scan if phase is None else self.scan._replace(phase=phase)


def head_spec(name):
    return HeadSpec(voxel_size=(6.0, 6.0, 6.0), field_strength=float(name[-1]))


@functools.cache
def simulated(name):
    if name.startswith('head'):
        return simulate_head(head_spec(name), seed=1)
    return simulate_tubes(TubesSpec(**(SMALL | TUBES[name])), seed=1)


@functools.cache
def scan(name):
    if name in SETS:
        folder = REAL / name / 'raw' / 'sub-01' / 'anat'
        if not folder.is_dir():
            pytest.skip(f'{folder} is not there')
        files = [sorted(folder.glob(f'*part-{part}*.nii.gz')) for part in ('mag', 'phase')]
        echoes = (np.stack([load(str(path)) for path in paths], axis=-1) for paths in files)
        field_strength, te = SETS[name]
        affine = nib.as_closest_canonical(nib.load(files[0][0])).affine
        return Data(*echoes, te, field_strength, affine, 'arbitrary')
    if name.startswith('difference of '):
        whole = scan(name.removeprefix('difference of '))
        te, *rest = whole.scan[2:4]
        step = np.angle(np.exp(1j * (whole.phase[..., 2:3] - whole.phase[..., :1])))
        affine = simulated(name.removeprefix('difference of ')).affine
        return Data(whole.magnitude[..., :1], step, (te[2] - te[0],), *rest, affine)
    if name.startswith('head'):
        phantom, spec = simulated(name), head_spec(name)
        te, b0 = spec.echo_times, spec.field_strength
    elif name == 'uniform ball':  # no field inside, and nothing but an offset
        x = np.indices((24, 24, 24)) / 12 - 1
        ball = (x**2).sum(axis=0) < 0.6
        te, rng = (0.004, 0.012), np.random.default_rng(2)
        signal = np.stack([ball * np.exp(1j * x[0] - 20 * t) for t in te], axis=-1)
        noise = rng.normal(size=(2, *signal.shape))
        signal = signal + 0.02 * (noise[0] + 1j * noise[1])
        return Data(np.abs(signal), np.angle(signal), te, 3.0, np.diag([3.0, 3.0, 3.0, 1.0]))
    else:
        phantom = simulated(name)
        te, b0 = phantom.echo_times, 3.0
    return Data(phantom.magnitude, phantom.phase, te, b0, phantom.affine)


GOOD = [*TUBES, 'head 3', 'head 7', 'uniform ball', *SETS]
GOOD += ['difference of short', 'difference of tubes', 'difference of head 3']
good = pytest.mark.parametrize('name', GOOD)
FIELDS = ['tubes', 'one echo', 'tilted', 'short', 'head 3', 'head 7', 'head_siemens_3t']
"""Scans whose shape has a field that no shim takes off, in voxels that are not too coarse."""


def homodyne(scan, share):
    """Phase over that of the low frequencies, in planes, ``share`` of the band."""
    signal = scan.magnitude * np.exp(1j * scan.phase)
    x, y = (np.abs(np.fft.fftfreq(n)) for n in signal.shape[:2])
    u, v = (np.where(f < share, np.cos(np.pi * f / share / 2) ** 2, 0) for f in (x, y))
    window = (u[:, None] * v)[..., None, None]
    low = np.fft.ifft2(np.fft.fft2(signal, axes=(0, 1)) * window, axes=(0, 1))
    return np.angle(signal * low.conj())


@good
def test_nothing_good_is_refused(name):
    """And far from the thresholds."""
    one = scan(name)
    for e in range(one.phase.shape[-1]):
        assert not is_phase(one.magnitude[..., e])
        values = likeness(one.stored[..., e], one.magnitude[..., e], one.mask)
        assert min(values) < 0.5 * SAME_IMAGE
        parts = (f(one.phase[..., e]) * one.magnitude[..., e] for f in (np.cos, np.sin))
        assert not unsigned_parts(*parts)
        assert not fills_quarter_turn(one.phase[..., e])
    assert growth(one.magnitude, one.mask).fraction < 0.2
    slow = one.slow()
    assert slow.size > 1.5 * min(SLOW_PHASE[0], SLOW_PHASE[1] * slow.expected)
    if (advance := one.advance()) and min(advance.first, advance.correlation) > FIRST_ECHO[0]:
        te = one.scan.echo_times
        due = advance.first * min(1, (te[1] - te[0]) / te[0])
        assert advance.coefficient > 2 * ADVANCE * due
    assert not advance or not advance.differences


@pytest.mark.parametrize('name', ['tubes', 'coarse', 'head 3'])
def test_readouts_are_no_fault(name):
    """Slices of alternating sign along each axis, odd and even echoes that differ, either sign."""
    one = scan(name)
    for axis in range(3):
        index = np.indices(one.mask.shape)[axis][..., None]
        phase = one.phase + np.pi * (index % 2)
        phase[..., 1::2] += 0.6 + 0.05 * index
        for stored in (phase, -phase):
            stored = np.angle(np.exp(1j * stored))
            assert not one.slow(stored).filtered
            assert not one.advance(stored).differences


@good
def test_phase_as_magnitude(name):
    if name == 'crop_brain_7t':  # no air and no wrap in its first echo
        pytest.skip('neither noise nor wraps')
    assert is_phase(scan(name).stored[..., -1])
    blank = np.where(scan(name).mask, scan(name).stored[..., -1], 0)
    is_phase(blank)  # may be either; it must not fail


@good
@pytest.mark.parametrize('scale', [1, -0.5, 40.7])
def test_magnitude_as_phase(name, scale):
    """As it is, or in whole numbers; not negated."""
    one = scan(name)
    if np.count_nonzero(one.mask) < LEAST_VOXELS:
        pytest.skip('too small an object to be judged')
    magnitude = one.magnitude[..., 0]
    for stored in (
        scale * magnitude,
        np.round(4095 * np.sign(scale) * magnitude / magnitude.max()),
    ):
        assert (min(likeness(stored, magnitude, one.mask)) > SAME_IMAGE) == (scale > 0)


@good
def test_parts_without_sign(name):
    one = scan(name)
    parts = [f(one.phase[..., -1]) * one.magnitude[..., -1] for f in (np.cos, np.sin)]
    assert unsigned_parts(*map(np.abs, parts))
    if name != 'crop_brain_7t':  # without air no value stands for 0
        level = 2 ** np.ceil(np.log2(max(np.abs(part).max() for part in parts)))
        assert unsigned_parts(*(part + level for part in parts))


@pytest.mark.parametrize('name', ['tubes', 'tilted', 'coarse', 'short', 'head 3', 'head 7'])
def test_reversed_echo_times(name):
    one = scan(name)
    assert growth(one.magnitude[..., ::-1], one.mask).reversed


@pytest.mark.parametrize('share', [0.12, 0.25])
@pytest.mark.parametrize('name', FIELDS)
def test_filtered_phase(name, share):
    one = scan(name)
    assert one.slow(homodyne(one, share)).filtered


@pytest.mark.parametrize('shift', [0.0, 0.3])
@pytest.mark.parametrize('radii', [(14, 14, 14), (17, 13, 15)])
def test_an_ellipsoid_that_is_shimmed_is_not_filtered(radii, shift):
    """Its field is a constant inside (closed form); only its outline of voxels has another."""
    fine = (np.indices((80, 80, 80)) / 2 - 19.75).T - shift  # half voxels
    inside = (((fine / radii) ** 2).sum(-1) < 1).T
    filled = inside.reshape(40, 2, 40, 2, 40, 2).mean(axis=(1, 3, 5))[..., None]
    te = np.array([0.005, 0.03])
    noise = 0.01 * np.random.default_rng(3).normal(size=(2, 40, 40, 40, 2))
    signal = filled * np.exp(-10 * te) + noise[0] + 1j * noise[1]
    one = Data(np.abs(signal), np.angle(signal), te, 7.0, np.eye(4))
    slow = one.slow()
    assert slow.size < 0.05
    assert not slow.filtered
    assert slow.expected < 0.2


@pytest.mark.parametrize('name', ['tubes', 'tilted', 'coarse', 'head 3', 'head 7'])
def test_phase_differences(name):
    one = scan(name)
    step = np.angle(np.exp(1j * np.diff(one.phase, axis=-1)))
    found = one.advance(step)
    assert found.differences
    # The sign of the phase does not matter, nor does one alone
    assert one.advance(-step).differences
    assert not one.advance(-one.phase).differences
