"""Interfaces load, call and save: the same arrays as the functions, and nothing else."""

import ast
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import nibabel as nb
import numpy as np
import pytest
from nipype.interfaces.base import SimpleInterface, isdefined
from scipy import ndimage

from precondqsm_bids import interfaces
from precondqsm_bids.interfaces.volumes import b0_along, geometry, load, load_echoes, save
from precondqsm_bids.method import Arm
from precondqsm_bids.numerics.background_removal import pdf, remove_background
from precondqsm_bids.numerics.coarse import CoarseRegion
from precondqsm_bids.numerics.dipole import Geometry, b0_direction, forward_field
from precondqsm_bids.numerics.dipole_inversion import invert, l2_inversion
from precondqsm_bids.numerics.echo_fit import fit_echoes
from precondqsm_bids.numerics.flattening import flatten_field
from precondqsm_bids.numerics.measure_field import measure_field
from precondqsm_bids.numerics.one_echo import field_of_one_echo
from precondqsm_bids.numerics.prior import estimate
from precondqsm_bids.numerics.prior.bias_field import bias_field
from precondqsm_bids.numerics.prior.contrast import contrast_cells
from precondqsm_bids.numerics.prior.estimate import PriorInputs, estimate_prior
from precondqsm_bids.numerics.prior.fit import FitOptions, fit_prior
from precondqsm_bids.numerics.prior.maps import map_by_tissue, susceptibility_map
from precondqsm_bids.numerics.prior.r2prime import r2prime_prior
from precondqsm_bids.numerics.prior.tissue import literature_r2, tissue_parcels
from precondqsm_bids.numerics.prior.verdict import Verdict
from precondqsm_bids.numerics.quality_mask import quality_mask
from precondqsm_bids.numerics.recombination import recombine
from precondqsm_bids.numerics.residual_inversion import Residual
from precondqsm_bids.numerics.scan import Scan
from precondqsm_bids.numerics.shape_mask import region_of_interest, shape_mask
from precondqsm_bids.numerics.solver import noise_weights
from precondqsm_bids.numerics.uncertainty import MapInputs, map_uncertainty
from precondqsm_bids.outputs.sidecars import reference_of


@pytest.fixture(autouse=True)
def counting_in_full(monkeypatch):
    """Priors of the noise here would be dropped: that is the test of the verdict."""
    monkeypatch.setattr(
        estimate,
        'judge_prior',
        lambda field, bases, geometry, *_: Verdict(
            1, 0, 1, (1,) * len(bases), (), CoarseRegion(geometry).mean(field)
        ),
    )


SHAPE, TE = (16, 18, 15), [0.002, 0.005, 0.009]
VOXEL_SIZE = (1.0, 1.2, 2.0)
STAGES = [getattr(interfaces, name) for name in interfaces.__all__]


def oblique_affine():
    """An oblique grid: nothing here may assume (0, 0, 1)."""
    c, s = np.cos(0.3), np.sin(0.3)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[1, 0, 0], [0, c, -s], [0, s, c]]) @ np.diag(VOXEL_SIZE)
    affine[:3, 3] = (-20, 30, 5)
    return affine


AFFINE = oblique_affine()
STORAGE = [[1, -1], [2, 1], [0, 1]]
"""Files have the axes of the arrays permuted and one of them reversed."""
STORED = nb.Nifti1Image(np.empty(SHAPE, np.uint8), AFFINE).as_reoriented(STORAGE)
B0_DIR = b0_direction(AFFINE)


class Data:
    """Arrays of a small object, and files of them."""

    def __init__(self, folder):
        self.folder = folder
        rng = np.random.default_rng(0)
        x, y, z = (2 * a / (n - 1) - 1 for a, n in zip(np.indices(SHAPE), SHAPE, strict=True))
        self.object = x**2 + y**2 + z**2 < 0.7
        self.mask = x**2 + y**2 + z**2 < 0.5
        self.chi = (0.5 * ((x - 0.2) ** 2 + y**2 + z**2 < 0.05)).astype(np.float32)
        self.field = (0.02 * x + 0.01 * rng.normal(size=SHAPE)).astype(np.float32)
        self.sd = rng.uniform(0.005, 0.02, SHAPE).astype(np.float32)
        self.r2star = rng.uniform(10, 60, SHAPE).astype(np.float32)
        te = np.array(TE)
        clean = self.object[..., None] * np.exp(-self.r2star[..., None] * te)
        clean = clean * np.exp(1j * (0.3 + 2 * np.pi * 127.7 * self.field[..., None] * te))
        noise = rng.normal(size=clean.shape) + 1j * rng.normal(size=clean.shape)
        echoes = 500 * (clean + 0.01 * noise)
        self.magnitude = np.abs(echoes).astype(np.float32)
        self.phase = np.angle(echoes).astype(np.float32)

    def file(self, name, array=None):
        path = self.folder / f'{name}.nii.gz'
        array = getattr(self, name) if array is None else array
        array = array.astype(np.uint8) if array.dtype == bool else array
        image = nb.Nifti1Image(array, AFFINE).as_reoriented(STORAGE)
        image.set_sform(image.affine, 1)
        nb.save(image, path)
        return str(path)

    def echoes(self, name):
        volumes = getattr(self, name)
        return [self.file(f'{name}{i}', volumes[..., i]) for i in range(len(TE))]


@pytest.fixture
def data(tmp_path):
    return Data(tmp_path)


def run(interface, tmp_path, **inputs):
    """Outputs of an interface; files as arrays, after a check of their grid."""
    folder = tmp_path / 'out'
    folder.mkdir(exist_ok=True)
    outputs = interface(**inputs).run(cwd=str(folder)).outputs.get()
    result = {}
    for name, value in outputs.items():
        if isinstance(value, str) and value.endswith(('.nii', '.nii.gz')):
            image = nb.load(value)
            assert value.startswith(str(folder))
            assert image.shape == STORED.shape
            np.testing.assert_allclose(image.affine, STORED.affine, atol=1e-5)
            assert image.header.get_xyzt_units()[0] == 'mm'
            value = np.asanyarray(nb.as_closest_canonical(image).dataobj)
        result[name] = value
    assert json.loads(json.dumps(result['record'])) == result['record']
    return result


def assert_same(result, expected, names):
    for name in names:
        reference = np.asarray(getattr(expected, name))
        assert result[name].dtype == (np.uint8 if reference.dtype == bool else reference.dtype)
        np.testing.assert_array_equal(result[name], reference, err_msg=name)


def test_shape_mask(data, tmp_path):
    first = data.magnitude[..., 0]
    result = run(interfaces.ShapeMask, tmp_path, magnitude=data.file('magnitude', first))
    assert_same(
        result, shape_mask(first, voxel_size=VOXEL_SIZE), ('shape_mask', 'roi_mask', 'shape_chi')
    )
    assert (
        result['record']['roi_voxels'] == shape_mask(first, voxel_size=VOXEL_SIZE).roi_mask.sum()
    )
    assert result['record']['mask'] == 'object'


