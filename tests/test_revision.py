"""The revision of the source in the version that records have."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import precondqsm_bids

PACKAGE = Path(precondqsm_bids.__file__).parent


@pytest.fixture
def copy(tmp_path):
    """The two modules that make the version, as a package of their own."""
    package = tmp_path / 'precondqsm_bids'
    package.mkdir()
    for name in ('__init__.py', 'revision.py'):
        shutil.copy(PACKAGE / name, package)
    return tmp_path


def version_of(root, **environment):
    code = 'from precondqsm_bids.revision import full_version; print(full_version())'
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=root, capture_output=True, text=True, check=True,
        env={'PATH': '/usr/local/bin:/usr/bin:/bin', 'PYTHONPATH': str(root), **environment},
    )  # fmt: skip
    return done.stdout.strip()


def git(root, *words):
    name = ('-c', 'user.name=x', '-c', 'user.email=x@example.org')
    done = subprocess.run(
        ['git', '-C', str(root), *name, *words], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_without_a_checkout_the_version_is_alone(copy):
    assert version_of(copy) == precondqsm_bids.__version__


def test_an_image_has_the_revision_that_it_was_built_from(copy):
    found = version_of(copy, PRECONDQSM_BIDS_REVISION='0123456789abcdef0123456789abcdef01234567')
    assert found == f'{precondqsm_bids.__version__}+g0123456'
    assert version_of(copy, PRECONDQSM_BIDS_REVISION='unknown') == precondqsm_bids.__version__


def test_a_checkout_has_its_commit_whatever_is_tagged(copy):
    git(copy, 'init', '--quiet')
    git(copy, 'add', '.')
    git(copy, 'commit', '--quiet', '-m', 'x')
    commit = git(copy, 'rev-parse', 'HEAD')
    expected = f'{precondqsm_bids.__version__}+g{commit[:7]}'
    assert version_of(copy) == expected
    assert version_of(copy, PRECONDQSM_BIDS_REVISION='0' * 40) == expected
    git(copy, 'tag', '-a', 'v0.0.1', '-m', 'x')
    assert version_of(copy) == expected
    with (copy / 'precondqsm_bids' / '__init__.py').open('a') as stream:
        stream.write('\n')
    assert version_of(copy) == f'{expected}.dirty'
