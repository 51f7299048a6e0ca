"""The stage of the echo fit on arrays: what it takes, refuses and leaves alone."""

import numpy as np
import pytest

from precondqsm_bids.numerics.constants import hz_per_ppm
from precondqsm_bids.numerics.echo_fit import fit_echoes
from precondqsm_bids.numerics.measure_field import measure_field
from precondqsm_bids.numerics.one_echo import field_of_one_echo
from precondqsm_bids.numerics.scan import Scan

SHAPE, TE = (20, 18, 16), np.array([0.003, 0.006, 0.011])
X, Y, Z = (2 * a / (n - 1) - 1 for a, n in zip(np.indices(SHAPE), SHAPE, strict=True))
MASK = X**2 + Y**2 + Z**2 < 0.9
FIELD = 0.05 * X - 0.03 * Y * Z
RNG = np.random.default_rng(0)
ECHOES = MASK[..., None] * 100 * np.exp(
    -25 * TE + 1j * (0.3 + 2 * np.pi * hz_per_ppm(3.0) * FIELD[..., None] * TE)
) + RNG.normal(size=(*SHAPE, 3, 2)) @ [1, 1j]
SCAN = Scan(
    np.abs(ECHOES).astype(np.float32), np.angle(ECHOES).astype(np.float32), TE, 3.0, phase_sign=1
)


def codes(phase):
    return np.floor((phase / (2 * np.pi) + 0.5) * 4096).clip(0, 4095)


def test_maps_are_those_of_the_fit():
    found = measure_field(SCAN, MASK)
    expected = fit_echoes(SCAN.magnitude, SCAN.phase, TE, 3.0, MASK)
    for name in ('total_field', 'field_sd', 'r2star', 's0', 'reliable', 'misfit', 'usable_echoes'):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    there = found.r2star > 0
    np.testing.assert_allclose(found.t2star[there], 1 / found.r2star[there])
    assert not found.t2star[~there].any()
    np.testing.assert_allclose(found.magnitude, np.linalg.norm(ECHOES, axis=-1), rtol=1e-5)
    assert found.record['echo_times'] == TE.tolist()
    assert np.abs(found.total_field - FIELD)[MASK].max() < 6 * found.field_sd[MASK].max()


@pytest.mark.parametrize('largest', [4000, 32000])
def test_stored_integers_are_no_less_than_their_numbers(largest):
    scaled = np.rint(SCAN.magnitude * (largest / SCAN.magnitude.max()))
    found = measure_field(SCAN._replace(magnitude=scaled.astype(np.int16)), MASK)
    expected = measure_field(SCAN._replace(magnitude=scaled.astype(np.float32)), MASK)
    np.testing.assert_allclose(found.total_field, expected.total_field, atol=1e-6)
    np.testing.assert_allclose(found.magnitude, expected.magnitude, rtol=1e-6)


def test_one_echo_has_no_decay():
    scan = SCAN._replace(
        magnitude=SCAN.magnitude[..., :1], phase=SCAN.phase[..., :1], echo_times=TE[:1]
    )
    found = measure_field(scan, MASK)
    expected = field_of_one_echo(SCAN.magnitude[..., 0], SCAN.phase[..., 0], TE[0], 3.0, MASK)
    np.testing.assert_array_equal(found.total_field, expected.total_field)
    assert found[6:] == (None,) * len(found[6:])
    assert found.record['offset_model'] == 'in the field'
    difference = measure_field(scan._replace(phase_difference=True), MASK)
    assert difference.record['offset_model'] == 'none (phase difference)'


@pytest.mark.parametrize('kind', [np.float32, np.int16])
def test_phase_is_overwritten_only_where_it_may_be(kind):
    stored = codes(SCAN.phase).astype(kind)
    scan = SCAN._replace(phase=stored.copy())
    plain = measure_field(scan, MASK)
    np.testing.assert_array_equal(scan.phase, stored)
    found = measure_field(scan, MASK, overwrite=True)
    assert np.array_equal(scan.phase, stored) == (kind == np.int16)
    np.testing.assert_array_equal(found.total_field, plain.total_field)
    assert found.record == plain.record