def test_brain_is_found_where_it_is_asked_for(data, tmp_path):
    first = data.magnitude[..., 0]
    file = data.file('magnitude', first)
    result = run(interfaces.ShapeMask, tmp_path, magnitude=file, inside='brain')
    region = region_of_interest(first, VOXEL_SIZE, 'brain')
    assert_same(result, region, ('roi_mask', 'shape_chi'))
    assert result['record'] == region.record
    assert result['record']['mask'] == 'brain'


def test_mask_restricts_the_region_of_interest(data, tmp_path):
    """The object and its shape stay what they are."""
    first = data.magnitude[..., 0]
    given = data.object.copy()
    given[:8] = False
    inputs = {'magnitude': data.file('first', first), 'mask': data.file('given', given)}
    result = run(interfaces.ShapeMask, tmp_path, **inputs)
    whole = shape_mask(first, voxel_size=VOXEL_SIZE)
    assert_same(result, whole, ('shape_mask', 'shape_chi'))
    np.testing.assert_array_equal(result['roi_mask'], whole.roi_mask & given)
    assert result['record']['mask'] == 'given.nii.gz'
    assert result['record']['eroded_voxels'] == 0


def test_shape_is_left_out_where_the_mask_lies_inside_the_object(data, tmp_path):
    first = data.magnitude[..., 0]
    deep = ndimage.binary_erosion(data.object, iterations=4)
    inputs = {'magnitude': data.file('first', first), 'mask': data.file('given', deep)}
    result = run(interfaces.ShapeMask, tmp_path, **inputs)
    assert not result['shape_chi'].any()
    assert not result['shape_sd'].any()
    assert result['record']['shape_used'] is False
    assert result['inner'] is True
    assert result['record']['surface_fraction'] < 0.5
    assert result['shape_mask'].any()


def test_erosion_takes_off_a_depth_in_millimetres(data, tmp_path):
    first = data.magnitude[..., 0]
    path = data.file('first', first)
    result = run(interfaces.ShapeMask, tmp_path, magnitude=path, erosion=2.1)
    whole = shape_mask(first).roi_mask
    # A naive rule: no voxel outside the region within the depth.
    outside = np.argwhere(~whole) * VOXEL_SIZE
    expected = np.zeros_like(whole)
    for index in np.argwhere(whole):
        distance = np.linalg.norm(outside - index * VOXEL_SIZE, axis=1).min()
        expected[tuple(index)] = distance > 2.1
    np.testing.assert_array_equal(result['roi_mask'], expected)
    assert result['record']['eroded_voxels'] == whole.sum() - expected.sum()
    assert result['record']['erosion'] == 2.1


@pytest.mark.parametrize(
    'values, message',
    [
        ({}, 'is an empty mask'),
        ({0: 1}, 'no voxel in common with the object'),
        ({0: 1, 1: 2}, 'is not a valid mask: it has 3 different values, from 0 to 2'),
        ({0: np.nan}, 'not finite'),
    ],
    ids=['empty', 'elsewhere', 'labels', 'nan'],
)
def test_masks_that_are_refused(data, tmp_path, values, message):
    given = np.zeros(SHAPE, np.float32)
    for corner, value in values.items():
        given[corner, 0, 0] = value
    inputs = {'magnitude': data.file('first', data.magnitude[..., 0])}
    with pytest.raises(ValueError, match=f'given.nii.gz .*{message}'):
        run(interfaces.ShapeMask, tmp_path, **inputs, mask=data.file('given', given))


def test_erosion_of_everything_is_refused(data, tmp_path):
    path = data.file('first', data.magnitude[..., 0])
    with pytest.raises(ValueError, match='an erosion of 50 mm leaves 0 of'):
        run(interfaces.ShapeMask, tmp_path, magnitude=path, erosion=50.0)


@pytest.mark.parametrize('with_shape', [False, True])
def test_echo_fit(data, tmp_path, with_shape):
    inputs = {'shape_mask': data.file('object')} if with_shape else {}
    result = run(
        interfaces.EchoFit,
        tmp_path,
        magnitude=data.echoes('magnitude'),
        phase=data.echoes('phase'),
        echo_times=TE,
        field_strength=3.0,
        mask=data.file('mask'),
        phase_sign=1,  # inside a sphere the shape has no field that could tell it
        **inputs,
    )
    predicted = None
    if with_shape:
        predicted = forward_field(
            -9.41 * data.object.astype(np.float32), VOXEL_SIZE, B0_DIR, data.mask
        )
    expected = fit_echoes(
        data.magnitude, data.phase, TE, 3.0, data.mask, predicted_field=predicted
    )
    for name in ('total_field', 'field_sd', 'r2star', 's0'):
        np.testing.assert_allclose(
            result[name], getattr(expected, name), rtol=1e-4, atol=1e-5, err_msg=name
        )
    np.testing.assert_array_equal(result['reliable'], expected.reliable)
    np.testing.assert_allclose(
        result['t2star'] * result['r2star'], (expected.r2star > 0).astype(float), atol=1e-5
    )
    np.testing.assert_allclose(
        result['magnitude'], np.sqrt((data.magnitude.astype(float) ** 2).sum(-1)), rtol=1e-5
    )
    record = result['record']
    assert record['noise_sd'] == pytest.approx(expected.noise_sd, rel=1e-4)
    assert (record['phase_scale'], record['phase_turn']) == ('radians', pytest.approx(2 * np.pi))
    assert (record['phase_sign'], record['phase_sign_source']) == (1, 'given')
    assert (record['phase_sign_coefficient'] is None) == (not with_shape)
    assert record['echo_phase_size'] == 0
    assert (record['bodies'], record['body_turns']) == (1, [])
    assert record['alternating_axes'] == []
    assert record['warnings'] == []


def test_echo_fit_is_measure_field(data, tmp_path):
    """To the last bit, whatever the axes of the files."""
    files = {
        'magnitude': data.echoes('magnitude'),
        'phase': data.echoes('phase'),
        'mask': data.file('mask'),
        'shape_mask': data.file('object'),
    }
    result = run(interfaces.EchoFit, tmp_path, echo_times=TE, field_strength=3.0, **files)
    magnitude, phase = (load_echoes(files[part]) for part in ('magnitude', 'phase'))
    scan = Scan(magnitude, phase, TE, 3.0, geometry(files['mask'])[1], b0_along(files['mask']))
    expected = measure_field(scan, data.mask, data.object)
    for name, array in expected._asdict().items():
        if name != 'record':
            np.testing.assert_array_equal(result[name], array, err_msg=name)
    of_files = {'b0_dir': result['record']['b0_dir']}
    assert result['record'] == expected.record | of_files


def of_echo_fit(data):
    """Inputs that are enough for the node."""
    return {
        'magnitude': data.echoes('magnitude'),
        'phase': data.echoes('phase'),
        'echo_times': TE,
        'field_strength': 3.0,
        'mask': data.file('mask'),
    }


@pytest.mark.parametrize('part', ['magnitude', 'phase', 'echo_times'])
def test_echo_fit_takes_one_of_each_per_echo(data, tmp_path, part):
    inputs = of_echo_fit(data)
    with pytest.raises(ValueError, match=f'for each echo, not .*{part} 2'):
        run(interfaces.EchoFit, tmp_path, **inputs | {part: inputs[part][:2]})
    del inputs[part]
    with pytest.raises(ValueError, match=part):
        run(interfaces.EchoFit, tmp_path, **inputs)


