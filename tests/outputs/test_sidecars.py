"""Descriptions of the derivatives: sidecars, URIs, the dataset."""

import json
import os
import threading

import pytest

from precondqsm_bids.outputs.dataset import bids_uri, write_dataset_description
from precondqsm_bids.outputs.files import BIDSIGNORE
from precondqsm_bids.outputs.maps import MAPS, WRITTEN
from precondqsm_bids.outputs.sidecars import Facts, compose_sidecar
from precondqsm_bids.revision import full_version

FACTS = Facts(sources=['bids:raw:x'], echo_times=[0.004, 0.008], field_strength=3.0)


@pytest.fixture
def raw(tmp_path):
    root = tmp_path / 'raw'
    root.mkdir()
    (root / 'dataset_description.json').write_text('{"Name": "r", "BIDSVersion": "1.10.0"}')
    return root


def test_uri_prefers_the_derivative_that_lies_in_the_raw_dataset():
    links = {'truth': '/data/derivatives/truth'}
    assert bids_uri('/data/derivatives/truth/x.nii', '/data', links) == 'bids:truth:x.nii'
    assert bids_uri('/data/sub-1/x.nii', '/data', links) == 'bids:raw:sub-1/x.nii'
    assert bids_uri('/data/sub-1/é 1.nii', '/data', links) == 'bids:raw:sub-1/%C3%A9%201.nii'
    assert bids_uri('/elsewhere/x.nii', '/data', links) == 'file:///elsewhere/x.nii'


def test_uri_through_links_to_the_dataset_and_of_a_linked_file(tmp_path):
    (tmp_path / 'annex').write_text('')
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data' / 'x.nii').symlink_to(tmp_path / 'annex')
    (tmp_path / 'link').symlink_to(tmp_path / 'data')
    for file, root in (('data', 'link'), ('link', 'data'), ('data', 'data')):
        assert bids_uri(tmp_path / file / 'x.nii', tmp_path / root, {}) == 'bids:raw:x.nii'


@pytest.mark.parametrize('shape', [True, False])
@pytest.mark.parametrize(
    'port,key', [('precond_chi', 'EstimationAlgorithm'), ('flattened_field', 'Description')]
)
def test_sidecar_names_the_shape_only_where_it_was_used(port, key, shape):
    sidecar = compose_sidecar(MAPS[port], {'flattening': {'shape': shape}}, FACTS)
    assert ("the object's shape" in sidecar[key]) is shape


