"""Names that people give to echoes, and those that they should have."""

import json
from pathlib import PurePath

import pytest
from bids_validator import BIDSValidator
from inputs import find

from precondqsm_bids.inputs.lookalikes import read_name

NAMES = [
    'anat/sub-01_acq-0.8mm_echo-1_part-mag_MEGRE.nii.gz',
    'anat/sub-01_acq-hi_res_1.5_echo-1_part-phase_MEGRE.nii.gz',
    'anat/sub-01_GRE_e3_ph.nii.gz',
    'anat/sub-01_echo-2_part-mag_ME-GRE.nii.gz',
    'anat/sub-01_MEGRE_imaginary.nii',
    'anat/sub-01_t2star_echo2.nii.gz',
    'anat/sub-01_echo-1_part-mag_MEGRE__dup-01.nii.gz',
    'anat/echo-1_MEGRE.nii.gz',
    'ses-a/func/sub-01_ses-a_task-rest_run-1_echo-1_bold.nii.gz',
    'fmap/sub-01_magnitude1.nii.gz',
    'fmap/sub-01_phasediff.nii.gz',
    'anat/sub-01_inv-2_part-phase_MP2RAGE.nii.gz',
    'anat/sub-01_echo-2_flip-20_mt-off_part-mag_MPM.nii.gz',
    'swi/sub-01_part-phase_GRE.nii.gz',
    'anat/sub-01_echo-5_MEGRE.img',
]


@pytest.mark.parametrize('name', NAMES)
def test_the_right_name_is_that_of_a_bids_file_and_nothing_is_wrong_with_it(name):
    found = read_name(PurePath('sub-01', name), '01')
    assert found.echo_like
    assert found.wrong
    # MEGRE without echo is not of BIDS: it may have an axis of echoes.
    assert BIDSValidator().is_bids(f'/{found.target}') or '_echo-' not in found.target
    again = read_name(PurePath(found.target), '01')
    assert (again.target, again.wrong) == (found.target, ())


def test_different_names_stay_different():
    targets = {read_name(PurePath('sub-01', name), '01').target for name in NAMES}
    assert len(targets) == len(NAMES)


@pytest.mark.parametrize(
    'name',
    [
        'anat/sub-01_T1w.nii.gz',
        'anat/sub-01_acq-mag_T1w.nii.gz',
        'anat/sub-01_T2starmap.nii.gz',
        'anat/sub-01_desc-echo_dseg.nii.gz',
        'swi/sub-01_swi.nii.gz',
        'dwi/sub-01_dir-AP_dwi.nii.gz',
        'func/sub-01_task-rest_bold.nii.gz',
        'fmap/sub-01_magnitude.nii.gz',
        'fmap/sub-01_fieldmap.nii.gz',
        'anat/sub-01_PDw.nii.gz',
    ],
)
def test_other_images_do_not_look_like_echoes(name):
    assert not read_name(PurePath('sub-01', name), '01').echo_like


def test_renamed_as_told_they_are_a_run(dataset):
    for echo in (1, 2):
        for word in ('', '_ph'):
            stem = dataset.root / f'sub-01/anat/sub-01_acq-0.7_GRE_e{echo}{word}'
            dataset.write_image(stem.parent / f'{stem.name}.nii.gz')
            metadata = {'EchoTime': 0.004 * echo, 'MagneticFieldStrength': 3}
            (stem.parent / f'{stem.name}.json').write_text(json.dumps(metadata))
    runs, problems = find(dataset.root)
    assert runs == []
    assert {problem.kind for problem in problems} == {'skipped'}
    for path in sorted((dataset.root / 'sub-01/anat').glob('*.nii.gz')):
        target = dataset.root / read_name(path.relative_to(dataset.root), '01').target
        path.rename(target)
        sidecar = target.name.replace('.nii.gz', '.json')
        path.with_name(path.name.replace('.nii.gz', '.json')).rename(target.with_name(sidecar))
    (run,), problems = find(dataset.root)
    assert not problems
    assert (run.label, run.echo_times) == ('sub-01_acq-0p7', (0.004, 0.008))


def test_an_image_that_an_older_index_lacks(dataset, tmp_path):
    dataset.add_run()
    find(dataset.root, database_dir=tmp_path / 'db')
    dataset.add_run('sub-01_run-2')
    runs, (problem,) = find(dataset.root, database_dir=tmp_path / 'db')
    assert [run.label for run in runs] == ['sub-01']
    assert problem.message == (
        '6 images, this is the first: not in the index of --bids-database-dir, which is older: '
        'remove the index'
    )