def elsewhere(path, file):
    """The image of a file in other places, with larger voxels."""
    image = nb.load(file)
    affine = image.affine.copy()
    affine[:3, 3] += 20
    affine[:3, :3] *= 1.5
    nb.save(nb.Nifti1Image(np.asanyarray(image.dataobj), affine), path)
    return str(path)


@pytest.mark.parametrize('name', ['mask', 'shape_mask', 'phase'])
def test_echo_fit_takes_images_of_one_grid(data, tmp_path, name):
    inputs = of_echo_fit(data)
    other = elsewhere(tmp_path / 'other.nii', inputs['mask'])
    inputs[name] = [inputs['phase'][0], inputs['phase'][1], other] if name == 'phase' else other
    with pytest.raises(ValueError, match=r'other\.nii.* differ in the affines of their headers'):
        run(interfaces.EchoFit, tmp_path, **inputs)


def test_sheared_images_are_refused(data, tmp_path):
    """A grid without right angles has another dipole kernel; its B0 and voxel size are others."""
    affine = AFFINE.copy()
    affine[:3, 1] += 0.2 * affine[:3, 0]
    path = tmp_path / 'sheared.nii'
    nb.save(nb.Nifti1Image(data.magnitude[..., 0], affine), path)
    with pytest.raises(ValueError, match=r'sheared\.nii is sheared: its voxel axes are \d'):
        run(interfaces.ShapeMask, tmp_path, magnitude=str(path))


@pytest.mark.parametrize('name', ['EchoFit', 'BackgroundRemoval', 'QualityMask'])
def test_masks_of_many_values_are_refused(data, tmp_path, name):
    """Shares of a tissue, or labels, all of which would count as inside."""
    shares = data.file('shares', data.mask * np.linspace(0.1, 1, SHAPE[2], dtype=np.float32))
    inputs = {
        'EchoFit': {
            'magnitude': data.echoes('magnitude'),
            'phase': data.echoes('phase'),
            'echo_times': TE,
            'field_strength': 3.0,
        },
        'BackgroundRemoval': {'field': data.file('field')},
        'QualityMask': {'field_sd': data.file('sd')},
    }
    with pytest.raises(ValueError, match=r'shares\.nii\.gz is not a valid mask'):
        run(getattr(interfaces, name), tmp_path, mask=shares, **inputs[name])


def test_files_that_are_no_images_of_numbers_are_refused(data, tmp_path):
    data.complex = data.magnitude[..., 0] + 0j
    for path, error, says in (
        (data.file('complex'), ValueError, 'has complex numbers'),
        (data.file('magnitude'), ValueError, 'should be one volume of three axes'),
    ):
        with pytest.raises(error, match=says):
            run(interfaces.ShapeMask, tmp_path, magnitude=path)
    (tmp_path / 'text.nii').write_text('no image')
    with pytest.raises(OSError, match=r'text\.nii cannot be read'):
        run(interfaces.FlattenField, tmp_path, total_field=data.file('field'),
            prior_chi=str(tmp_path / 'text.nii'), mask=data.file('mask'))  # fmt: skip


def test_echo_fit_of_stored_codes_and_a_stated_sign(data, tmp_path):
    codes = np.floor((-data.phase / (2 * np.pi) + 0.5) * 4096).clip(0, 4095).astype(np.int16)
    files = {
        'magnitude': data.echoes('magnitude'),
        'phase': [data.file(f'codes{i}', codes[..., i]) for i in range(len(TE))],
        'echo_times': TE,
        'field_strength': 3.0,
        'mask': data.file('mask'),
        'phase_units': 'arbitrary',
    }
    result = run(interfaces.EchoFit, tmp_path, phase_sign=-1, **files)
    expected = fit_echoes(data.magnitude, data.phase, TE, 3.0, data.mask)
    np.testing.assert_allclose(result['total_field'], expected.total_field, atol=2e-3)
    record = result['record']
    assert (record['phase_scale'], record['phase_turn']) == ('codes', 4096)
    assert (record['phase_sign'], record['phase_sign_source']) == (-1, 'given')
    assert not any('negated' in text for text in record['warnings'])
    result = run(interfaces.EchoFit, tmp_path, **files)  # without a shape nothing tells the sign
    assert result['record']['phase_sign_source'] == 'convention'
    # inside a sphere there is no field of the shape: the usual sign of the vendor
    result = run(
        interfaces.EchoFit,
        tmp_path,
        shape_mask=data.file('object'),
        manufacturer='GE MEDICAL SYSTEMS',
        **files,
    )
    record = result['record']
    assert (record['phase_sign'], record['phase_sign_source']) == (-1, 'vendor')
    assert 'ASSUMED to be -1' in record['warnings'][0]
    assert len(record['phase_sign_by_depth']) == 4
    assert record['b0_dir_source'] == 'header'
    with pytest.raises(ValueError, match=r'codes0\.nii\.gz.*no radians'):
        run(interfaces.EchoFit, tmp_path, **files | {'phase_units': 'rad'})


def test_echo_fit_of_one_echo(data, tmp_path):
    result = run(
        interfaces.EchoFit,
        tmp_path,
        magnitude=data.echoes('magnitude')[:1],
        phase=data.echoes('phase')[:1],
        echo_times=TE[:1],
        field_strength=3.0,
        mask=data.file('mask'),
        phase_sign=-1,
    )
    expected = field_of_one_echo(
        data.magnitude[..., 0], -data.phase[..., 0], TE[0], 3.0, data.mask
    )
    for name in ('total_field', 'field_sd', 'usable_echoes'):
        np.testing.assert_allclose(result[name], getattr(expected, name), rtol=1e-4, atol=1e-6)
    for name in ('r2star', 't2star', 's0', 'reliable', 'misfit'):
        assert not isdefined(result[name])
    record = result['record']
    assert record['noise_sd'] == pytest.approx(expected.noise_sd, rel=1e-4)
    assert (record['offset_model'], record['reliable_fraction']) == ('in the field', None)
    assert any(words.startswith('one echo: ') for words in record['warnings'])


def test_echoes_too_far_apart_are_a_warning(data, tmp_path):
    times = [0.004, 0.044]
    field = np.random.default_rng(0).normal(0, 0.5, data.mask.shape)  # a turn is 0.2 ppm
    phase = np.angle(np.exp(2j * np.pi * 127.73 * field[..., None] * np.array(times)))
    result = run(
        interfaces.EchoFit,
        tmp_path,
        magnitude=[
            data.file(f'decay{i}', np.exp(-20 * t) * data.mask.astype(np.float32))
            for i, t in enumerate(times)
        ],
        phase=[data.file(f'far{i}', phase[..., i].astype(np.float32)) for i in range(2)],
        echo_times=times,
        field_strength=3.0,
        mask=data.file('mask'),
        phase_sign=1,
    )
    assert result['record']['ambiguous_fraction'] > 0.01
    assert 'spacing of 40 ms is too long' in result['record']['warnings'][-1]
    assert any('two echoes' in words for words in result['record']['warnings'])


