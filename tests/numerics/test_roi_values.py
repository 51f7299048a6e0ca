"""Region values by hand, and cylinders whose field is known in closed form."""

import numpy as np
import pytest

from precondqsm_bids.numerics.roi_values import (
    cylinder_reference,
    find_cylinder,
    label_boxes,
    region_values,
    surrounding_label,
)

RADIUS, LENGTH = 8.0, 60.0


def scanner_points(shape, affine):
    return np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]


def make_affine(shape, voxel_size=(1.0, 1.0, 1.0), tilt=0.0):
    """Grid centred on the isocentre, tilted about the scanner's x by ``tilt`` degrees."""
    c, s = np.cos(np.radians(tilt)), np.sin(np.radians(tilt))
    affine = np.eye(4)
    affine[:3, :3] = np.array([[1, 0, 0], [0, c, -s], [0, s, c]]) @ np.diag(voxel_size)
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def rod(shape, affine, theta, centre=(0.0, 0.0, 0.0)):
    """Mask of a cylinder at ``theta`` degrees to B0, and the geometry of its field.

    Outside, an infinite cylinder gives ``chi / 2 sin^2 theta (R / rho)^2 cos 2 phi``, with phi
    from the plane of the axis and B0; inside ``chi / 2 (cos^2 theta - 1/3)``: Haacke 1999.
    """
    t = np.radians(theta)
    axis = np.array([np.sin(t), 0, np.cos(t)])
    in_plane = np.array([np.cos(t), 0, -np.sin(t)])
    offset = scanner_points(shape, affine) - np.array(centre)
    along = offset @ axis
    across = offset - along[..., None] * axis
    rho2 = np.sum(across**2, axis=-1)
    cos2phi = np.divide(
        2 * (across @ in_plane) ** 2, rho2, out=np.ones_like(rho2), where=rho2 > 0
    ) - np.where(rho2 > 0, 1, 0)
    inside = rho2 <= RADIUS**2
    outside_field = 0.5 * np.sin(t) ** 2 * RADIUS**2 / np.maximum(rho2, 1) * cos2phi
    field = np.where(inside, 0.5 * (np.cos(t) ** 2 - 1 / 3), outside_field)
    return inside & (np.abs(along) <= LENGTH / 2), field


def test_region_values_by_hand():
    values = np.array([[1.0, 3.0, 8.0], [np.nan, 100.0, np.inf]])
    region = np.array([[1, 1, 1], [1, 0, 1]], dtype=bool)
    result = region_values(values, region)
    assert result.mean == 4.0
    assert result.sd == pytest.approx(np.sqrt(26 / 3))
    assert result.median == 3.0
    assert result.n_voxels == 3


def test_no_voxel_left_is_nan_and_zero():
    result = region_values(np.ones(3), np.zeros(3, bool))
    assert np.isnan([result.mean, result.sd, result.median]).all()
    assert result.n_voxels == 0


def test_surrounding_label():
    labels = np.ones((6, 6, 6), int)
    labels[2:4, 2:4, 2:4] = 7
    assert surrounding_label(labels) == 1
    labels[:3] = 0
    labels[0, 0, 0] = 7
    assert surrounding_label(labels) is None


@pytest.mark.parametrize(
    'voxel_size,tilt,theta', [((1, 1, 1), 0, 0), ((1, 1.2, 2), 0, 20), ((1, 1, 1), 25, 25)]
)
def test_cylinder_is_recognised_with_its_size_and_direction(voxel_size, tilt, theta):
    shape = tuple(int(72 / v) for v in voxel_size)
    affine = make_affine(shape, voxel_size, tilt)
    mask, _ = rod(shape, affine, theta)
    cylinder = find_cylinder(mask, affine)
    assert cylinder.radius == pytest.approx(RADIUS, rel=0.03)
    assert cylinder.length == pytest.approx(LENGTH, rel=0.04)
    assert np.degrees(np.arccos(abs(cylinder.axis[2]))) == pytest.approx(theta, abs=0.5)
    assert np.allclose(cylinder.centre, 0, atol=0.3)


