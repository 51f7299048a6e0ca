"""SynthStrip through a stand-in for the public package, which takes the same words."""

from pathlib import Path

import nibabel as nb
import numpy as np
import pytest

from precondqsm_bids.config import Settings
from precondqsm_bids.inputs.discovery import find_runs
from precondqsm_bids.interfaces.synthstrip import SynthStrip
from precondqsm_bids.workflows.base import init_run_wf

STAND_IN = """
from argparse import ArgumentParser
import nibabel as nb
import numpy as np

parser = ArgumentParser()
for flags in (('-i', '--image'), ('-o', '--out'), ('-m', '--mask'), ('--model',)):
    parser.add_argument(*flags)
args = parser.parse_args()
if open(args.model).read() != 'weights':
    raise RuntimeError('not a checkpoint')
image = nb.load(args.image)
mask = (image.get_fdata() > 1).astype(np.uint8)
nb.Nifti1Image(mask, image.affine, image.header).to_filename(args.mask)
"""


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Magnitude and weights, and the stand-in where Python finds it."""
    package = tmp_path / 'site/nipreps/synthstrip'
    package.mkdir(parents=True)
    (package / '__main__.py').write_text(STAND_IN)
    (package / '__init__.py').touch()
    monkeypatch.setenv('PYTHONPATH', str(tmp_path / 'site'))
    magnitude, model = tmp_path / 'mag.nii.gz', tmp_path / 'weights.pt'
    nb.save(nb.Nifti1Image(np.arange(24, dtype=np.float32).reshape(2, 3, 4), np.eye(4)), magnitude)
    model.write_text('weights')
    return {'magnitude': str(magnitude), 'model': str(model)}


def test_mask_is_that_of_the_package(files, tmp_path):
    found = SynthStrip(**files).run(cwd=str(tmp_path)).outputs.mask
    assert 'desc-brain' in Path(found).name  # so that the maps are said to be skull-stripped
    np.testing.assert_array_equal(nb.load(found).get_fdata().ravel(), np.arange(24) > 1)


def test_what_fails_is_said(files, tmp_path):
    Path(files['model']).write_text('something else')
    with pytest.raises(
        RuntimeError, match=r'weights .*weights.pt: .*not a checkpoint; have the brain'
    ):
        SynthStrip(**files).run(cwd=str(tmp_path))


@pytest.mark.parametrize('stated', [None, (0, 0, 1)])
def test_mask_goes_to_the_reconstruction(dataset, files, tmp_path, stated):
    dataset.add_run()
    method = {'mask': 'brain', 'b0_dir': stated}
    settings = Settings.from_values(
        {'bids_dir': dataset.root, 'output_dir': tmp_path / 'out', **method}
        | {'brain_model': Path(files['model'])}
    )
    (run,), _ = find_runs(dataset.root, method=settings.method)
    workflow = init_run_wf(settings, run)
    assert 'found by SynthStrip' in workflow.__desc__
    nodes = {node.name: node for node in workflow._create_flat_graph().nodes()}
    given = nodes['synthstrip'].inputs
    assert given.model == files['model']
    stored = run.magnitude[0] if run.as_needed else None
    assert (given.magnitude if stored else None) == stored
    assert {'synthstrip', 'shape_mask'} <= set(nodes)