def test_integer_phase_is_the_same(data, tmp_path):
    def fit(phase):
        return run(
            interfaces.EchoFit,
            tmp_path,
            magnitude=data.echoes('magnitude'),
            phase=phase,
            echo_times=TE,
            field_strength=3.0,
            mask=data.file('mask'),
        )

    plain = fit(data.echoes('phase'))['total_field']
    codes = np.floor((data.phase / (2 * np.pi) + 0.5) * 4096).clip(0, 4095).astype(np.int16)
    codes[0, 0, 0], codes[0, 0, 1] = 0, 4095  # as every scanner's range, all echoes alike
    coded = fit([data.file(f'codes{i}', codes[..., i]) for i in range(3)])['total_field']
    np.testing.assert_allclose(coded, plain, atol=2e-3)


@pytest.mark.parametrize('part', ['magnitude', 'phase'])
def test_a_file_that_is_given_twice_is_refused_by_name(data, tmp_path, part):
    files = {name: data.echoes(name) for name in ('magnitude', 'phase')}
    link = tmp_path / 'link.nii.gz'
    link.symlink_to(files['phase'][0])
    for again in (files['phase'][0], str(link)):
        files[part][-1] = again
        with pytest.raises(ValueError, match='give the file of each echo and part') as caught:
            run(
                interfaces.EchoFit,
                tmp_path,
                **files,
                echo_times=TE,
                field_strength=3.0,
                mask=data.file('mask'),
            )
        assert again in str(caught.value)


TISSUE = ['GM', 'WM', 'CSF']


def tissue_of(data):
    """Classes in slabs, and the rest."""
    labels = np.zeros(data.mask.shape, np.int16)
    third = data.mask.shape[0] // 4
    for i in range(3):
        labels[i * third : (i + 1) * third] = i + 1
    return labels


@pytest.mark.parametrize('source', ['median', 'number', 'zero', 'R2map', 'T2map', 'literature'])
def test_r2prime_prior(data, tmp_path, source):
    reliable = data.sd < 0.018
    r2_map = (10 + 0.2 * data.r2star).astype(np.float32)
    tissue = tissue_of(data)
    inputs, r2, words = {
        'median': ({}, None, 'median of R2*'),
        'number': ({'r2_source': 'number', 'r2': 15.0}, 15.0, 'given'),
        'zero': ({'r2_source': 'number', 'r2': 0.0}, 0.0, "R2* used as R2' (R2 taken as 0)"),
        'R2map': (
            {'r2_source': 'map', 'r2_map': data.file('r2', r2_map), 'r2_map_kind': 'R2map'},
            r2_map,
            'R2map: r2.nii.gz',
        ),
        'T2map': (
            {'r2_source': 'map', 'r2_map': data.file('t2', 1 / r2_map), 'r2_map_kind': 'T2map'},
            r2_map,
            'T2map: t2.nii.gz',
        ),
        'literature': (
            {
                'r2_source': 'literature',
                'tissue': data.file('tissue', tissue),
                'tissue_names': TISSUE,
            },
            literature_r2(tissue, TISSUE, data.mask, 3.0),
            'Gelman N et al., Radiology 1999;210:759',
        ),
    }[source]
    result = run(
        interfaces.R2PrimePrior,
        tmp_path,
        r2star=data.file('r2star'),
        mask=data.file('mask'),
        reliable=data.file('reliable', reliable),
        field_strength=3.0,
        **inputs,
    )
    expected = r2prime_prior(data.r2star, data.mask, 3.0, r2, reliable)
    for name in ('prior_chi', 'r2prime'):
        np.testing.assert_allclose(result[name], getattr(expected, name), rtol=1e-4, atol=1e-4)
    assert result['record']['r2'] == pytest.approx(expected.r2, rel=1e-4)
    assert words in result['record']['r2_source']


@pytest.mark.parametrize(
    'inputs, message',
    [
        ({'r2_source': 'map'}, 'there is none: give r2_map'),
        ({'r2_source': 'literature'}, 'needs tissue classes'),
        ({'r2_source': 'number'}, 'there is none: give r2'),
        ({'r2_source': 'map', 'r2_map': 20.0, 'r2_map_kind': None}, 'r2_map_kind is R2map'),
        ({'r2_source': 'map', 'r2_map': np.ones((3, 3, 3))}, 'differ in matrix size'),
        ({'r2_source': 'map', 'r2_map': 0.0}, 'has no positive value'),
        ({'r2_source': 'map', 'r2_map': np.nan}, 'not finite'),
        ({'r2_source': 'map', 'r2_map': 80.0, 'r2_map_kind': 'T2map'}, 'T2map in s: convert it'),
        (
            {'r2_source': 'literature', 'tissue': 1.0, 'tissue_names': ['tumour']},
            r'tissue\.nii\.gz: none of the classes .* \(tumour\) has an R2 .*give r2 as a number',
        ),
        (
            {
                'r2_source': 'literature',
                'tissue': 1.0,
                'tissue_names': ['GM'],
                'field_strength': 7,
            },
            'is that of 3 T, and the field strength 7 T',
        ),
    ],
)
def test_r2_that_cannot_be(data, tmp_path, inputs, message):
    files = {'r2_map_kind': 'R2map', 'field_strength': 3.0} | inputs
    files = {name: value for name, value in files.items() if value is not None}
    for name in ('r2_map', 'tissue'):
        if name in files:
            value = files[name]
            volume = value if isinstance(value, np.ndarray) else np.full(data.mask.shape, value)
            files[name] = data.file(name, volume.astype(np.float32))
    with pytest.raises(ValueError, match=message):
        run(
            interfaces.R2PrimePrior,
            tmp_path,
            r2star=data.file('r2star'),
            mask=data.file('mask'),
            **files,
        )