@pytest.mark.parametrize('kind', ['short', 'hollow', 'square', 'flat', 'two pieces', 'tiny'])
def test_other_shapes_are_no_cylinders(kind):
    x, y, z = np.indices((40, 40, 90)) - np.array([19.5, 19.5, 44.5]).reshape(3, 1, 1, 1)
    rho = np.hypot(x, y)
    mask = {
        'short': (rho < 8) & (abs(z) < 20),
        'hollow': (rho < 8) & (rho > 5) & (abs(z) < 40),
        'square': (abs(x) < 8) & (abs(y) < 8) & (abs(z) < 44),
        'flat': (np.hypot(x, 1.6 * y) < 8) & (abs(z) < 40),
        'two pieces': (rho < 8) & (abs(z) < 44) & (abs(z) > 15),
        'tiny': (rho < 1) & (abs(z) < 4),
    }[kind]
    assert mask.any()
    assert find_cylinder(mask, np.eye(4)) is None


@pytest.mark.parametrize('theta,tilt', [(0, 0), (0, 20), (25, 0), (90, 0)])
def test_reference_is_the_closed_form_under_a_quadratic_background(theta, tilt):
    shape = (72, 72, 72)
    affine = make_affine(shape, tilt=tilt)
    mask, unit_field = rod(shape, affine, theta)
    x, y, z = np.moveaxis(scanner_points(shape, affine), -1, 0) / 36
    background = 0.7 + 0.4 * x - 0.3 * y + 0.5 * z + 0.3 * x * y - 0.2 * x * z
    background = background + 0.4 * (x**2 - y**2) + 0.25 * (2 * z**2 - x**2 - y**2)
    noise = np.random.default_rng(1).normal(scale=0.01, size=shape)
    field = 0.9 * unit_field + background + noise
    cylinders = {3: find_cylinder(mask, affine)}
    result = cylinder_reference(field, 3, cylinders, affine, np.ones(shape, bool))
    assert result.chi == pytest.approx(0.9, abs=0.01)
    assert result.angle == pytest.approx(theta, abs=0.5)
    factor = np.cos(np.radians(theta)) ** 2 - 1 / 3
    assert result.sd == pytest.approx(2 * 0.01 / abs(factor), rel=0.2)
    assert result.note == ''


def test_reference_ignores_wrapped_voxels():
    shape = (48, 48, 72)
    affine = make_affine(shape)
    mask, unit_field = rod(shape, affine, 0)
    field = -0.4 * unit_field + np.random.default_rng(2).normal(scale=0.005, size=shape)
    field[np.random.default_rng(3).random(shape) < 0.05] += 2.8
    result = cylinder_reference(
        field, 1, {1: find_cylinder(mask, affine)}, affine, np.ones(shape, bool)
    )
    assert result.chi == pytest.approx(-0.4, abs=0.005)


def test_a_neighbour_does_not_enter_the_ring():
    shape = (72, 40, 72)
    affine = make_affine(shape)
    first, first_field = rod(shape, affine, 0, centre=(-11, 0, 0))
    second, second_field = rod(shape, affine, 0, centre=(11, 0, 0))
    cylinders = {1: find_cylinder(first, affine), 2: find_cylinder(second, affine)}
    field = 0.3 * first_field + 1.5 * second_field
    everywhere = np.ones(shape, bool)
    for label, chi in ((1, 0.3), (2, 1.5)):
        result = cylinder_reference(field, label, cylinders, affine, everywhere)
        assert result.chi == pytest.approx(chi, abs=1e-4)


def test_magic_angle_is_refused_with_the_reason():
    shape = (72, 40, 72)
    affine = make_affine(shape)
    mask, unit_field = rod(shape, affine, 52)
    result = cylinder_reference(
        unit_field, 1, {1: find_cylinder(mask, affine)}, affine, np.ones(shape, bool)
    )
    assert np.isnan(result.chi)
    assert 'magic angle' in result.note
    assert '52.' in result.note or '51.' in result.note


def test_too_few_voxels_are_refused_with_the_numbers():
    shape = (40, 40, 72)
    affine = make_affine(shape)
    mask, unit_field = rod(shape, affine, 0)
    result = cylinder_reference(unit_field, 1, {1: find_cylinder(mask, affine)}, affine, mask)
    assert np.isnan(result.chi)
    assert '0 in the medium' in result.note


def test_boxes_of_labels_however_large_their_numbers():
    labels = np.zeros((4, 5, 6), np.int64)
    labels[1:3, 2, 1:], labels[0, 0, 0], labels[3, 4, 5] = 3, 7, -2
    expected = {3: np.s_[1:3, 2:3, 1:6], 7: np.s_[0:1, 0:1, 0:1]}
    assert label_boxes(labels) == expected
    large = {2**40 * i: box for i, box in expected.items()}
    assert label_boxes(2**40 * labels) == large
    assert label_boxes(0 * labels) == {}
