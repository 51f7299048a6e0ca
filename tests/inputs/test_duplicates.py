"""The same images under two names."""

import gzip
import shutil

import pytest

from precondqsm_bids.inputs.discovery import find_runs
from precondqsm_bids.inputs.duplicates import find_duplicates


@pytest.fixture
def runs(dataset):
    """Two runs and a second participant; every image is another."""

    def find():
        found, _ = find_runs(dataset.root)
        return found

    for stem in ('sub-01_run-1', 'sub-01_run-2', 'sub-02'):
        dataset.add_run(stem)
    for value, path in enumerate(sorted(dataset.root.rglob('*.nii.gz'))):
        dataset.write_image(path, value=value + 1.0)
    return find


def image(dataset, label, run, echo=2, part='mag'):
    name = f'sub-{label}{run}_echo-{echo}_part-{part}_MEGRE.nii.gz'
    return dataset.root / f'sub-{label}' / 'anat' / name


def test_other_images_are_no_duplicates(runs):
    assert find_duplicates(runs()) == []


@pytest.mark.parametrize('how', ['copied', 'linked', 'compressed anew', 'not compressed'])
def test_an_image_under_two_names_is_reported(runs, dataset, how):
    first, second = (image(dataset, '01', f'_run-{i}') for i in (1, 2))
    second.unlink()
    if how == 'copied':
        shutil.copy(first, second)
    elif how == 'linked':
        second.symlink_to(first)
    elif how == 'compressed anew':
        second.write_bytes(gzip.compress(gzip.decompress(first.read_bytes()), 1, mtime=7))
    else:
        second = second.with_suffix('')
        second.write_bytes(gzip.decompress(first.read_bytes()))
    (problem,) = find_duplicates(runs())
    assert (problem.subject, problem.file, problem.kind) == ('01', str(first), 'warning')
    assert '1 of 6 images of sub-01_run-1 are also those of sub-01_run-2' in problem.message
    assert str(second) in problem.message


def test_two_participants_are_not_compared_and_an_empty_file_stops_nothing(runs, dataset):
    found = runs()
    shutil.copy(image(dataset, '01', '_run-1'), image(dataset, '02', ''))
    image(dataset, '01', '_run-2').write_bytes(b'')
    assert find_duplicates(found) == []