@pytest.mark.parametrize(
    'priors, fit',
    [
        (['contrast'], 'global'),
        (['r2prime'], 'clusters'),
        (['r2prime'], 'global'),
        (['map'], 'global'),
        (['contrast', 'tissue'], 'global'),
        (['tissue', 'r2prime-by-tissue', 'r2prime', 'map'], 'global'),
    ],
    ids=lambda value: value if isinstance(value, str) else '+'.join(value),
)
def test_prior_fit(data, tmp_path, priors, fit):
    free_voxels = inner = priors == ['contrast']
    first = data.magnitude[..., 0]
    second = np.sqrt(np.sum(data.magnitude**2, axis=-1)) if inner else first
    unshaded = second / bias_field(second, data.r2star, data.mask)
    shape_chi = -9.41 * data.object.astype(np.float32)
    tissue, other = tissue_of(data), np.roll(data.chi, 1, axis=0) - 0.01
    path = data.file('other', other.astype(np.float32))
    result = run(
        interfaces.PriorFit,
        tmp_path,
        total_field=data.file('field'),
        field_sd=data.file('sd'),
        mask=data.file('mask'),
        shape_chi=data.file('shape_chi', shape_chi),
        priors=[f'map:{path}' if name == 'map' else name for name in priors],
        fit=fit,
        prior_chi=data.file('chi'),
        r2star=data.file('r2star'),
        magnitude=data.file('first', first),
        tissue=data.file('tissue', tissue),
        tissue_names=TISSUE,
        field_strength=3.0,
        iterations=12,
        free_voxels=free_voxels,
        combined_magnitude=data.file('combined', np.sqrt(np.sum(data.magnitude**2, axis=-1))),
        inner=inner,
    )
    parcels = tissue_parcels(tissue, 3, data.mask)
    whole = sum(name in ('r2prime', 'map') for name in priors)
    groups = [
        {
            'contrast': lambda: contrast_cells([data.r2star, unshaded], data.mask, VOXEL_SIZE),
            'tissue': lambda: [parcels],
            'r2prime-by-tissue': lambda: [map_by_tissue(parcels, data.chi, data.mask)],
            'r2prime': lambda: [susceptibility_map(data.chi, data.mask, fit, whole)],
            'map': lambda: [susceptibility_map(other, data.mask, fit, whole)],
        }[name]()
        for name in priors
    ]
    bases = [basis for group in groups for basis in group]
    flat = data.field - forward_field(shape_chi, VOXEL_SIZE, B0_DIR, data.mask)
    options = FitOptions(12, free_voxels=free_voxels)
    geometry = Geometry(data.mask, VOXEL_SIZE, B0_DIR)
    expected = fit_prior(flat, bases, geometry, data.sd, options=options)
    scale = np.abs(expected.prior_chi).max()
    # In so small a region PDF amplifies rounding: 1e-7 of the field moves the map by 3 %.
    np.testing.assert_allclose(result['prior_chi'], expected.prior_chi, atol=0.05 * scale)
    record = result['record']
    assert [name.split(':')[0] for name in record['priors']] == priors
    for prior, group in zip(record['priors'].values(), groups, strict=True):
        assert prior['parcels'] == sum(basis.parcels for basis in group)
        assert prior['supported'] == (prior['explained'] >= 0.01)
    shares = sum(prior['explained'] for prior in record['priors'].values())
    assert ('free_voxels' in record) == free_voxels
    assert record.get('combined_magnitude', False) == inner
    if free_voxels:
        assert record['free_voxels']['voxels'] == np.count_nonzero(expected.free_chi)
        shares += record['free_voxels']['explained']
    assert shares == pytest.approx(record['explained'], abs=1e-3)
    unsupported = sum(not p['supported'] for p in record['priors'].values())
    # A ball about the centre is like itself however it is turned: not judged, and that is told.
    assert len(record['warnings']) == unsupported + (not record['turns'])
    finest = max(bases, key=lambda basis: basis.parcels)
    np.testing.assert_array_equal(result['prior_labels'], finest.labels + 1)
    if priors == ['r2prime'] and fit == 'global':
        assert record['implied_relaxivity'][0] == pytest.approx(
            323.5 / expected.coefficients[0][0], rel=0.05
        )
        assert len(record['coefficient_errors']) == 1
    if 'tissue' in priors:
        found = record['coefficients']['tissue']
        assert set(found) <= {*TISSUE, 'rest'}
        values = expected.coefficients[len(groups[0]) if priors[0] == 'contrast' else 0]
        difference = values[1] - values[0]
        assert found['WM'] - found['GM'] == pytest.approx(difference, abs=0.05 * float(scale))


@pytest.mark.parametrize('name', ['T1w', 'R1map'])
def test_further_contrasts_have_cells_of_their_own(data, tmp_path, name):
    first, other = data.magnitude[..., 0], np.roll(data.magnitude[..., 1], 3, axis=0)
    inputs = {
        'total_field': data.file('field'),
        'field_sd': data.file('sd'),
        'mask': data.file('mask'),
        'r2star': data.file('r2star'),
        'magnitude': data.file('first', first),
        'field_strength': 3.0,
        'iterations': 6,
    }
    path = data.file(name, other)
    result = run(interfaces.PriorFit, tmp_path, **inputs, contrasts=[path])
    images = {'magnitude': first} | (
        {'T1w': other} if name == 'T1w' else {}
    )  # a map has no shading
    bias = {what: bias_field(image, data.r2star, data.mask) for what, image in images.items()}
    bases = contrast_cells([data.r2star, first / bias['magnitude']], data.mask, VOXEL_SIZE)
    bases += contrast_cells([data.r2star, other / bias.get(name, 1)], data.mask, VOXEL_SIZE)
    geometry = Geometry(data.mask, VOXEL_SIZE, B0_DIR)
    expected = fit_prior(data.field, bases, geometry, data.sd, options=FitOptions(6))
    scale = float(np.abs(expected.prior_chi).max())
    # As above: in so small a region PDF amplifies rounding.
    np.testing.assert_allclose(result['prior_chi'], expected.prior_chi, atol=0.05 * scale)
    prior = result['record']['priors']['contrast']
    assert prior['parcels'] == sum(basis.parcels for basis in bases)
    assert result['record']['further_contrasts'] == [Path(path).name]
    for (low, high), values in zip(
        result['record']['bias_field'].values(), bias.values(), strict=True
    ):
        expected = np.percentile(values[data.mask], (1, 99))
        np.testing.assert_allclose((low, high), expected, rtol=0.01)
    for wrong, told in (
        (np.where(data.mask, 1, other), 'is 1 in the whole region'),
        (other[1:], 'differ in matrix size'),
        (np.where(data.mask, np.nan, other), 'not finite'),
    ):
        path = data.file('wrong', wrong.astype(np.float32))
        with pytest.raises(ValueError, match=told):
            run(interfaces.PriorFit, tmp_path, **inputs, contrasts=[path])
    with pytest.raises(ValueError, match='has 1 further contrasts, and 0 images of them'):
        run(interfaces.PriorFit, tmp_path, **inputs, n_contrasts=1)


def test_a_map_that_is_taken_as_it_is(data, tmp_path):
    path = data.file('other', data.chi)
    shape_chi = data.file('shape_chi', data.object.astype(np.float32))
    result = run(
        interfaces.PriorFit,
        tmp_path,
        total_field=data.file('field'),
        field_sd=data.file('sd'),
        mask=data.file('mask'),
        shape_chi=shape_chi,
        priors=[f'map:{path}'],
        fit='none',
        field_strength=3.0,
    )
    np.testing.assert_array_equal(result['prior_chi'], data.chi * data.mask)
    np.testing.assert_array_equal(result['shape_chi'], data.object)
    assert result['record']['fit'] == 'none'


@pytest.mark.parametrize(
    'value, message',
    [
        (0.0, 'is 0 in the whole region'),
        (50.0, 'is in ppm .*convert it'),
        (np.inf, 'not finite'),
        (np.ones((3, 3, 3), np.float32), 'differ in matrix size: resample'),
    ],
)
def test_a_map_that_cannot_be_a_prior(data, tmp_path, value, message):
    volume = value if isinstance(value, np.ndarray) else np.full(data.mask.shape, value)
    path = data.file('given', volume.astype(np.float32))
    with pytest.raises(ValueError, match=message):
        run(
            interfaces.PriorFit,
            tmp_path,
            total_field=data.file('field'),
            field_sd=data.file('sd'),
            mask=data.file('mask'),
            priors=[f'map:{path}'],
            field_strength=3.0,
        )


