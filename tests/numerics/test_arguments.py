"""What the public functions do with arrays as people have them, and with what is wrong."""

import inspect

import numpy as np
import pytest

from precondqsm_bids import numerics
from precondqsm_bids.method import Method
from precondqsm_bids.numerics import Companions, Geometry, GivenField, MapInputs, Scan

N = 20
X = np.indices((N, N, N)) - (N - 1) / 2
BALL = (X**2).sum(axis=0) < 70
CHI = np.where((X[0] > 0) & (abs(X[1]) < 4), 0.2, 0) * BALL
SIZE, B0 = (2.0, 2.0, 2.0), (0.0, 0.0, 1.0)
LOCAL = numerics.forward_field(CHI, SIZE, B0) * BALL
SD = np.full(BALL.shape, 1e-3)
TE = np.array([2e-3, 4e-3, 6e-3])
R2STAR = 20 + 200 * CHI
MAGNITUDE = (BALL[..., None] * np.exp(-TE * R2STAR[..., None])).astype(np.float32) + 0.01
PHASE = np.angle(np.exp(2j * np.pi * 63.864 * LOCAL[..., None] * TE)).astype(np.float32)
GEOMETRY = Geometry(BALL, SIZE, B0)
ARM = Method().preconditioned
BASIS = numerics.whole_map(CHI, BALL)
FORM = numerics.closed_form(GEOMETRY)

CALLS = {
    'ambiguous_fraction': (LOCAL, SD, TE, 1.5, BALL),
    'bias_field': (MAGNITUDE[..., 0], R2STAR, BALL),
    'bodies': (BALL,),
    'class_means': (CHI, numerics.tissue_parcels((CHI > 0) + 1 * BALL, 2, BALL), ('a', 'b')),
    'closed_form': (GEOMETRY,),
    'clusters': (CHI, BALL),
    'compare': (LOCAL, CHI, LOCAL, GEOMETRY, SD),
    'constant_parcels': ((CHI > 0) + 1, BALL),
    'contrast_cells': ([R2STAR, MAGNITUDE[..., 0]], BALL, SIZE),
    'field_of_one_echo': (MAGNITUDE[..., 2], PHASE[..., 2], 6e-3, 1.5, BALL),
    'find_brain': (MAGNITUDE[..., 0], BALL, SIZE),
    'fit_echoes': (MAGNITUDE, PHASE, TE, 1.5, BALL),
    'fit_prior': (LOCAL, [BASIS], GEOMETRY, SD),
    'flatten_field': (LOCAL, CHI, BALL, SIZE, B0),
    'forward_field': (CHI, SIZE, B0, BALL),
    'invert': (LOCAL, GEOMETRY, ARM),
    'l2_inversion': (LOCAL, BALL, SIZE, B0),
    'map_scale': (CHI, BALL),
    'map_uncertainty': (MapInputs(LOCAL, SD, CHI, CHI, 1.0), GEOMETRY),
    'noise_inside': (MAGNITUDE[..., 0], BALL),
    'noise_weights': (SD, BALL),
    'pdf': (LOCAL, BALL, SIZE, B0),
    'quality_mask': (SD, BALL),
    'region_of_interest': (MAGNITUDE[..., 0], SIZE),
    'shape_mask': (MAGNITUDE[..., 0],),
    'r2prime_prior': (R2STAR, BALL, 3.0),
    'recombine': (CHI, CHI, BALL, BALL),
    'remove_background': (LOCAL, GEOMETRY, ARM),
    'shape_field': (BALL, SIZE, B0, BALL),
    'surface_fraction': (BALL, BALL),
    'susceptibility_map': (CHI, BALL),
    'tissue_parcels': ((CHI > 0) + 1 * BALL, 2, BALL),
    'tv_inversion': (FORM, LOCAL, 1.0),
    'vsharp': (LOCAL, GEOMETRY),
    'whole_map': (CHI, BALL),
    'without_outliers': (LOCAL, BALL),
}


ALONE = {'bodies', 'region_of_interest', 'shape_mask'}
"""Functions of one image, which may have any matrix."""


def call(name, *args):
    return getattr(numerics, name)(*args)


def arrays(value):
    """All arrays of a result, one after the other."""
    if isinstance(value, np.ndarray):
        return [value]
    if isinstance(value, float | int | np.generic):
        return [np.asarray(value)]
    return [array for part in value for array in arrays(part)] if isinstance(value, tuple) else []


