"""Closed-form fields against textbook limits, brute force and each other's derivatives."""

import numpy as np
import pytest

from precondqsm_bids.phantom.fields import (
    CylinderOnGrid,
    CylinderTable,
    cylinder_derivatives,
    cylinder_field,
    sphere_field,
)

RADIUS, HEIGHT = 8.0, 60.0


def direction(tilt, azimuth=90.0):
    tilt, azimuth = np.radians([tilt, azimuth])
    return np.array([np.sin(tilt) * np.cos(azimuth), np.sin(tilt) * np.sin(azimuth), np.cos(tilt)])


def dipole(points, b0_dir):
    """Field of a point dipole of unit volume and susceptibility."""
    r2 = np.sum(points**2, axis=-1)
    return (3 * (points @ b0_dir) ** 2 / r2 - 1) / (4 * np.pi * r2**1.5)


@pytest.mark.parametrize('tilt, expected', [(0, 1 / 3), (90, -1 / 6), (54.7356, 0), (30, 5 / 24)])
def test_centre_of_long_cylinder(tilt, expected):
    # (3 cos^2 - 1) / 6
    assert cylinder_field([1.0, 2.0, 3.0], RADIUS, 1e5, direction(tilt)) == pytest.approx(
        expected, abs=1e-5
    )


@pytest.mark.parametrize('tilt', [30, 90])
def test_outside_of_long_cylinder(tilt):
    # a^2 sin^2 cos(2 azimuth) / (2 rho^2), azimuth from the projection of B0
    b0_dir = direction(tilt)
    for azimuth in (0.0, 0.4, 1.3):
        point = 20 * np.array([np.sin(azimuth), np.cos(azimuth), 0])
        expected = RADIUS**2 / 400 * np.sin(np.radians(tilt)) ** 2 * np.cos(2 * azimuth) / 2
        assert cylinder_field(point, RADIUS, 1e5, b0_dir) == pytest.approx(expected, abs=1e-5)


def test_flat_disc_across_b0():
    # demagnetising factor 1: -1 + 1/3
    assert cylinder_field([0, 0, 0], 1e4, 1.0, [0, 0, 1]) == pytest.approx(-2 / 3, abs=1e-3)


@pytest.mark.parametrize('z', [0.0, 12.0, 29.9, 30.1, 47.0, -70.0])
def test_on_axis(z):
    # B of a solenoid on its axis: half the difference of the cosines to both ends
    up, down = z + HEIGHT / 2, z - HEIGHT / 2
    b_z = (up / np.hypot(up, RADIUS) - down / np.hypot(down, RADIUS)) / 2
    inside = abs(z) < HEIGHT / 2
    expected = b_z - inside + inside / 3
    assert cylinder_field([0, 0, z], RADIUS, HEIGHT, [0, 0, 1]) == pytest.approx(
        expected, abs=1e-7
    )


@pytest.mark.parametrize('tilt, azimuth', [(0, 0), (30, 90), (54.7, 20), (90, 45)])
def test_brute_force_sum_of_dipoles(tilt, azimuth):
    b0_dir = direction(tilt, azimuth)
    side = (np.arange(-40, 40) + 0.5) * RADIUS / 40
    along = (np.arange(-100, 100) + 0.5) * HEIGHT / 200
    x, y, z = np.meshgrid(side, side, along, indexing='ij')
    disc = np.hypot(x, y) <= RADIUS
    sources = np.stack([x[disc], y[disc], z[disc]], axis=-1)
    volume = np.pi * RADIUS**2 * HEIGHT / len(sources)
    points = [[0, 0, 36], [3, 12, 5], [12, -4, 31], [0, 20, -40], [7, 2, 34]]
    expected = [volume * dipole(np.array(p) - sources, b0_dir).sum() for p in points]
    np.testing.assert_allclose(
        cylinder_field(points, RADIUS, HEIGHT, b0_dir), expected, rtol=0, atol=2e-4
    )


@pytest.mark.parametrize('tilt', [0, 40, 90])
def test_far_field_is_a_dipole(tilt):
    points = 2000 * np.array([[0.6, 0, 0.8], [0, 1, 0], [0, 0, 1], [0.48, 0.64, -0.6]])
    expected = np.pi * RADIUS**2 * HEIGHT * dipole(points, direction(tilt))
    actual = cylinder_field(points, RADIUS, HEIGHT, direction(tilt))
    np.testing.assert_allclose(actual, expected, atol=2e-3 * np.abs(expected).max())


def test_derivatives_belong_to_one_potential():
    # d/drho phi_rho = phi_rho_rho = -[inside] - phi_zz - phi_rho / rho; d/dz phi_rho = phi_rho_z
    rho = np.array([0.01, 2.0, 7.5, 9.0, 30.0, 3.0, 12.0])
    z = np.array([5.0, 29.0, 0.0, 20.0, 50.0, -33.0, -30.0])
    d = cylinder_derivatives(rho, z, RADIUS, HEIGHT)
    step = 1e-4

    def slope(rho, z):
        return rho * cylinder_derivatives(rho, z, RADIUS, HEIGHT).rho_over_rho

    along_rho = (slope(rho + step, z) - slope(rho - step, z)) / (2 * step)
    along_z = (slope(rho, z + step) - slope(rho, z - step)) / (2 * step)
    np.testing.assert_allclose(along_rho, -1.0 * d.inside - d.zz - d.rho_over_rho, atol=1e-6)
    np.testing.assert_allclose(along_z, d.rho_z, atol=1e-6)


def test_closed_forms_are_finite_everywhere():
    rho = np.array([0.0, 1e-12, RADIUS, RADIUS, np.nextafter(RADIUS, 9), 1e3])
    z = np.array([0.0, 30.0, 30.0, 0.0, -30.0, 1e3])
    for values in cylinder_derivatives(rho, z, RADIUS, HEIGHT):
        assert np.isfinite(values).all()


@pytest.mark.parametrize('tilt, azimuth', [(0, 0), (35, 90), (90, 10)])
def test_grid_equals_closed_form(tilt, azimuth):
    b0_dir = direction(tilt, azimuth)
    x, y = np.linspace(-25, 31, 57) + 0.3, np.linspace(-40, 20, 41) - 0.2
    z = np.array([-60.0, -30.25, -29.75, 0.25, 29.99, 31.0])
    table = CylinderTable(z, RADIUS, HEIGHT, np.hypot(x, y[:, None]).max())
    grid = CylinderOnGrid(table, x, y, b0_dir)
    for k, height in enumerate(z):
        points = np.stack(np.broadcast_arrays(x[:, None], y[None], height), axis=-1)
        exact = cylinder_field(points, RADIUS, HEIGHT, b0_dir)
        np.testing.assert_allclose(grid.field(k), exact, rtol=0, atol=5e-5)
        inside = (np.hypot(x[:, None], y) <= RADIUS) & (abs(height) <= HEIGHT / 2)
        np.testing.assert_array_equal(grid.inside(k), inside)


def test_sphere():
    b0_dir = direction(25)
    perpendicular = np.array([1.0, 0, 0])
    assert sphere_field(3 * b0_dir, 3.0, b0_dir) == pytest.approx(0, abs=1e-12)
    assert sphere_field(6 * b0_dir, 3.0, b0_dir) == pytest.approx(2 / 3 / 8)
    assert sphere_field(6 * perpendicular, 3.0, b0_dir) == pytest.approx(-1 / 3 / 8)
    points = np.array([[4.0, 1, 2], [0, -7, 3]])
    np.testing.assert_allclose(
        sphere_field(points, 3.0, b0_dir), 36 * np.pi * dipole(points, b0_dir)
    )