@pytest.mark.parametrize('with_shape', [False, True])
def test_flattening(data, tmp_path, with_shape):
    shape_chi = -9.41 * data.object.astype(np.float32)
    inputs = {'shape_chi': data.file('shape_chi', shape_chi)} if with_shape else {}
    result = run(
        interfaces.FlattenField,
        tmp_path,
        total_field=data.file('field'),
        prior_chi=data.file('chi'),
        mask=data.file('mask'),
        **inputs,
    )
    expected = flatten_field(
        data.field, data.chi, data.mask, VOXEL_SIZE, B0_DIR, shape_chi if with_shape else None
    )
    for name in ('flattened_field', 'prior_field'):
        np.testing.assert_allclose(result[name], getattr(expected, name), atol=1e-5)
    assert result['record']['shape'] is with_shape


@pytest.mark.parametrize('weighted', [False, True])
def test_background_removal(data, tmp_path, weighted):
    inputs = {'field_sd': data.file('sd')} if weighted else {}
    result = run(
        interfaces.BackgroundRemoval,
        tmp_path,
        field=data.file('field'),
        mask=data.file('mask'),
        iterations=7,
        **inputs,
    )
    weights = noise_weights(data.sd, data.mask) if weighted else None
    expected = pdf(data.field, data.mask, VOXEL_SIZE, B0_DIR, weights, 7)
    for name in ('local_field', 'background_field'):
        np.testing.assert_allclose(result[name], getattr(expected, name), atol=1e-4, err_msg=name)
    assert result['record']['iterations'] == 7


def test_spheres_where_they_know_half_of_the_region(data, tmp_path):
    result = run(
        interfaces.BackgroundRemoval, tmp_path, field=data.file('field'), mask=data.file('mask'),
        background='vsharp-or-pdf',
    )  # fmt: skip
    arm = Arm(background='vsharp-or-pdf')
    expected = remove_background(data.field, Geometry(data.mask, VOXEL_SIZE, B0_DIR), arm)
    np.testing.assert_allclose(result['local_field'], expected.local_field, atol=1e-4)
    np.testing.assert_array_equal(result['roi_mask'], expected.known)
    assert result['record']['method'] in ('pdf', 'vsharp')
    assert result['record']['known_voxels'] == expected.known.sum()


def test_quality_mask(data, tmp_path):
    data.sd *= np.where(np.random.default_rng(0).random(SHAPE) < 0.2, 20, 1).astype(np.float32)
    result = run(
        interfaces.QualityMask, tmp_path, field_sd=data.file('sd'), mask=data.file('mask')
    )
    expected = quality_mask(data.sd, data.mask)
    assert 0 < expected.left_out < data.mask.sum()
    np.testing.assert_array_equal(result['roi_mask'], expected.mask)
    assert result['record'] == expected.record()


def test_thirty_iterations_of_background_removal_by_default():
    assert interfaces.BackgroundRemoval().inputs.iterations == 30


@pytest.mark.parametrize('given', [None, 0.3])
@pytest.mark.parametrize('weighted', [False, True])
def test_dipole_inversion(data, tmp_path, given, weighted):
    inputs = {} if given is None else {'reg_weight': given}
    if weighted:
        inputs |= {'clip_outliers': True}
    result = run(
        interfaces.DipoleInversion,
        tmp_path,
        local_field=data.file('field'),
        mask=data.file('mask'),
        **inputs,
    )
    sd = {'clip_outliers': True} if weighted else {}
    expected = l2_inversion(data.field, data.mask, VOXEL_SIZE, B0_DIR, given, **sd)
    np.testing.assert_allclose(result['chi'], expected.chi, atol=1e-5)
    assert result['reg_weight'] == pytest.approx(expected.reg_weight, rel=1e-4)
    assert result['record']['rule'] == ('l-curve' if given is None else 'given')
    curve = result['l_curve']
    assert curve['reg_weight'] == result['reg_weight']
    np.testing.assert_allclose(curve['consistency'], expected.curve.consistency, rtol=1e-4)
    assert json.loads(json.dumps(curve)) == curve


def test_dipole_inversion_of_the_residual_of_a_prior(data, tmp_path):
    files = {name: data.file(name) for name in ('field', 'mask', 'sd', 'chi')}
    result = run(
        interfaces.DipoleInversion,
        tmp_path,
        local_field=files['field'],
        mask=files['mask'],
        field_sd=files['sd'],
        prior_chi=files['chi'],
        rule='risk',
        clip_outliers=True,
        trust=0.7,
    )
    geometry = Geometry(data.mask, VOXEL_SIZE, B0_DIR)
    arm, known = Arm(rule='risk', clip_outliers=True), Residual(data.sd, data.chi)
    weights = noise_weights(data.sd, data.mask)
    expected = invert(data.field, geometry, arm, weights, 0.7, known)
    np.testing.assert_allclose(result['chi'], expected.chi, atol=1e-5)
    assert result['record']['weighted'] is True
    plain = invert(data.field, geometry, arm, weights, 0.7)
    assert 'weighted' not in plain.record(arm)
    assert np.abs(plain.chi - expected.chi).max() > 1e-3


def test_dipole_inversion_with_total_variation(data, tmp_path):
    files = {name: data.file(name) for name in ('mask', 'sd')}
    result = run(
        interfaces.DipoleInversion,
        tmp_path,
        local_field=data.file('field'),
        mask=files['mask'],
        field_sd=files['sd'],
        model_error=0.02,
        inversion='tv',
        rule='risk',
    )
    geometry = Geometry(data.mask, VOXEL_SIZE, B0_DIR)
    arm = Arm(rule='risk', inversion='tv')
    expected = invert(data.field, geometry, arm, noise_weights(data.sd, data.mask, 0.02))
    np.testing.assert_allclose(result['chi'], expected.chi, atol=1e-5)
    assert result['record']['inversion'] == 'tv'
    assert result['record']['tv_weight'] == pytest.approx(expected.further['tv_weight'], rel=1e-4)
    assert json.loads(json.dumps(result['record'])) == result['record']


@pytest.mark.parametrize('reference', ['none', 'roi-mean', 'agar'])
def test_recombination(data, tmp_path, reference):
    labels = np.where(data.chi > 0, 1, 2).astype(np.int16)
    result = run(
        interfaces.Recombination,
        tmp_path,
        residual_chi=data.file('field'),
        prior_chi=data.file('chi'),
        mask=data.file('mask'),
        reference=reference,
        labels=data.file('labels', labels),
        label_names={1: 'tube', 2: 'agar'},
    )
    region = {'none': None, 'roi-mean': data.mask, 'agar': labels == 2}[reference]
    expected = recombine(data.field, data.chi, data.mask, region)
    assert_same(result, expected, ('chi',))
    assert result['record']['reference'] == reference
    assert result['record']['reference_value'] == pytest.approx(expected.reference_value)


