"""The phase of the echoes in a slice: as found and as left, however it is stored."""

import numpy as np
import pytest
from PIL import Image
from written import SHAPE, save, write, zeros

from precondqsm_bids.interfaces.derivatives import MOST_ECHOES, echo_planes
from precondqsm_bids.numerics.constants import hz_per_ppm
from precondqsm_bids.numerics.echo_phase import left_phase
from precondqsm_bids.outputs.slices import EchoPlanes, _of_echoes

TE = np.array([3e-3, 7e-3, 11e-3, 15e-3])
TO_RAD = 2 * np.pi * hz_per_ppm(3.0) * TE
OWN = {
    'constant': [0.3, -0.3, 0.25, -0.25],
    'gradient': [[0.01, 0, 0.004], [-0.01, 0, 0], [0, 0.02, 0], [0, 0, -0.003]],
    'size': [0.3, 0.3, 0.3, 0.3],
}
ZOOMS = np.array([1.0, 2.0, 3.0])
INDEX = np.indices(SHAPE)
FIELD = np.float32(0.3 * np.sin(INDEX[0] / 7) + 0.01 * INDEX[2])
R2STAR = np.full(SHAPE, 20, np.float32)
MASK = np.zeros(SHAPE, np.uint8)
MASK[3:15, 4:20, 5:25] = 1


def phases():
    """Phase of each echo with an offset, the field and what is its own, rad, and its own."""
    centre = np.argwhere(MASK).mean(axis=0)
    place = (np.moveaxis(INDEX, 0, -1) - centre) * ZOOMS
    own = np.array(OWN['constant']) + place @ np.array(OWN['gradient']).T
    return 0.7 + 0.03 * INDEX[1][..., None] + FIELD[..., None] * TO_RAD + own, own


def turned(phase):
    """On the circle."""
    return np.angle(np.exp(1j * phase))


def planes(files, index, **fit):
    record = {'echo_phase': OWN, 'echo_times': TE.tolist(), 'field_strength': 3.0, **fit}
    maps = {'total_field': FIELD, 'r2star': R2STAR, 'roi_mask': MASK}
    return echo_planes(files, record, maps, ZOOMS, index)


@pytest.mark.parametrize('order', [(0, 1, 2), (2, 0, 1)], ids=['as seen', 'sagittal'])
@pytest.mark.parametrize('flip', [1, -1])
@pytest.mark.parametrize('sign', [1, -1])
@pytest.mark.parametrize('alternating', [None, 0, 2])
def test_nothing_is_left_of_a_phase_that_is_explained(order, flip, sign, alternating, tmp_path):
    """Codes of 4096 to the turn, of either sign, slices of alternating sign, any axes stored."""
    phase, own = phases()
    if alternating is not None:
        phase = phase + np.pi * (INDEX[alternating] % 2)[..., None]
    codes = np.rint(sign * phase * 4096 / (2 * np.pi)) % 4096
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for stored, axis in enumerate(order):
        affine[axis, stored] = ZOOMS[axis] * (flip if stored == 0 else 1)
    stored = np.transpose(codes, (*order, 3)).astype(np.int16)[::flip]
    files = [save(tmp_path, f'phase{e}', stored[..., e], affine) for e in range(len(TE))]
    axes = [] if alternating is None else [order.index(alternating)]
    found = planes(files, 9, phase_turn=4096.0, phase_sign=sign, alternating_axes=axes)
    assert np.abs(found.left).max() < 2e-3
    assert np.abs(turned(found.found - found.left - own[:, :, 9])).max() < 1e-5
    assert found.titles == ('echo 1, 3 ms', 'echo 2, 7 ms', 'echo 3, 11 ms', 'echo 4, 15 ms')


def test_motion_between_the_echoes_is_left():
    phase, own = phases()
    moved = phase.copy()
    moved[..., 2:] = np.roll(moved[..., 2:], 3, axis=0)
    shares = R2STAR[..., None] * TE
    still = left_phase(phase, TO_RAD, FIELD, shares, own)
    left = left_phase(moved, TO_RAD, FIELD, shares, own)
    assert np.abs(still).max() < 1e-3
    assert np.median(np.abs(left[3:15, ..., 3])) > 0.1


def test_eight_of_many_echoes_are_read(tmp_path):
    file = save(tmp_path, 'phase', np.zeros(SHAPE, np.float32), np.eye(4))
    times = 2e-3 * np.arange(1, 21)
    own = {'constant': [0.0] * 20, 'gradient': [[0.0] * 3] * 20}
    found = planes([file] * 20, 3, echo_phase=own, echo_times=times)
    assert len(found.titles) == found.left.shape[2] == MOST_ECHOES
    assert (found.titles[0], found.titles[-1]) == ('echo 1, 2 ms', 'echo 20, 40 ms')


def test_rows_have_one_window_and_what_is_small_one_of_its_own():
    inside = np.ones((5, 6), bool)
    found, left = np.full((5, 6, 3), 0.5), np.full((5, 6, 3), 0.06)
    rows = _of_echoes(EchoPlanes(('a', 'b', 'c'), found, left), inside)
    assert [row.limits for row in rows] == [(-1.5, 1.5), (-1.5, 1.5), (-0.18, 0.18)]
    assert [row.ends[1] for row in rows] == ['1.5 rad', '1.5 rad', '0.18 rad']
    (row,) = _of_echoes(EchoPlanes(('a', 'b', 'c'), left, left), inside)
    assert 'nothing was taken off' in row.title


@pytest.mark.parametrize('many', [True, False])
def test_node_draws_the_phase_of_three_echoes_and_more(many, tmp_path):
    echo = save(tmp_path, 'echo', np.zeros(SHAPE, np.int16), np.eye(4))
    fit = {'echo_times': TE.tolist(), 'field_strength': 3.0, 'echo_phase': OWN if many else None}
    maps = zeros(tmp_path, np.eye(4))
    maps['r2star'] = maps['total_field']
    echoes = {'echo_magnitude': [echo] * 4, 'echo_phase': [echo] * 4}
    facts = {'sources': [], 'echo_times': TE.tolist(), 'field_strength': 3.0}
    folder = write(maps, tmp_path / 'out', record={'echo_fit': fit}, facts=facts, **echoes)
    path = folder / 'sub-01_desc-echoslices_MEGRE.png'
    assert path.is_file() == many
    if many:
        with Image.open(path) as image:
            assert image.width <= 1100
