"""Names, bytes and descriptions of the derivatives."""

import gzip
import json
import os
import threading

import nibabel as nb
import numpy as np
import pytest
from precondqsm_bids.interfaces.bids import (
    OUTPUTS,
    DerivativesDataSink,
    PpmToHz,
    bids_uri,
    compose_sidecar,
    fieldmap_acquisition,
    write_dataset_description,
)

from precondqsm_bids import __version__
from precondqsm_bids.interfaces import bids
from precondqsm_bids.outputs.files import BIDSIGNORE

SOURCES = [
    f'/raw/sub-01/ses-b/anat/sub-01_ses-b_run-1_echo-{echo}_part-{part}_MEGRE.nii.gz'
    for echo in (1, 2, 10)
    for part in ('mag', 'phase')
]


@pytest.fixture
def volume(tmp_path):
    path = tmp_path / 'chi.nii'
    nb.Nifti1Image(np.arange(24, dtype=np.float32).reshape(2, 3, 4), np.eye(4)).to_filename(path)
    return path


@pytest.fixture
def raw(tmp_path):
    root = tmp_path / 'raw'
    root.mkdir()
    (root / 'dataset_description.json').write_text('{"Name": "r", "BIDSVersion": "1.10.0"}')
    return root


def sink(volume, out, cwd, **entities):
    node = DerivativesDataSink(
        base_directory=str(out), source_file=SOURCES, in_file=str(volume), **entities
    )
    return node.run(cwd=cwd).outputs


def test_name_has_neither_echo_nor_part_and_is_compressed(volume, tmp_path):
    out = tmp_path / 'out'
    result = sink(volume, out, tmp_path, datatype='anat', desc='precond', suffix='Chimap')
    expected = out / 'sub-01/ses-b/anat/sub-01_ses-b_run-1_desc-precond_Chimap.nii.gz'
    assert result.out_file == str(expected)
    assert expected.read_bytes()[:2] == b'\x1f\x8b'
    assert np.array_equal(nb.load(expected).dataobj, nb.load(volume).dataobj)


def test_only_our_names_are_written(volume, tmp_path):
    with pytest.raises(ValueError, match='unwrapped'):
        sink(volume, tmp_path / 'out', tmp_path, datatype='anat', suffix='unwrapped')
    assert not list((tmp_path / 'out').rglob('*.nii*'))


def test_file_is_replaced_at_once_and_nothing_is_left_beside_it(volume, tmp_path, monkeypatch):
    out = tmp_path / 'out'
    first = sink(volume, out, tmp_path, datatype='anat', suffix='S0map', meta_dict={'Units': '1'})
    before = open(first.out_file, 'rb')  # noqa: SIM115 - a reader in the middle of the old map
    old = volume.read_bytes()
    nb.Nifti1Image(np.ones((2, 3, 4), np.float32), np.eye(4)).to_filename(volume)
    renamed = []
    replace = os.replace
    monkeypatch.setattr(
        bids.os, 'replace', lambda a, b: (renamed.append(os.path.basename(b)), replace(a, b))
    )
    second = sink(volume, out, tmp_path, datatype='anat', suffix='S0map', meta_dict={'Units': '2'})
    with before:
        image = nb.Nifti1Image.from_bytes(gzip.decompress(before.read()))
    assert np.array_equal(image.dataobj, nb.Nifti1Image.from_bytes(old).dataobj)
    assert renamed == ['sub-01_ses-b_run-1_S0map.json', 'sub-01_ses-b_run-1_S0map.nii.gz']
    assert nb.load(second.out_file).get_fdata().max() == 1
    assert len([p for p in out.rglob('*') if p.is_file()]) == 2


def test_a_table_is_not_compressed(tmp_path):
    table = tmp_path / 'table.tsv'
    table.write_text('index\n1\n')
    result = sink(table, tmp_path / 'out', tmp_path, datatype='anat', desc='rois', suffix='values')
    assert result.out_file.endswith('sub-01_ses-b_run-1_desc-rois_values.tsv')
    with open(result.out_file) as stream:
        assert stream.read() == 'index\n1\n'


def test_ppm_to_hz(volume, tmp_path):
    result = PpmToHz(in_file=str(volume), field_strength=7.0).run(cwd=tmp_path).outputs
    written = nb.load(result.out_file)
    # 1 ppm of 42.57638543 MHz/T x 7 T
    assert np.allclose(written.get_fdata(), nb.load(volume).get_fdata() * 298.034698, rtol=1e-6)
    assert written.get_data_dtype() == np.float32


def test_fieldmaps_of_runs_that_differ_only_in_rec_have_different_names():
    names = [fieldmap_acquisition(f'sub-01_acq-hi_rec-{rec}_echo-1_MEGRE.nii.gz') for rec in 'ab']
    assert names == ['hireca', 'hirecb']


def test_uri_prefers_the_derivative_that_lies_in_the_raw_dataset():
    links = {'truth': '/data/derivatives/truth'}
    assert bids_uri('/data/derivatives/truth/x.nii', '/data', links) == 'bids:truth:x.nii'
    assert bids_uri('/data/sub-1/x.nii', '/data', links) == 'bids:raw:sub-1/x.nii'
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
    sidecar = compose_sidecar(
        OUTPUTS[port],
        {'flattening': {'shape': shape}},
        sources=[],
        echo_times=[0.004, 0.008],
        field_strength=3.0,
        metadata={},
        matrix=[1, 1, 1],
        voxel_size=[1, 1, 1],
        settings={},
    )
    assert ("the object's shape" in sidecar[key]) is shape


def test_description(raw, tmp_path, monkeypatch):
    for name in ('APPTAINER_CONTAINER', 'SINGULARITY_CONTAINER'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('PRECONDQSM_BIDS_DOCKER_TAG', 'precondqsm_bids:1')
    path = write_dataset_description(tmp_path / 'out', raw, {'labels': tmp_path / 'labels'})
    description = json.loads(path.read_text())
    assert description['DatasetType'] == 'derivative'
    assert description['GeneratedBy'][0]['Name'] == 'precondqsm_bids'
    assert description['GeneratedBy'][0]['Version'] == __version__
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
    sidecar = compose_sidecar(
        OUTPUTS['prior_chi'],
        record,
        sources=['bids:raw:x'],
        echo_times=[0.01, 0.02],
        field_strength=3.0,
        metadata={},
        matrix=[2, 2, 2],
        voxel_size=[1, 1, 1],
        settings={},
    )
    assert sidecar['EstimationAlgorithm'].startswith(algorithm)
    assert sidecar['EstimationReference'].startswith(reference)


def test_sidecar_of_a_field_of_zero_says_that_nothing_was_inverted():
    output = OUTPUTS['residual_chi']
    record = {'dipole_inversion': {'reg_weight': None, 'rule': 'risk', 'corner': None}}
    sidecar = compose_sidecar(
        output, record, sources=[], echo_times=[0.01], field_strength=3.0, metadata={},
        matrix=[1, 1, 1], voxel_size=[1, 1, 1], settings={},
    )  # fmt: skip
    assert sidecar['EstimationAlgorithm'].endswith('the field is zero, and nothing was inverted')