def changed(change):
    """Calls with one argument changed, where ``change`` gives another."""
    return [
        pytest.param(name, (*args[:i], other, *args[i + 1 :]), id=f'{name}-{i}')
        for name, args in CALLS.items()
        for i, value in enumerate(args)
        if (other := change(value)) is not None
    ]


def as_stored(value):
    """A mask as a file has it, alone or in a geometry."""
    if isinstance(value, Geometry):
        return value._replace(mask=value.mask.astype(np.uint8))
    if isinstance(value, np.ndarray) and value.dtype == bool:
        return 255 * value.astype(np.uint8)
    return None


@pytest.mark.parametrize(('name', 'args'), changed(as_stored))
def test_a_mask_of_numbers_is_that_of_booleans(name, args):
    expected, found = arrays(call(name, *CALLS[name])), arrays(call(name, *args))
    assert len(expected) == len(found)
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_array_equal(one, other)


def is_strength(value):
    return isinstance(value, float) and value in (1.5, 3.0)


def is_image(value):
    return isinstance(value, np.ndarray) and value.ndim >= 3


@pytest.mark.parametrize(
    ('name', 'args'),
    changed(lambda value: value.tolist() if is_image(value) and value.ndim == 3 else None),
)
def test_lists_are_arrays(name, args):
    for one, other in zip(
        arrays(call(name, *CALLS[name])), arrays(call(name, *args)), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


WRONG = {
    'of another matrix': lambda value: value[1:] if is_image(value) else None,
    'a slice': lambda value: value[:, :, 9] if is_image(value) else None,
    'complex': lambda value: value + 0j if is_image(value) else None,
    'words': lambda value: np.full(value.shape, 'a') if is_image(value) else None,
    'a mask of labels': lambda value: (
        np.arange(value.size).reshape(value.shape)
        if is_image(value) and value.dtype == bool
        else None
    ),
    'voxels of no size': lambda value: (0.0, 1.0, 1.0) if value is SIZE else None,
    'of two axes': lambda value: (1.0, 1.0) if value is SIZE else None,
    'a geometry of no size': lambda value: (
        value._replace(voxel_size=(1, 1, -1)) if isinstance(value, Geometry) else None
    ),
    'no field strength': lambda value: 0.0 if is_strength(value) else None,
    'a field strength of words': lambda value: '3' if is_strength(value) else None,
}


@pytest.mark.parametrize(
    ('name', 'args'),
    [
        pytest.param(*case.values, id=f'{case.id} {word}')
        for word, change in WRONG.items()
        for case in changed(change)
        if not (word == 'of another matrix' and case.values[0] in ALONE)
    ],
)
def test_what_is_wrong_is_a_value_error(name, args):
    with pytest.raises(ValueError, match=r'[a-z]') as caught:
        call(name, *args)
    inside = ('operands', 'broadcast', 'boolean index', 'zip()', 'argument 1', 'dimension 0')
    assert not any(words in str(caught.value) for words in inside), caught.value


def unknown(value):
    """A field or a susceptibility that is not known in one voxel of the region."""
    if value is LOCAL or value is CHI or value is SD:
        value = value.copy()
        value[N // 2, N // 2, N // 2] = np.nan
        return value
    return None


NAN_IS_READ = {'ambiguous_fraction', 'class_means', 'tv_inversion'}


@pytest.mark.parametrize(
    ('name', 'args'), [case for case in changed(unknown) if case.values[0] not in NAN_IS_READ]
)
def test_fields_and_maps_are_known_in_the_region(name, args):
    with pytest.raises(ValueError, match='finite'):
        call(name, *args)


def test_every_public_function_of_a_mask_is_checked():
    for name in numerics.__all__:
        function = getattr(numerics, name)
        if inspect.isfunction(function) and {'mask', 'geometry', 'scan'} & set(
            inspect.signature(function).parameters
        ):
            assert hasattr(function, '__wrapped__'), name


SCAN = Scan(MAGNITUDE, PHASE, TE, 1.5, SIZE)
GIVEN = GivenField(LOCAL, MAGNITUDE[..., 0], 1.5, SIZE)


@pytest.mark.parametrize(
    ('change', 'says'),
    [
        ({'magnitude': MAGNITUDE[:, :, 9], 'phase': PHASE[:, :, 9]}, 'must be .X, Y, Z, echoes.'),
        ({'magnitude': MAGNITUDE[..., 0], 'phase': PHASE[..., 0]}, 'must be .X, Y, Z, echoes.'),
        ({'magnitude': None}, 'magnitude is missing'),
        ({'magnitude': MAGNITUDE * np.exp(1j * PHASE)}, 'magnitude has complex numbers'),
        ({'field_strength': None}, 'field_strength should be positive, in T: None'),
        ({'echo_times': 2e-3}, 'one time for each echo'),
    ],
)
def test_a_scan_that_is_none_is_refused(change, says):
    with pytest.raises(ValueError, match=says):
        numerics.precondition(SCAN._replace(**change))


@pytest.mark.parametrize(
    ('change', 'says'),
    [
        ({'total_field': LOCAL[..., None]}, r'magnitude .* and total_field .* differ in shape'),
        (
            {'total_field': LOCAL[0], 'magnitude': MAGNITUDE[0, ..., 0]},
            'total_field must have three dimensions',
        ),
        ({'magnitude': MAGNITUDE}, r'magnitude .* and total_field .* differ in shape'),
        ({'magnitude': None}, 'magnitude is missing'),
        ({'field_sd': 0.01}, r'field_sd \(\) and total_field .* differ in shape'),
        ({'sign': 0}, 'sign is 1 or -1'),
    ],
)
def test_a_given_field_that_is_none_is_refused(change, says):
    with pytest.raises(ValueError, match=says):
        numerics.precondition(GIVEN._replace(**change), Method(shape=False))


@pytest.mark.parametrize(
    ('method', 'companions', 'says'),
    [
        ({}, Companions(mask=BALL[1:]), r'mask \(19, 20, 20\) and total_field'),
        ({}, Companions(labels=1.5 * BALL), 'labels has values that are no whole numbers'),
        ({}, BALL, 'companions should be a Companions, not a ndarray'),
        ({'contrasts': ('T1w',)}, Companions(), 'the contrast T1w, which is not given'),
        ({'prior': 'r2prime'}, Companions(), r'r2prime is made of R2\*, which takes two echoes'),
        ({'prior': 'map:a'}, Companions(maps=[CHI]), 'maps should be images by name'),
        (
            {'prior': 'tissue'},
            Companions(tissue=BALL, tissue_names='ab'),
            'a name for each class, not one word',
        ),
        (
            {'reference': 'a'},
            Companions(labels=BALL, label_names=['a']),
            'label_names should be names by number',
        ),
    ],
)
def test_companions_that_are_none_are_refused(method, companions, says):
    with pytest.raises(ValueError, match=says):
        numerics.precondition(GIVEN, Method(shape=False, **method), companions)


def test_settings_that_are_none_are_refused():
    with pytest.raises(ValueError, match='method should be a Method, not a str'):
        numerics.reconstruct(GIVEN, 'contrast')


def test_contrasts_are_read_where_the_method_has_them():
    method, odd = Method(shape=False), np.random.default_rng(0).random(BALL.shape)
    alone = numerics.precondition(GIVEN, method)
    beside = numerics.precondition(GIVEN, method, Companions(contrasts={'T1w': odd}))
    np.testing.assert_array_equal(alone.flattened_field, beside.flattened_field)
    asked = numerics.precondition(
        GIVEN, Method(shape=False, contrasts=('T1w',)), Companions(contrasts={'T1w': odd})
    )
    assert not np.array_equal(alone.flattened_field, asked.flattened_field)


def test_half_precision_does_not_overflow():
    region = numerics.region_of_interest((1000 * MAGNITUDE[..., 0]).astype(np.float16), SIZE)
    assert (
        region.record
        == numerics.region_of_interest(
            (1000 * MAGNITUDE[..., 0]).astype(np.float16).astype(np.float32), SIZE
        ).record
    )


@pytest.mark.parametrize('workers', [1.5, 0, -1, '2', None])
def test_threads_are_a_whole_number(workers):
    mask = np.ones((4, 4, 4), bool)
    with pytest.raises(ValueError, match='workers should be a whole number'):
        numerics.forward_field(np.zeros(mask.shape), (1, 1, 1), (0, 0, 1), workers=workers)
    with pytest.raises(ValueError, match='workers should be a whole number'):
        numerics.closed_form(Geometry(mask, (1, 1, 1), (0, 0, 1), workers))
