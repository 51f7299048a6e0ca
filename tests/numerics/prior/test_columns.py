"""Coefficients on lattices: the products of hats against a loop, and what they can describe."""

import numpy as np
import pytest

from precondqsm_bids.numerics.dipole import Geometry, forward_field
from precondqsm_bids.numerics.prior.basis import constant_parcels
from precondqsm_bids.numerics.prior.columns import Columns
from precondqsm_bids.numerics.prior.contrast import SCALES, Scale, contrast_cells, node_spacing
from precondqsm_bids.numerics.prior.fit import FitOptions, fit_prior
from precondqsm_bids.numerics.prior.lattice import hats
from precondqsm_bids.numerics.solver import DipoleSystem
from tests.numerics.prior.test_fit import spread
from tests.shared.operators import assert_adjoint

SHAPE, VOXEL_SIZE, B0_DIR = (13, 14, 11), (1.0, 1.2, 2.0), (0.0, 0.0, 1.0)
POINTS = np.stack(np.indices(SHAPE), axis=-1) - [5.5, 6.5, 5]
MASK = np.sum((POINTS / [6, 6, 5]) ** 2, axis=-1) < 1


@pytest.fixture(scope='module')
def bases():
    """Cells over the whole region and in windows, parcels without overlaps, in turn."""
    rng = np.random.default_rng(0)
    contrasts = [rng.gamma(2, 10, SHAPE), rng.normal(size=SHAPE)]
    windows, whole, fine = contrast_cells(
        contrasts,
        MASK,
        VOXEL_SIZE,
        [Scale(0.6, (3, 2)), Scale(np.inf, (4, 3)), Scale(0.25, (2, 2))],
    )
    parcels = constant_parcels(np.floor(POINTS / 4) @ [1, 100, 10000], MASK)
    holes = parcels._replace(labels=np.where(POINTS[..., 0] > 2, -1, parcels.labels))
    return [windows, whole, holes, fine]


@pytest.fixture(scope='module')
def columns(bases):
    count = sum(basis.parcels for basis in bases)
    size = np.random.default_rng(1).uniform(0.5, 2, count)
    return Columns(bases, MASK, DipoleSystem(MASK, VOXEL_SIZE, B0_DIR), size, np.zeros(count))


@pytest.mark.parametrize('factor', [0.04, 10.0])
def test_windows_follow_the_size_in_the_header(factor):
    value = np.random.default_rng(0).normal(size=SHAPE)
    scaled = np.multiply(VOXEL_SIZE, factor)
    for scale in SCALES[1:]:
        (here,), (there,) = (
            contrast_cells([value], MASK, size, [scale]) for size in (VOXEL_SIZE, scaled)
        )
        np.testing.assert_array_equal(here.lattice.used, there.lattice.used)
        for one, other in zip(here.lattice.axes, there.lattice.axes, strict=True):
            places = (axis.lower + axis.fraction for axis in (one, other))
            np.testing.assert_allclose(*places, atol=1e-5)
    # No window is narrower than two voxels, however few there are
    assert node_spacing(SCALES[-1], MASK, scaled) == pytest.approx(2 * factor * 2.4 ** (1 / 3))


def box(volume):
    first, second, third = np.nonzero(MASK)
    part = tuple(slice(i.min(), i.max() + 1) for i in (first, second, third))
    return volume[part]


def transposed(columns, values):
    """Of a map of the mask's box."""
    for i, planes in enumerate(columns.planes):
        columns.collect(i, values[planes].reshape(-1))
    return columns.transposed()


def test_map_equals_the_loop_over_nodes_and_cells(bases, columns):
    values = np.random.default_rng(2).normal(size=columns.size.size)
    parts = np.split(values * columns.size, np.cumsum([b.parcels for b in bases])[:-1])
    expected = sum(spread(b, part, MASK) for b, part in zip(bases, parts, strict=True))
    found = columns.chi(values).reshape(box(MASK).shape)
    np.testing.assert_allclose(found, box(expected), atol=1e-5)


