"""The mask of the field's quality, against a flood by hand."""

import numpy as np
import pytest

from precondqsm_bids.numerics import quality_mask
from precondqsm_bids.numerics.field_quality import MOST_FIELD_SD


def flooded(uncertain, mask):
    """Uncertain voxels that a path of faces through uncertain ones ties to the outside: by hand.

    One step at a time from every face of a voxel that is outside the mask or the field of view.
    """
    shape, found = mask.shape, set()
    steps = [step for axis in np.eye(3, dtype=int) for step in (axis, -axis)]

    def neighbours(voxel):
        for step in steps:
            other = tuple(np.add(voxel, step))
            inside = all(0 <= i < n for i, n in zip(other, shape, strict=True))
            yield other if inside and mask[other] else None

    waiting = [
        tuple(map(int, voxel))
        for voxel in np.argwhere(uncertain & mask)
        if None in list(neighbours(tuple(voxel)))
    ]
    while waiting:
        voxel = waiting.pop()
        if voxel in found:
            continue
        found.add(voxel)
        waiting += [other for other in neighbours(voxel) if other and uncertain[other]]
    out = np.zeros(shape, bool)
    for voxel in found:
        out[voxel] = True
    return out


@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize('share', [0.1, 0.35])
def test_what_is_left_out_is_what_a_flood_from_outside_reaches(seed, share):
    rng = np.random.default_rng(seed)
    x = np.indices((12, 11, 10)) - np.array([5.5, 5, 4.5])[:, None, None, None]
    mask = (x**2).sum(0) < 5.2**2
    if seed % 2:
        mask[:, :, 4:] = True  # up to the edge of the field of view
    uncertain = rng.random(mask.shape) < share
    sd = np.where(uncertain, 0.2, 0.001)
    found = quality_mask(sd, mask)
    out = flooded(uncertain, mask)
    np.testing.assert_array_equal(found.mask, mask & ~out)
    assert found.left_out == out.sum() > 0
    assert found.enclosed == (uncertain & mask & ~out).sum()
    assert found.most_field_sd == MOST_FIELD_SD


def test_a_region_that_is_uncertain_everywhere_keeps_half_of_its_voxels_at_least():
    rng = np.random.default_rng(0)
    sd = np.exp(rng.normal(size=(12, 12, 12)))  # ppm: no field to speak of
    mask = np.ones(sd.shape, bool)
    found = quality_mask(sd, mask)
    assert found.most_field_sd == pytest.approx(3 * np.median(sd))
    assert 0.5 * mask.sum() < found.mask.sum() < mask.sum()
    assert quality_mask(0.01 + 0 * sd, mask).mask.all()
    assert found.record() == {
        'most_field_sd': found.most_field_sd, 'left_out_voxels': found.left_out,
        'enclosed_voxels': found.enclosed,
    }  # fmt: skip


def test_only_the_region_counts():
    sd = np.full((6, 6, 6), 0.01)
    sd[:, :, 0] = np.nan  # outside it is not known
    mask = np.zeros(sd.shape, bool)
    mask[1:5, 1:5, 1:5] = True
    assert (quality_mask(sd, mask).mask == mask).all()


def test_errors():
    with pytest.raises(ValueError, match='mask is empty'):
        quality_mask(np.ones((3, 3, 3)), np.zeros((3, 3, 3), bool))
    with pytest.raises(ValueError, match=r'field_sd \(3, 3, 3\) and mask \(3, 3\) differ'):
        quality_mask(np.ones((3, 3, 3)), np.ones((3, 3), bool))
