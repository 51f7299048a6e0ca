"""A small phantom, and what the source computes of it outside of any container."""

import subprocess
import sys

import pytest
from containers import OPTIONS


@pytest.fixture(scope='session')
def raw(tmp_path_factory):
    """A small phantom."""
    folder = tmp_path_factory.mktemp('dataset') / 'raw'
    phantom = [sys.executable, '-m', 'precondqsm_bids.phantom', folder, '--kind', 'tubes']
    size = ['--matrix', '40', '40', '32', '--voxel-size', '3', '3', '3']
    subprocess.run([*map(str, phantom), *size], check=True, capture_output=True)
    return folder


@pytest.fixture(scope='session')
def outside(raw, tmp_path_factory):
    """What the source computes outside: the folder of its outputs."""
    folder = tmp_path_factory.mktemp('outside')
    done = subprocess.run(
        [
            *(sys.executable, '-m', 'precondqsm_bids', raw, folder / 'out', 'participant'),
            *(*OPTIONS, '-d', f'truth={raw / "derivatives" / "truth"}', '-w', folder / 'work'),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / 'out'
