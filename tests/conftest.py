"""Tiny datasets on disk, and nothing of the user's own environment."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from precondqsm_bids.cli.environment import repair_environment

# Before any test module imports niworkflows, which would unpack templates into the home folder.
repair_environment()

AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
SHAPE = (4, 5, 6)


def write_image(path, shape=SHAPE, affine=AFFINE, value=1.0):
    """A small image of one value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.full(shape, value, np.float32), affine), path)
    return path


def write_json(path, content):
    """A JSON file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


class Dataset:
    """A raw BIDS dataset that a test fills as it needs."""

    write_image = staticmethod(write_image)
    write_json = staticmethod(write_json)

    def __init__(self, root: Path):
        self.root = root
        write_json(root / 'dataset_description.json', {'Name': 'test', 'BIDSVersion': '1.10.0'})

    def add_run(
        self,
        stem='sub-01',
        echo_times=(0.004, 0.008, 0.012),
        field_strength=3.0,
        suffix='MEGRE',
        extension='.nii.gz',
        magnitude_part='_part-mag',
    ):
        """All files of a run whose name begins with ``stem``; echo-1 is the first time given."""
        session = [p for p in stem.split('_') if p.startswith('ses-')]
        folder = self.root.joinpath(stem.split('_')[0], *session, 'anat')
        for echo, echo_time in enumerate(echo_times, 1):
            for part in (magnitude_part, '_part-phase'):
                name = f'{stem}_echo-{echo}{part}_{suffix}'
                write_image(folder / f'{name}{extension}')
                metadata = {'EchoTime': echo_time, 'MagneticFieldStrength': field_strength}
                write_json(folder / f'{name}.json', {k: v for k, v in metadata.items() if v})
        return folder

    def add_labels(self, path, names=None, **image):
        """A label image, relative to the root, with its TSV."""
        target = write_image(self.root / path, **image)
        if names is not None:
            rows = [f'{index}\t{name}' for index, name in names.items()]
            stem = target.name.partition('.')[0]
            (target.parent / f'{stem}.tsv').write_text('\n'.join(['index\tname', *rows]) + '\n')
        return target


@pytest.fixture
def dataset(tmp_path):
    """An empty dataset below a folder that is called like a participant."""
    return Dataset(tmp_path / 'sub-trap' / 'raw')