@pytest.mark.parametrize('reference', ['none', 'roi-mean', 'agar'])
def test_uncertainty(data, tmp_path, reference):
    labels = np.where(data.chi > 0, 1, 2).astype(np.int16)
    result = run(
        interfaces.Uncertainty,
        tmp_path,
        local_field=data.file('field'),
        field_sd=data.file('sd'),
        prior_chi=data.file('chi'),
        residual_chi=data.file('residual', 0.1 * data.chi),
        prior_sd=data.file('spread', 0.1 * np.abs(data.chi)),
        reg_weight=0.2,
        mask=data.file('mask'),
        reference=reference,
        labels=data.file('labels', labels),
        label_names={1: 'tube', 2: 'agar'},
    )
    region = {'none': None, 'roi-mean': data.mask, 'agar': labels == 2}[reference]
    given = MapInputs(data.field, data.sd, data.chi, 0.1 * data.chi, 0.2)
    given = given._replace(prior_sd=0.1 * np.abs(data.chi))
    geometry = Geometry(data.mask, VOXEL_SIZE, B0_DIR)
    expected = map_uncertainty(given, geometry, labels, region)
    for port in ('chi_sd', 'support'):  # the voxel size of a header is rounded
        np.testing.assert_allclose(result[port], getattr(expected, port), rtol=1e-4, atol=1e-6)
    record = result['record']
    assert record['regions']['1']['name'] == 'tube'
    assert record['regions']['2']['error'] == pytest.approx(expected.regions[2].error, rel=1e-3)
    assert json.loads(json.dumps(record)) == record


def test_record_of_one_body_has_no_list_of_bodies(data, tmp_path):
    inputs = {'residual_chi': data.file('field'), 'mask': data.file('mask')}
    record = run(interfaces.Recombination, tmp_path, **inputs)['record']
    keys = {'reference', 'reference_value', 'reference_sd', 'roi_mean', 'roi_sd'}
    assert set(record) == keys


@pytest.mark.parametrize('reference', ['none', 'roi-mean', 'agar'])
def test_recombination_of_two_bodies_says_what_each_is_relative_to(data, tmp_path, reference):
    mask = np.zeros(SHAPE, bool)
    mask[:9, 1:17, 1:14] = mask[11:, 3:15, 2:13] = True
    labels = np.zeros(SHAPE, np.int16)
    labels[2:6, 4:9, 4:9] = 2  # in the larger body
    result = run(
        interfaces.Recombination,
        tmp_path,
        residual_chi=data.file('field'),
        mask=data.file('two', mask),
        reference=reference,
        labels=data.file('labels', labels),
        label_names={2: 'agar'},
    )
    record = result['record']
    assert json.loads(json.dumps(record)) == record
    large, small = record['bodies']
    voxel = np.prod(VOXEL_SIZE) / 1000
    assert (large['voxels'], small['voxels']) == (9 * 16 * 13, 5 * 12 * 11)
    assert large['volume'] == pytest.approx(9 * 16 * 13 * voxel, abs=1e-3)
    assert large['reference'] == reference
    assert small['reference'] == {'agar': 'roi-mean'}.get(reference, reference)
    assert record['reference_value'] == large['reference_value']
    own = data.field[11:, 3:15, 2:13].mean(dtype=float)
    assert small['mean'] == pytest.approx(own, abs=1e-6)
    expected = 0 if reference == 'none' else own
    assert small['reference_value'] == pytest.approx(expected, abs=1e-6)
    assert len(record['warnings']) == (reference == 'agar')
    assert all('body 2 does not hold' in w for w in record['warnings'])
    sidecar = reference_of({'recombination': record})
    if reference == 'none':
        assert sidecar == 'none'
        return
    assert [body['Region'] for body in sidecar['Bodies']] == [reference, 'roi-mean']
    assert sidecar['Bodies'][1]['Subtracted'] == small['reference_value']
    assert sidecar['Bodies'][1]['WholeRegionReferencedMean'] == 0
    assert 'differences between bodies are undetermined' in sidecar['Note']


def test_unknown_reference_names_those_there_are(data, tmp_path):
    inputs = {
        'residual_chi': data.file('field'),
        'mask': data.file('mask'),
        'reference': 'csf',
        'label_names': {2: 'agar'},
    }
    with pytest.raises(ValueError, match=r"'csf'.*agar.*none, roi-mean"):
        run(interfaces.Recombination, tmp_path, **inputs)


@pytest.mark.parametrize('stage', STAGES, ids=lambda stage: stage.__name__)
def test_every_trait_is_described(stage):
    assert issubclass(stage, SimpleInterface)
    for spec in (stage.input_spec(), stage.output_spec()):
        for name in spec.copyable_trait_names():
            trait = spec.trait(name)
            assert trait.desc, f'{stage.__name__}.{name} has no desc'
            assert 'dec' not in trait.__dict__.get('_metadata', {})
    assert inspect.getdoc(stage)


@pytest.mark.parametrize('stage', STAGES, ids=lambda stage: stage.__name__)
def test_every_stage_declares_a_record(stage):
    assert 'record' in stage.output_spec().copyable_trait_names()


def test_import_needs_no_niworkflows():
    code = 'import json, sys, precondqsm_bids.interfaces; print(json.dumps(sorted(sys.modules)))'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    loaded = {module.split('.')[0] for module in json.loads(done.stdout)}
    assert 'nipype' in loaded
    assert not loaded & {'niworkflows', 'bids', 'matplotlib', 'templateflow'}


def test_load_and_save_keep_values_and_grid(data, tmp_path):
    path = save(data.field, data.file('chi'), str(tmp_path), 'copy')
    np.testing.assert_array_equal(load(path), data.field)
    assert load(path).flags.c_contiguous
    image = nb.load(path)
    np.testing.assert_allclose(image.affine, STORED.affine, atol=1e-6)
    assert image.header['sform_code'] == 1


AXES = st.permutations(range(3))
SIGNS = st.tuples(*[st.sampled_from([1, -1])] * 3)
ANGLES = st.tuples(*[st.floats(-0.6, 0.6)] * 2)


@hypothesis.given(axes=AXES, signs=SIGNS, angles=ANGLES)
@hypothesis.settings(
    max_examples=40, deadline=None, suppress_health_check=list(hypothesis.HealthCheck)
)
def test_storage_of_an_object_does_not_matter(tmp_path, axes, signs, angles):
    """Whatever way an object is stored, the stages see the same array and direction of B0."""
    turn = nb.eulerangles.euler2mat(0, *angles)
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag(VOXEL_SIZE)
    image = nb.Nifti1Image(np.random.default_rng(1).random(SHAPE, np.float32), affine)
    nb.save(image, tmp_path / 'plain.nii')
    other = image.as_reoriented(list(zip(axes, signs, strict=True)))
    nb.save(other, tmp_path / 'stored.nii')
    plain, stored = (str(tmp_path / f'{name}.nii') for name in ('plain', 'stored'))
    np.testing.assert_array_equal(load(stored), load(plain))
    assert load(stored).flags.c_contiguous
    for found, expected in zip(geometry(stored), geometry(plain), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)
    result = nb.load(save(load(plain), stored, str(tmp_path), 'result'))
    np.testing.assert_array_equal(result.dataobj, other.dataobj)
    np.testing.assert_allclose(result.affine, other.affine, atol=1e-5)