@pytest.mark.parametrize(
    'changes, said',
    [
        ({'phase': SCAN.phase[..., :2]}, r'3\) and phase \(20, 18, 16, 2\) differ in shape'),
        ({'echo_times': TE[:2]}, 'one echo time each: .* 2 echo times'),
        ({'echo_times': ()}, 'one echo time each: .* 0 echo times'),
        ({'echo_times': 1e3 * TE}, 'look like milliseconds'),
        ({'field_strength': 0.0}, 'field_strength should be positive, in T: 0.0'),
        ({'field_strength': np.nan}, 'field_strength should be positive'),
        ({'voxel_size': (1, 1, 0)}, r'three positive lengths, in mm: \(1, 1, 0\)'),
        ({'phase_sign': 2}, 'the sign of the phase is 1 or -1, not 2'),
        ({'phase_units': 'degrees'}, '"rad" or "arbitrary", not \'degrees\''),
        ({'phase': SCAN.magnitude}, r'phase\[..., 0\], a phase by its name, is a magnitude'),
    ],
)
def test_what_is_not_a_scan_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        measure_field(SCAN._replace(**changes), MASK)


@pytest.mark.parametrize('name', ['mask', 'shape_mask'])
def test_masks_on_another_grid_are_refused(name):
    masks = {'mask': MASK, 'shape_mask': MASK} | {name: MASK[1:]}
    with pytest.raises(ValueError, match=rf'^{name} \(19, 18, 16\) and the echoes \(20, 18, 16\)'):
        measure_field(SCAN, **masks)


def test_files_are_named_where_they_are_known():
    scan = SCAN._replace(phase_files=('a.nii', 'b.nii', 'c.nii'))
    with pytest.raises(ValueError, match=r'^a\.nii and its other echoes: the phase is 0 in every'):
        measure_field(scan._replace(phase=np.zeros_like(SCAN.phase)), MASK)
    mixed = SCAN.phase.copy()
    mixed[..., 1] = SCAN.magnitude[..., 1]
    with pytest.raises(ValueError, match=r'^b\.nii, a phase by its name, is a magnitude'):
        measure_field(scan._replace(phase=mixed), MASK)


def test_a_later_echo_whose_magnitude_and_phase_are_swapped_is_the_one_that_is_named():
    magnitude, phase = SCAN.magnitude * 100, SCAN.phase.copy()
    magnitude[..., 1], phase[..., 1] = phase[..., 1].copy(), magnitude[..., 1].copy()
    files = {'magnitude_files': ('m1', 'm2', 'm3'), 'phase_files': ('p1', 'p2', 'p3')}
    scan = SCAN._replace(magnitude=magnitude, phase=phase, phase_units=None, **files)
    with pytest.raises(
        ValueError, match=r'^m2, a magnitude by its name, has the values of a phase'
    ):
        measure_field(scan, MASK)


@pytest.mark.parametrize(
    'part, value, message',
    [
        ('magnitude', -1.0, r'magnitude\[\.\.\., 1\], a magnitude, has 1 negative voxels'),
        ('magnitude', np.nan, r'magnitude\[\.\.\., 1\] has 1 voxels that are not finite'),
        ('phase', np.nan, r'phase\[\.\.\., 1\] has 1 voxels that are not finite'),
    ],
)
def test_what_no_echo_has_is_refused_outside_the_mask_too(part, value, message):
    """Ghosts and lines of k-space are those of the whole image."""
    wrong = np.array(getattr(SCAN, part), np.float32)
    wrong[0, 0, 0, 1] = value
    with pytest.raises(ValueError, match=message):
        measure_field(SCAN._replace(**{part: wrong}), MASK)


def test_the_phase_of_another_echo_is_refused():
    phase = np.array(SCAN.phase)
    phase[..., 2] = phase[..., 0]
    with pytest.raises(ValueError, match=r'2\] \(.* ms\) is the same image as phase'):
        measure_field(SCAN._replace(phase=phase), MASK)
