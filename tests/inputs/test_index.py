"""The index of a dataset, and what of it is left out."""

import shutil

import pytest
from inputs import find

from precondqsm_bids.inputs.index import check_description
from precondqsm_bids.inputs.run import InputError


def test_plain_t2starw_is_left_alone(dataset):
    dataset.write_image(dataset.root / 'sub-01/anat/sub-01_T2starw.nii.gz')
    runs, (note,) = find(dataset.root)
    assert (runs, note.kind) == ([], 'skipped')
    assert 'without echo and part' in note.message


def test_other_folders_are_no_part_of_the_dataset(dataset):
    dataset.add_run()
    for folder in ('derivatives/x', 'sourcedata', 'code', 'out'):
        shutil.copytree(dataset.root / 'sub-01', dataset.root / folder / 'sub-01')
    runs, problems = find(dataset.root, ignore=[dataset.root / 'out'])
    assert (len(runs), problems) == (1, [])


def test_index_is_kept_and_belongs_to_its_dataset(dataset, tmp_path):
    dataset.add_run('sub-01')
    dataset.add_run('sub-02')
    database = tmp_path / 'db'
    find(dataset.root, participant_label=['01'], database_dir=database)
    runs, _ = find(dataset.root, participant_label=['02'], database_dir=database)
    assert [run.label for run in runs] == ['sub-02']
    shutil.copytree(dataset.root, tmp_path / 'other')
    with pytest.raises(InputError, match='is that of'):
        find(tmp_path / 'other', database_dir=database)


def test_index_that_was_not_finished_is_not_kept(dataset, tmp_path, monkeypatch):
    from bids.layout import BIDSLayoutIndexer

    dataset.add_run('sub-01')
    database = tmp_path / 'db'

    def stopped(*args, **keywords):
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(BIDSLayoutIndexer, '_index_dir', stopped)
        with pytest.raises(KeyboardInterrupt):
            find(dataset.root, database_dir=database)
    assert not list(database.rglob('*.sqlite'))
    runs, _ = find(dataset.root, database_dir=database)
    assert [run.label for run in runs] == ['sub-01']
    assert [path.name for path in database.rglob('*.sqlite')] == ['layout_index.sqlite']


@pytest.mark.parametrize(
    'content, message',
    [
        (None, 'cannot read'),
        ('{', 'not valid JSON'),
        ('{"Name": "x"}', 'lacks BIDSVersion'),
        ('[]', 'lacks Name and BIDSVersion'),
    ],
)
def test_description(tmp_path, content, message):
    if content is not None:
        (tmp_path / 'dataset_description.json').write_text(content)
    with pytest.raises(InputError, match=f'{message}.*--skip-bids-validation'):
        check_description(tmp_path)


def test_a_file_in_another_participants_folder(dataset):
    folder = dataset.add_run()
    dataset.write_image(folder / 'sub-02_echo-1_part-mag_MEGRE.nii.gz')
    runs, (problem,) = find(dataset.root)
    assert [run.subject for run in runs] == ['01']
    assert problem.subject == '01'
    assert 'belongs into the folder sub-02/anat' in problem.message


def test_what_is_left_out_is_told(dataset):
    dataset.add_run('sub-01_ses-a')
    dataset.add_run('sub-01_ses-b', echo_times=(0.004, 0.008))
    dataset.write_image(dataset.root / 'sub-01/ses-a/qsm/sub-01_ses-a_echo-1_MEGRE.nii.gz')
    dataset.write_image(dataset.root / 'sub-02/anat/sub-02_T1w.nii.gz')
    runs, problems = find(dataset.root, session_label=['a'])
    assert [run.label for run in runs] == ['sub-01_ses-a']
    assert [(p.kind, p.message) for p in problems] == [
        (
            'skipped',
            'not in a folder anat or swi, where BIDS has such images. As a gradient echo it '
            'should be sub-01/ses-a/anat/sub-01_ses-a_echo-1_MEGRE.nii.gz, and its sidecar alike',
        ),
        (
            'skipped',
            '4 images, this is the first: not among the sessions of --session-label',
        ),
        ('skipped', 'no multi-echo images'),
    ]


def test_the_draft_folder_for_susceptibility(dataset):
    folder = dataset.add_run()
    folder.rename(folder.with_name('swi'))
    (run,), problems = find(dataset.root)
    assert (run.label, problems) == ('sub-01', [])


def test_an_index_that_cannot_be_read_is_named(dataset, tmp_path):
    """Damaged, or made by another version of pybids."""
    dataset.add_run()
    index = tmp_path / 'db' / 'layout_index.sqlite'
    index.parent.mkdir()
    index.write_text('no index')
    with pytest.raises(InputError, match=r'the index in .*/db cannot be read .*remove it$'):
        find(dataset.root, database_dir=index.parent)