def test_damaged_file_is_named(tmp_path, data):
    path = data.file('field')
    content = (tmp_path / 'field.nii.gz').read_bytes()
    (tmp_path / 'field.nii.gz').write_bytes(content[: len(content) // 2])
    with pytest.raises(OSError, match=r'field\.nii\.gz cannot be read'):
        load(path)


def test_echoes_of_different_size_are_named(tmp_path, data):
    first = data.file('field')
    nb.save(nb.Nifti1Image(np.zeros((4, 5, 6), np.float32), AFFINE), tmp_path / 'other.nii')
    with pytest.raises(ValueError, match=r'field\.nii\.gz.*other\.nii.*differ'):
        load_echoes([first, str(tmp_path / 'other.nii')])


@pytest.mark.parametrize(
    'priors, missing',
    [
        (['contrast'], 'prior contrast needs magnitude'),
        (['tissue'], 'prior tissue needs tissue and tissue_names'),
        (['r2prime'], 'prior r2prime needs prior_chi'),
        (['contrast', 'r2prime-by-tissue'], 'needs tissue and tissue_names and prior_chi'),
        (['iron'], 'prior iron is not one of contrast, tissue'),
    ],
)
def test_what_a_prior_lacks_is_named(data, tmp_path, priors, missing):
    inputs = {'magnitude': data.file('sd')} if len(priors) > 1 else {}
    files = {'total_field': data.file('field'), 'field_sd': data.file('sd')}
    with pytest.raises(ValueError, match=missing):
        run(
            interfaces.PriorFit,
            tmp_path,
            mask=data.file('mask'),
            priors=priors,
            field_strength=3.0,
            **files,
            **inputs,
        )


def test_estimate_is_the_same_without_files(data, tmp_path):
    """The estimate from files, to the last bit that storage keeps, is that from arrays."""
    combined = np.sqrt(np.sum(data.magnitude**2, axis=-1))
    arrays = {'r2star': data.r2star, 'magnitude': data.magnitude[..., 0]}
    arrays |= {'combined_magnitude': combined, 'reliable': data.sd < 0.018}
    arrays |= {'r2star_sd': 0.1 * data.r2star, 'magnitude_sd': 0.1 * combined}
    settings = {'free_voxels': True, 'iterations': 10}
    files = {name: data.file(name, array) for name, array in arrays.items()}
    files |= {'total_field': data.file('field'), 'field_sd': data.file('sd')}
    files |= {'mask': data.file('mask'), 'shape_chi': data.file('chi')}
    found = run(interfaces.PriorFit, tmp_path, **files, **settings, inner=True, field_strength=3.0)
    voxel_size = geometry(files['mask'])[1]
    view = Geometry(data.mask, voxel_size, b0_along(files['mask']))
    inputs = PriorInputs(
        data.field, data.sd, shape_chi=data.chi, inner=True, **arrays, field_strength=3.0
    )
    expected = estimate_prior(inputs, view, **settings)
    assert_same(found, expected, ('prior_chi', 'shape_chi', 'prior_labels'))
    assert found['record'] == expected.record
    assert found['expected_size'] == expected.expected_size


MOVED = {
    'shape_mask': (interfaces.ShapeMask, ('magnitude', 'mask')),
    'r2prime_prior': (interfaces.R2PrimePrior, ('r2star', 'mask', 'reliable')),
    'prior_fit': (
        interfaces.PriorFit,
        ('total_field', 'field_sd', 'mask', 'r2star', 'magnitude', 'contrasts'),
    ),
    'flattening': (interfaces.FlattenField, ('total_field', 'prior_chi', 'mask')),
    'background_removal': (interfaces.BackgroundRemoval, ('field', 'field_sd', 'mask')),
    'dipole_inversion': (interfaces.DipoleInversion, ('local_field', 'mask')),
    'recombination': (interfaces.Recombination, ('residual_chi', 'prior_chi', 'mask')),
    'uncertainty': (
        interfaces.Uncertainty,
        ('residual_chi', 'prior_chi', 'local_field', 'field_sd', 'mask'),
    ),
    'comparison': (
        interfaces.Comparison,
        (
            'local_field',
            'residual_chi',
            'conventional_local_field',
            'conventional_chi',
            'field_sd',
            'mask',
        ),
    ),
}


@pytest.mark.parametrize('stage', MOVED)
def test_images_that_are_not_on_one_grid_are_refused(data, tmp_path, stage):
    interface, names = MOVED[stage]
    files = {name: data.file(name, data.field) for name in names}
    for moved in names[1:]:
        image = nb.load(files[moved])
        affine = image.affine.copy()
        affine[0, 3] += 0.01
        path = str(tmp_path / f'moved_{moved}.nii.gz')
        nb.save(nb.Nifti1Image(np.asanyarray(image.dataobj), affine), path)
        others = {'field_strength': 3.0} if stage in ('r2prime_prior', 'prior_fit') else {}
        message = rf'{names[0]}\.nii\.gz.*up to 0\.01 mm|moved_{moved}.*up to 0\.01 mm'
        with pytest.raises(ValueError, match=message):
            run(interface, tmp_path, **files | {moved: path}, **others)


def test_storage_does_not_make_another_grid(data, tmp_path):
    """The mask is stored with other axes than the field, and is the same array."""
    plain, turned = data.file('mask'), str(tmp_path / 'turned.nii.gz')
    nb.save(nb.load(plain).as_reoriented([[1, 1], [2, -1], [0, -1]]), turned)
    found = [
        run(interfaces.BackgroundRemoval, tmp_path, field=data.file('field'), mask=mask)
        for mask in (plain, turned)
    ]
    np.testing.assert_array_equal(found[0]['local_field'], found[1]['local_field'])


def test_a_map_of_the_prior_on_another_grid_is_refused(data, tmp_path):
    files = {'total_field': data.file('field'), 'field_sd': data.file('sd')}
    affine = AFFINE.copy()
    affine[:3, 3] += 1
    path = str(tmp_path / 'elsewhere.nii')
    nb.save(nb.Nifti1Image(data.chi, affine), path)
    with pytest.raises(ValueError, match=r'elsewhere\.nii and .*field\.nii\.gz.* 1 mm'):
        run(
            interfaces.PriorFit,
            tmp_path,
            mask=data.file('mask'),
            priors=[f'map:{path}'],
            field_strength=3.0,
            **files,
        )


def test_outliers_are_clipped_only_where_it_is_said():
    assert Arm().clip_outliers is interfaces.DipoleInversion().inputs.clip_outliers is False


SOURCES = [
    path
    for folder in ('numerics', 'interfaces')
    for path in sorted((Path(interfaces.__file__).parents[1] / folder).rglob('*.py'))
]


OF_OTHERS = ('--model',)
"""Options of other programs: SynthStrip."""


@pytest.mark.parametrize('path', SOURCES, ids=lambda path: path.stem)
def test_functions_and_nodes_do_not_speak_of_the_command_line(path):
    texts = (node.value for node in ast.walk(ast.parse(path.read_text())) if _is_text(node))
    words = (word for text in texts for word in re.findall(r'(?<![\w-])--[a-z][a-z-]*', text))
    assert not [word for word in words if word not in OF_OTHERS]


def _is_text(node):
    return isinstance(node, ast.Constant) and isinstance(node.value, str)
