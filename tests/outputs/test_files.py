"""Files that several processes may write."""

import os

import pytest

from precondqsm_bids.outputs import files
from precondqsm_bids.outputs.files import write_shared


def test_a_file_of_somebody_else_is_good_enough(tmp_path, monkeypatch):
    path = tmp_path / 'shared'
    path.write_text('theirs')

    def refuse(*_):
        raise PermissionError('not yours')

    monkeypatch.setattr(files.os, 'replace', refuse)
    assert write_shared(path, 'ours') == path
    assert path.read_text() == 'theirs'
    assert os.listdir(tmp_path) == ['shared']
    path.unlink()
    with pytest.raises(PermissionError):
        write_shared(path, 'ours')
