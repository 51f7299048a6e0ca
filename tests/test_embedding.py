"""The commands of the page on embedding, as they stand there, on a small phantom."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nb
import numpy as np
import pytest

from precondqsm_bids.phantom.dataset import write_dataset
from precondqsm_bids.phantom.spec import TubesSpec

DOCS = Path(__file__).parents[1] / 'docs'


@pytest.mark.slow
def test_three_commands_give_a_map_that_is_better_than_the_program_alone(tmp_path):
    page = (DOCS / 'embedding.md').read_text(encoding='utf-8')
    (block,) = page.split('```bash\n')[1:]
    spec = TubesSpec(
        matrix=(36, 36, 32), voxel_size=(3.0, 3.0, 3.0), object_scale=0.8,
        echo_times=(0.0014, 0.0042, 0.007),
    )  # fmt: skip
    write_dataset(tmp_path / 'raw', spec)
    shutil.copy(DOCS / 'embedding' / 'division.py', tmp_path)
    path = f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}'
    done = subprocess.run(
        ['bash', '-e', '-c', block.partition('```')[0]], cwd=tmp_path,
        env={**os.environ, 'PATH': path}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr

    anat = tmp_path / 'out/sub-01/anat'
    chi, residual, mask = (
        nb.load(anat / f'sub-01_{name}.nii.gz').get_fdata()
        for name in ('desc-precond_Chimap', 'desc-residual_Chimap', 'desc-roi_mask')
    )
    total = tmp_path / 'out/sub-01/fmap/sub-01_desc-total_fieldmap.nii.gz'
    files = total, anat / 'sub-01_desc-roi_mask.nii.gz', tmp_path / 'alone.nii'
    command = [sys.executable, tmp_path / 'division.py', *files, '3']
    subprocess.run(list(map(str, command)), check=True)
    alone = nb.load(tmp_path / 'alone.nii').get_fdata()
    (path,) = (tmp_path / 'raw/derivatives/truth').glob('**/*Chimap.nii.gz')
    true = nb.load(path).get_fdata()
    where = (mask > 0) & (residual != 0)  # the program takes off the rim

    def error(found):
        difference, of_truth = (v[where] - v[where].mean() for v in (found - true, true))
        return np.linalg.norm(difference) / np.linalg.norm(of_truth)

    assert error(chi) < 0.25
    assert error(chi) < 0.6 * error(alone)
