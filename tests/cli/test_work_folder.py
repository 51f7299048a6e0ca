"""One call at a participant's intermediate results at a time."""

import subprocess
import sys

import pytest

from precondqsm_bids.cli.work_folder import in_use
from precondqsm_bids.inputs.run import InputError

HOLD = """
import sys
from pathlib import Path
from precondqsm_bids.cli.work_folder import in_use
with in_use(Path(sys.argv[1]), sys.argv[3:], sys.argv[2] == 'clean'):
    print('held', flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path):
    """Another call, at these participants, until its input ends."""
    calls = []

    def start(kind, *subjects):
        call = subprocess.Popen(
            [sys.executable, '-c', HOLD, tmp_path / 'w', kind, *subjects],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        calls.append(call)
        assert call.stdout.readline() == 'held\n'
        return call

    yield start
    for call in calls:
        call.communicate()


def taken(folder, subjects, cleaned=False):
    """What is said of participants that another call is at; empty if they are free."""
    try:
        with in_use(folder, subjects, cleaned):
            return ''
    except InputError as error:
        return str(error)


def test_two_calls_at_one_participant(other, tmp_path):
    call = other('', '01', '02')
    said = taken(tmp_path / 'w', ['03', '02'])
    assert 'another call is at sub-02 in the work folder' in said
    assert 'of its own with -w' in said
    assert taken(tmp_path / 'w', ['03', '04']) == ''
    assert taken(tmp_path / 'x', ['01']) == ''
    assert 'another call is at the work folder' in taken(tmp_path / 'w', ['03'], cleaned=True)
    call.kill()  # a lock ends with its process, however that ends
    call.wait()
    assert taken(tmp_path / 'w', ['02'], cleaned=True) == ''


def test_a_folder_is_cleaned_before_others_come_in(other, tmp_path):
    old = tmp_path / 'w' / 'precondqsm_bids_wf' / 'old'
    old.mkdir(parents=True)
    other('clean', '01')
    assert not old.exists()
    assert taken(tmp_path / 'w', ['02']) == ''
    assert 'another call is at sub-01' in taken(tmp_path / 'w', ['01'])
    assert 'another call is at the work folder' in taken(tmp_path / 'w', ['02'], cleaned=True)


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / 'w').write_text('a file')
    assert 'cannot write to' in taken(tmp_path / 'w', ['01'])