def test_transpose_is_the_adjoint(columns):
    shape = box(MASK).shape

    def seen(values):
        values = values.copy()
        for here, directions in columns.unseen:
            values[here] -= directions @ (directions.T @ values[here])
        return values

    assert_adjoint(
        lambda values: columns.chi(seen(values)).reshape(shape),
        lambda volume: transposed(columns, volume),
        columns.size.shape,
        shape,
    )


def test_coefficients_are_those_that_a_voxel_has_a_part_in(bases, columns):
    # but for windows that reach no further than their own edge
    some = np.random.default_rng(3).uniform(size=MASK.shape) * MASK
    reached = np.abs(transposed(columns, box(some).astype(np.float32))) > 1e-6
    assert reached.mean() > 0.9


def test_hats_sum_to_one_and_are_symmetric():
    coordinate = np.arange(-10, 11) * 1.3
    axis = hats(coordinate, slice(2, 19), 4.0)
    matrix = axis.matrix(slice(2, 19)).toarray()
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-6)
    assert axis.nodes == 7
    half = matrix[:, :-1] if not matrix[:, -1].any() else matrix
    np.testing.assert_allclose(half[::-1, ::-1], half, atol=1e-6)
    np.testing.assert_allclose(matrix[8], np.eye(1, 7, 3)[0], atol=1e-6)  # a node at the centre


def test_each_scale_has_its_expected_size():
    value = np.random.default_rng(0).gamma(2, 10, SHAPE)
    cells = contrast_cells([value], MASK, VOXEL_SIZE)
    assert [basis.gain[0] for basis in cells] == [scale.size for scale in SCALES]


def test_function_of_contrast_that_varies_smoothly_over_space_is_recovered():
    shape, voxel_size = (40, 40, 32), (2.0, 2.0, 2.0)
    x, y, z = np.indices(shape)
    mask = np.ones(shape, bool)
    contrast = np.random.default_rng(0).integers(0, 2, (10, 10, 8)).repeat(4, 0)
    contrast = contrast.repeat(4, 1).repeat(4, 2).astype(float)
    step = 0.05 + 0.05 * np.sin(x / 9) * np.cos(y / 11 + z / 13)
    field = forward_field(contrast * step, voxel_size, B0_DIR)
    (basis,) = contrast_cells([contrast], mask, voxel_size, [Scale(16 / 74.3, (2,))])
    result = fit_prior(
        field, [basis], Geometry(mask, voxel_size, B0_DIR), options=FitOptions(inner_size=0.05)
    )
    nodes = np.zeros(basis.lattice.shape)
    nodes.flat[basis.lattice.used] = result.coefficients[0]
    # What both cells have in common may be the field of surroundings: the step between them.
    found = nodes[..., 1] - nodes[..., 0]
    for axis in basis.lattice.axes:
        found = np.moveaxis(np.tensordot(axis.matrix(slice(None)).toarray(), found, (1, 0)), 0, -1)
    inner = (slice(4, -4),) * 3
    np.testing.assert_allclose(found[inner], step[inner], atol=0.02)


def test_windows_add_no_polynomial_of_second_degree(columns):
    values = transposed(columns, box(np.random.default_rng(4).normal(size=SHAPE) * MASK))
    assert len(columns.hats) == 2
    for part in columns.hats:
        alone = np.zeros_like(values)
        alone[part.here] = values[part.here]
        chi = columns.chi(alone).reshape(box(MASK).shape)[box(MASK)]
        x, y, z = POINTS[MASK].T
        for term in (1 + 0 * x, x, y, z, x * y, y * z, x * z, x * x, y * y, z * z):
            size = np.linalg.norm(term) * np.linalg.norm(chi)
            assert abs(float(term @ chi)) < 1e-4 * size