def test_description(raw, tmp_path, monkeypatch):
    for name in ('APPTAINER_CONTAINER', 'SINGULARITY_CONTAINER'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('PRECONDQSM_BIDS_DOCKER_TAG', 'precondqsm_bids:1')
    path = write_dataset_description(tmp_path / 'out', raw, {'labels': tmp_path / 'labels'})
    description = json.loads(path.read_text())
    assert description['DatasetType'] == 'derivative'
    assert description['GeneratedBy'][0]['Name'] == 'precondqsm_bids'
    assert description['GeneratedBy'][0]['Version'] == full_version()
    assert description['GeneratedBy'][0]['Container'] == {
        'Type': 'docker',
        'Tag': 'precondqsm_bids:1',
    }
    assert description['DatasetLinks'] == {
        'raw': raw.as_uri(),
        'labels': (tmp_path / 'labels').as_uri(),
    }
    assert {'Name', 'BIDSVersion', 'SourceDatasets', 'HowToAcknowledge'} <= set(description)
    assert 'License' not in description


@pytest.mark.parametrize(
    ('text', 'licence'), [('\ufeff{"License": "CC0"}', 'CC0'), ('["no", "description"]', None)]
)
def test_description_of_the_raw_data_may_have_a_mark_or_be_none(raw, tmp_path, text, licence):
    (raw / 'dataset_description.json').write_text(text, encoding='utf-8')
    path = write_dataset_description(tmp_path / 'out', raw)
    assert json.loads(path.read_text()).get('License') == licence


def test_links_of_earlier_calls_stay(raw, tmp_path):
    """The sidecars of earlier participants refer to them."""
    out, folders = tmp_path / 'out', [tmp_path / name for name in ('one', 'two', 'three')]
    for folder in folders:
        folder.mkdir()
    one, two, three = folders
    write_dataset_description(out, raw, {'a': one})
    path = write_dataset_description(out, raw, {'b': two})
    links = {'raw': raw.as_uri(), 'a': one.as_uri(), 'b': two.as_uri()}
    assert json.loads(path.read_text())['DatasetLinks'] == links
    with pytest.raises(ValueError, match=f'"b" is {two} .*{three} as well'):
        write_dataset_description(out, raw, {'b': three})
    with pytest.raises(ValueError, match='give another output folder'):
        write_dataset_description(out, three)
    two.rmdir()  # it has moved
    write_dataset_description(out, raw, {'b': three})
    assert json.loads(path.read_text())['DatasetLinks'] == links | {'b': three.as_uri()}


def test_licence_is_inherited(raw, tmp_path):
    (raw / 'dataset_description.json').write_text('{"License": "PDDL", "DatasetDOI": "doi:10/x"}')
    description = json.loads(write_dataset_description(tmp_path / 'out', raw).read_text())
    assert description['License'] == 'PDDL'
    assert description['SourceDatasets'] == [{'DOI': 'doi:10/x'}]


def test_bidsignore_keeps_what_the_user_added(raw, tmp_path):
    out = tmp_path / 'out'
    out.mkdir()
    (out / '.bidsignore').write_text('mine\nlog\n')
    for _ in range(2):
        write_dataset_description(out, raw)
    lines = (out / '.bidsignore').read_text().splitlines()
    assert lines[:2] == ['mine', 'log']
    assert sorted(lines[1:]) == sorted(BIDSIGNORE)


def test_parallel_writers_leave_one_whole_file(raw, tmp_path):
    out, errors = tmp_path / 'out', []

    def write():
        try:
            for _ in range(20):
                write_dataset_description(out, raw)
                json.loads((out / 'dataset_description.json').read_text())
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert sorted(os.listdir(out)) == ['.bidsignore', 'README', 'dataset_description.json']


@pytest.mark.parametrize(
    'priors, fit, algorithm, reference',
    [
        (['contrast'], 'global', 'contrast (9 coefficients, 50.0 % of', 'Liu T'),
        (['map:/x/chi.nii'], 'none', 'map:chi.nii, as it is', 'The map that was given'),
        (['r2prime', 'tissue'], 'global', 'r2prime (9 coefficients', 'Yablonskiy'),
    ],
)
def test_sidecar_of_the_prior_says_what_it_is_made_of(priors, fit, algorithm, reference):
    explained = None if fit == 'none' else 0.5
    record = {
        'prior_fit': {
            'priors': {name: {'parcels': 9, 'explained': explained} for name in priors},
            'fit': fit,
        }
    }
    sidecar = compose_sidecar(MAPS['prior_chi'], record, FACTS)
    assert sidecar['EstimationAlgorithm'].startswith(algorithm)
    assert sidecar['EstimationReference'].startswith(reference)


def test_sidecar_of_a_field_of_zero_says_that_nothing_was_inverted():
    record = {'dipole_inversion': {'reg_weight': None, 'rule': 'risk', 'corner': None}}
    sidecar = compose_sidecar(MAPS['residual_chi'], record, FACTS._replace(echo_times=[0.01]))
    assert sidecar['EstimationAlgorithm'].endswith('the field is zero, and nothing was inverted')


@pytest.mark.parametrize(
    'shape, stripped',
    [
        ({'mask': 'object', 'shape_used': True}, False),
        ({'mask': 'object', 'shape_used': False}, False),  # a field of view without air
        ({'mask': 'slab.nii', 'shape_used': True}, False),
        ({'mask': 'brain.nii', 'shape_used': False}, True),
        ({'mask': 'sub-01_desc-brain_mask.nii.gz', 'shape_used': True}, True),  # large voxels
        ({'mask': 'brain', 'shape_used': True}, True),
    ],
)
def test_maps_are_skull_stripped_where_a_given_mask_lies_inside_the_object(shape, stripped):
    record = {'shape_mask': shape}
    said = {
        name: compose_sidecar(row, record, FACTS).get('SkullStripped')
        for name, row in WRITTEN.items()
    }
    assert said.pop('magnitude') is False  # it has every voxel
    for name, value in said.items():
        assert value is (None if name.endswith(('mask', 'labels')) else stripped), name


@pytest.mark.parametrize('row', WRITTEN.values(), ids=lambda row: row.name)
def test_every_sidecar_has_the_direction_of_b0(row):
    record = {'echo_fit': {'b0_dir': [0.0, 0.6, 0.8]}}
    assert compose_sidecar(row, record, FACTS)['B0Direction'] == [0.0, 0.6, 0.8]


def test_algorithms_are_those_that_ran():
    inversion = {'reg_weight': 0.1, 'rule': 'risk', 'tv_weight': 0.02}
    stages = {'background_removal': {'method': 'vsharp'}, 'dipole_inversion': inversion}
    reference = {'recombination': {'reference': 'none'}}
    for name in ('precond_chi', 'residual_chi'):
        plain = {'background_removal': {'method': 'pdf'}, 'dipole_inversion': {'reg_weight': 0.1}}
        sidecars = [compose_sidecar(MAPS[name], s | reference, FACTS) for s in (stages, plain)]
        texts = [f'{s["EstimationAlgorithm"]} {s["EstimationReference"]}' for s in sidecars]
        for word in ('V-SHARP', 'total variation, alpha = 0.02 ppm mm', 'Wu B', 'Milovic'):
            assert (word in texts[0], word in texts[1]) == (True, False)
        for word in ('rojection onto dipole', 'closed-form l2-reg', 'Liu T'):
            assert (word in texts[0], word in texts[1]) == (False, True)
