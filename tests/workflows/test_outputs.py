"""The outputs workflow on small arrays: names, bytes, units, sidecars, the validator's verdict."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nb
import numpy as np
import pytest

from precondqsm_bids.config import Settings
from precondqsm_bids.inputs.run import Run
from precondqsm_bids.method import Method
from precondqsm_bids.outputs.dataset import write_dataset_description
from precondqsm_bids.outputs.maps import MAPS as TABLE
from precondqsm_bids.outputs.report import Account, write_report
from precondqsm_bids.outputs.tables import read_table
from precondqsm_bids.workflows.outputs import init_outputs_wf, ports_of

SHAPE = (24, 22, 30)
FIELD_STRENGTH = 3.0
ECHO_TIMES = [0.002, 0.005, 0.008]
PREFIX = 'sub-01_ses-a_acq-hi_rec-norm_run-02'
MAPS = [
    'anat/desc-precond_Chimap',
    'anat/desc-conventional_Chimap',
    'anat/desc-prior_Chimap',
    'anat/desc-residual_Chimap',
    'anat/desc-precondstd_Chimap',
    'anat/desc-support_Chimap',
    'anat/R2starmap',
    'anat/T2starmap',
    'anat/S0map',
    'anat/R2primemap',
    'anat/desc-shape_mask',
    'anat/desc-roi_mask',
    'anat/desc-prior_dseg',
    'fmap/desc-total_fieldmap',
    'fmap/desc-flattened_fieldmap',
    'fmap/desc-tissueshift_fieldmap',
    'fmap/desc-local_fieldmap',
    'fmap/magnitude',
]
UNITS = {
    'Chimap': 'ppm',
    'R2starmap': '1/s',
    'T2starmap': 's',
    'S0map': 'arbitrary',
    'R2primemap': '1/s',
    'fieldmap': 'Hz',
    'magnitude': 'arbitrary',
}


def output_path(root, name):
    folder, rest = name.split('/')
    # A fieldmap knows no rec, so it is part of acq there.
    prefix = PREFIX if folder == 'anat' else 'sub-01_ses-a_acq-hirecnorm_run-02'
    return root / 'sub-01' / 'ses-a' / folder / f'{prefix}_{rest}.nii.gz'


@pytest.fixture(scope='module')
def raw(tmp_path_factory):
    """A raw dataset with one run, and the files that a reconstruction of it would hand over."""
    root = tmp_path_factory.mktemp('raw')
    anat = root / 'sub-01' / 'ses-a' / 'anat'
    anat.mkdir(parents=True)
    (root / 'dataset_description.json').write_text(
        json.dumps(
            {'Name': 'raw', 'BIDSVersion': '1.10.0', 'License': 'CC0', 'Authors': ['A', 'B']}
        )
    )
    rng = np.random.default_rng(0)
    affine = np.diag([1.5, 1.0, 2.0, 1.0])
    affine[:3, 3] = -18, -11, -30
    sources = []
    for echo in (1, 2, 3):
        for part in ('mag', 'phase'):
            path = anat / f'{PREFIX}_echo-{echo}_part-{part}_MEGRE.nii.gz'
            nb.Nifti1Image(rng.random(SHAPE, np.float32), affine).to_filename(path)
            sources.append(str(path))

    work = tmp_path_factory.mktemp('recon')
    x, y, _ = np.indices(SHAPE) - np.array(SHAPE).reshape(3, 1, 1, 1) // 2
    mask = np.hypot(x * 1.5, y) < 10
    labels = np.where(mask, 1, 0)
    labels[np.hypot(x * 1.5, y) < 3] = 2
    labels[..., [0, -1]] *= labels[..., [0, -1]] == 1
    files = {}
    for port in TABLE:
        data = rng.normal(size=SHAPE).astype(np.float32) * mask
        if port.endswith('mask'):
            data = mask.astype(np.uint8)
        if port == 'consensus_mask':
            data[..., :4] = 0  # a rim
        if port == 'prior_labels':
            data = labels.astype(np.int32)
        files[port] = work / f'{port}.nii.gz'
        nb.Nifti1Image(data, affine).to_filename(files[port])
    dseg = root / 'derivatives' / 'truth' / 'sub-01' / 'anat' / 'sub-01_dseg.nii.gz'
    dseg.parent.mkdir(parents=True)
    nb.Nifti1Image(labels.astype(np.int16), affine).to_filename(dseg)
    return root, sources, files, dseg


def l_curve(corner):
    weights = np.logspace(-2, 1, 20)
    return {
        'reg_weights': weights.tolist(),
        'consistency': (1 + weights).tolist(),
        'regularization': (1 / (1 + weights)).tolist(),
        'curvature': np.exp(-(np.log(weights / corner) ** 2)).tolist(),
        'reg_weight': corner,
        'warnings': ['the corner is at the end of the range'] if corner > 1 else [],
    }


def record():
    chosen = {'reg_weight': 0.12, 'rule': 'l-curve', 'flatness': np.float32(np.nan)}
    reference = {
        'reference': 'roi-mean',
        'reference_value': 0.01,
        'reference_sd': 0.2,
        'roi_mean': 0.0,
        'roi_sd': 0.3,
    }
    return {
        'echo_fit': {'sigma': 1.5, 'n_echoes': np.int64(3), 'b0_dir': [0.0, 0.0, 1.0]},
        'r2prime_prior': {'r2': 10.0, 'r2_source': 'given'},
        'shape_mask': {'chi_step': -9.41},
        'flattening': {'padding': 2},
        'background_removal': {'iterations': 30},
        'dipole_inversion': chosen,
        'recombination': reference,
        'conventional_background_removal': {'iterations': 30},
        'conventional_dipole_inversion': chosen | {'reg_weight': 0.75},
        'conventional_recombination': reference,
    }


OF_CONSENSUS = {
    'quality_mask': {'most_field_sd': 0.05, 'left_out_voxels': 12, 'enclosed_voxels': 0},
    'background_removal': {'method': 'vsharp', 'known_voxels': 900, 'radii': [1.0]},
    'dipole_inversion': {
        'reg_weight': 0.4, 'rule': 'risk', 'tv_weight': 0.02, 'inversion': 'tv', 'warnings': [],
    },
    'recombination': record()['recombination'],
}  # fmt: skip


def run_and_settings(raw, out, labels=True, **method):
    """The run of the dataset, and settings that write all of it."""
    root, sources, _, dseg = raw
    run = Run(
        subject='01',
        session='a',
        entities={'acq': 'hi', 'rec': 'norm', 'run': '02'},
        magnitude=tuple(sources[::2]),
        phase=tuple(sources[1::2]),
        echo_times=tuple(ECHO_TIMES),
        field_strength=FIELD_STRENGTH,
        metadata={'Manufacturer': 'Philips', 'RepetitionTime': 0.025, 'FlipAngle': 20},
        labels=str(dseg) if labels else None,
        label_names={1: 'agar', 2: 'tube'} if labels else None,
    )
    settings = Settings(
        bids_dir=root,
        output_dir=out,
        derivatives={'truth': root / 'derivatives' / 'truth'},
        write_prior_labels=True,
        method=Method(**method),
    )
    return run, settings


def run_outputs(raw, out, work, plugin='Linear', **values):
    run, settings = run_and_settings(raw, out, **values)
    workflow = init_outputs_wf(run, settings)
    workflow.base_dir = str(work)
    workflow.config['execution'] = {'poll_sleep_duration': 0.05, 'crashdump_dir': str(work)}
    numbers = record()
    if settings.method.consensus:
        numbers |= {f'consensus_{stage}': values for stage, values in OF_CONSENSUS.items()}
    made = {**raw[2], 'record': numbers, 'l_curve': l_curve(0.12)}
    made['conventional_l_curve'] = l_curve(2.0)
    for port in ports_of(run, settings):
        value = made[port]
        setattr(workflow.inputs.inputnode, port, str(value) if isinstance(value, Path) else value)
    workflow.run(plugin=plugin, plugin_args={'n_procs': 2, 'raise_insufficient': False})
    write_dataset_description(out, raw[0], settings.derivatives)
    return out


@pytest.fixture(scope='module')
def derivatives(raw, tmp_path_factory):
    """Written by MultiProc: a node that is copied to another process loses trait defaults."""
    base = tmp_path_factory.mktemp('out')
    out = run_outputs(raw, base / 'out', base / 'work', plugin='MultiProc')
    write_report(out, '01', Account({PREFIX: {}}, 'precondqsm_bids RAW OUT participant'))
    return out


def test_all_files_of_the_contract_are_written_compressed(derivatives):
    for name in MAPS:
        path = output_path(derivatives, name)
        assert path.read_bytes()[:2] == b'\x1f\x8b', name
        assert path.with_name(path.name.replace('.nii.gz', '.json')).is_file()
    maps = {p for p in derivatives.rglob('*.nii*') if 'figures' not in p.parts}
    assert len(maps) == len(MAPS)
    assert not [p for p in derivatives.rglob('.*') if p.name != '.bidsignore']


def test_data_and_affine_are_those_of_the_reconstruction(raw, derivatives):
    written = nb.load(output_path(derivatives, 'anat/desc-precond_Chimap'))
    source = nb.load(raw[2]['precond_chi'])
    assert np.array_equal(written.get_fdata(), source.get_fdata())
    assert np.array_equal(written.affine, source.affine)
    assert written.get_data_dtype() == np.float32


def test_fields_are_in_hertz(raw, derivatives):
    written = nb.load(output_path(derivatives, 'fmap/desc-local_fieldmap')).get_fdata()
    ppm = nb.load(raw[2]['local_field']).get_fdata()
    # 42.57638543 MHz/T (shielded proton, CODATA 2022) at 3 T: 127.729 Hz per ppm
    assert np.allclose(written, 127.72915629 * ppm, rtol=1e-6)


def test_sidecars_have_what_bids_requires(derivatives):
    for name in MAPS:
        path = output_path(derivatives, name)
        sidecar = json.loads(path.with_name(path.name.replace('.nii.gz', '.json')).read_text())
        suffix = name.rsplit('_', 1)[-1].split('/')[-1]
        required = {'Description', 'Sources', 'SpatialReference', 'B0Direction'}
        if suffix == 'mask':
            assert sidecar['Type'] == 'ROI'
        elif suffix == 'dseg':
            assert sidecar['Manual'] is False
        else:
            required |= {'SkullStripped', 'EchoTime'}
            assert sidecar['Units'] == ('1' if 'support' in name else UNITS[suffix])
            assert sidecar['EchoTime'] == ECHO_TIMES
        if suffix not in ('mask', 'magnitude', 'dseg'):
            required |= {'EstimationReference', 'EstimationAlgorithm'}
        assert required <= set(sidecar), name
        assert sidecar['SpatialReference'] == 'orig'
        assert sidecar['Sources'][0] == (
            f'bids:raw:sub-01/ses-a/anat/{PREFIX}_echo-1_part-mag_MEGRE.nii.gz'
        )


def test_susceptibility_travels_with_what_the_consensus_asks_for(derivatives):
    path = output_path(derivatives, 'anat/desc-precond_Chimap')
    sidecar = json.loads(path.with_name(path.name.replace('.nii.gz', '.json')).read_text())
    assert sidecar['MagneticFieldStrength'] == 3.0
    assert sidecar['Manufacturer'] == 'Philips'
    assert sidecar['RepetitionTime'] == 0.025
    assert sidecar['NumberOfEchoes'] == 3
    assert sidecar['EchoSpacing'] == '2:3:8 ms'
    assert sidecar['MatrixSize'] == list(SHAPE)
    assert sidecar['VoxelSize'] == [1.5, 1.0, 2.0]
    assert sidecar['Reference'] | {'Note': ''} == {
        'Region': 'roi-mean',
        'WholeRegion': 'object',
        'Subtracted': 0.01,
        'StandardDeviation': 0.2,
        'WholeRegionReferencedMean': 0.01,
        'RegionOfInterestMean': 0.0,
        'RegionOfInterestStandardDeviation': 0.3,
        'Units': 'ppm',
        'Note': '',
    }
    assert sidecar['Parameters']['background_removal'] == {'iterations': 30}
    assert sidecar['Parameters']['dipole_inversion']['flatness'] is None
    assert 'lambda = 0.12 mm (corner of the L-curve)' in sidecar['EstimationAlgorithm']
    assert 'conventional_recombination' not in sidecar['Parameters']
    assert sidecar['ExclusionCriteria']


def test_roi_table_and_its_dictionary_agree(derivatives, raw):
    table = derivatives / 'sub-01' / 'ses-a' / 'anat' / f'{PREFIX}_desc-rois_values.tsv'
    dictionary = json.loads(table.with_suffix('.json').read_text())
    rows = read_table(table)
    assert [row['name'] for row in rows] == ['agar', 'tube']
    assert set(rows[0]) == set(dictionary) - {'Sources'}
    assert all(dictionary[column]['Description'] for column in rows[0])
    chi = nb.load(raw[2]['precond_chi']).get_fdata()
    labels = np.asanyarray(nb.load(raw[3]).dataobj)
    assert rows[1]['precond_chi_mean'] == pytest.approx(chi[labels == 2].mean(), rel=1e-4)
    assert dictionary['Sources'][-1] == 'bids:truth:sub-01/anat/sub-01_dseg.nii.gz'


def test_validator_has_nothing_to_say(derivatives):
    validator = Path(sys.executable).with_name('bids-validator-deno')
    result = subprocess.run(
        [validator, '--format', 'json', str(derivatives)], capture_output=True, text=True
    )
    issues = json.loads(result.stdout)['issues']['issues']
    assert [i for i in issues if i.get('severity') in ('error', 'warning')] == []
    assert result.returncode == 0


def test_dataset_links_cover_every_uri(derivatives):
    description = json.loads((derivatives / 'dataset_description.json').read_text())
    used = set()
    for path in derivatives.rglob('*.json'):
        used |= set(re.findall(r'"bids:([^:]*):', path.read_text()))
    assert used == set(description['DatasetLinks']) == {'raw', 'truth'}


@pytest.mark.slow
def test_two_runs_write_the_same_bytes(raw, derivatives, tmp_path):
    again = run_outputs(raw, tmp_path / 'out', tmp_path / 'work')
    write_report(again, '01', Account({PREFIX: {}}, 'precondqsm_bids RAW OUT participant'))

    def hashes(root):
        return {
            p.relative_to(root): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in sorted(root.rglob('*'))
            if p.is_file() and p.name != 'dataset_description.json'  # has the folder in it
        }

    assert hashes(again) == hashes(derivatives)


@pytest.mark.slow
def test_without_conventional_arm_and_labels(raw, tmp_path):
    out = run_outputs(raw, tmp_path / 'out', tmp_path / 'work', conventional=False, labels=False)
    names = {p.name.removeprefix(f'{PREFIX}_') for p in (out / 'sub-01').rglob('*')}
    assert 'desc-precond_Chimap.nii.gz' in names
    assert 'desc-comparison_Chimap.png' in names
    assert 'desc-conventional_Chimap.nii.gz' not in names
    assert 'desc-rois_values.tsv' not in names


@pytest.mark.slow
def test_arms_of_the_consensus(raw, tmp_path):
    out = run_outputs(raw, tmp_path / 'out', tmp_path / 'work', consensus=True)
    for name in ('conventionalrisk_Chimap', 'consensus_Chimap', 'consensus_mask'):
        assert output_path(out, f'anat/desc-{name}').is_file()
    path = output_path(out, 'anat/desc-consensus_Chimap')
    sidecar = json.loads(path.with_name(path.name.replace('.nii.gz', '.json')).read_text())
    assert 'V-SHARP' in sidecar['EstimationAlgorithm']
    assert 'total variation, alpha = 0.02 ppm mm' in sidecar['EstimationAlgorithm']
    assert 'lambda = 0.4 mm (least expected error)' in sidecar['EstimationAlgorithm']
    assert '10.1002/mrm.30006' in sidecar['EstimationReference']
    assert 'Wu B' in sidecar['EstimationReference']
    assert 'desc-consensus_mask' in sidecar['ExclusionCriteria']
    assert {'consensus_quality_mask', 'consensus_background_removal'} <= set(sidecar['Parameters'])
    # Values are those of the voxels that the map knows: the rim is zero in it, and no value.
    table = out / 'sub-01' / 'ses-a' / 'anat' / f'{PREFIX}_desc-rois_values.tsv'
    row = read_table(table)[0]
    chi = nb.load(raw[2]['consensus_chi']).get_fdata()
    known = np.asanyarray(nb.load(raw[2]['consensus_mask']).dataobj) > 0
    inside = (np.asanyarray(nb.load(raw[3]).dataobj) == 1) & known
    assert row['consensus_chi_n'] == inside.sum() < row['conventional_risk_chi_n']
    assert row['consensus_chi_mean'] == pytest.approx(chi[inside].mean(), rel=1e-4)
    page = write_report(out, '01', Account({PREFIX: {}}, 'precondqsm_bids RAW OUT participant'))
    text = page.read_text()
    for heading in ('<th>consensus</th>', '<th>conventional, least expected error</th>'):
        assert heading in text
    assert '900 voxels (desc-consensus_mask): without 12 at the border' in text
    assert 'Consensus: λ' in text


def test_output_folder_can_be_moved_with_the_raw_data(raw, derivatives, tmp_path):
    root = raw[0]
    inside = root / 'derivatives' / 'precondqsm_bids'
    try:
        path = write_dataset_description(inside, root)
        assert json.loads(path.read_text())['DatasetLinks'] == {'raw': '../..'}
    finally:
        shutil.rmtree(inside)
