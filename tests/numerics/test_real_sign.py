"""Sign of real scans, of which small pieces lie outside the repository."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from radians import in_radians

from precondqsm_bids.interfaces.volumes import b0_along, geometry, load
from precondqsm_bids.numerics.phase.repair import repair_phase
from precondqsm_bids.numerics.phase.sign import decide_sign
from precondqsm_bids.numerics.scan import Scan
from precondqsm_bids.numerics.shape_mask import shape_mask

ROOT = Path(__file__).resolve().parents[2]
REAL = Path(os.environ.get('PRECONDQSM_REAL', ROOT.parent / 'shared' / 'real'))


def repaired(name, factor=1, mask=None, **keywords):
    folder = REAL / name / 'raw/sub-01/anat'
    if not folder.is_dir():
        pytest.skip(f'{REAL / name} is not there')
    paths = [sorted(map(str, folder.glob(f'*part-{part}*.nii.gz'))) for part in ('mag', 'phase')]
    magnitude, phase = (np.stack([load(path) for path in part], axis=-1) for part in paths)
    sidecars = [json.loads(Path(p.replace('.nii.gz', '.json')).read_text()) for p in paths[1]]
    size = geometry(paths[0][0])[1]
    shape = shape_mask(magnitude[..., 0], voxel_size=size)
    region = shape.roi_mask
    if mask == 'everything':
        region = np.ones_like(region)
        shape = shape._replace(shape_mask=region)
    elif mask:
        region = region & load(str(REAL / name / mask), bool)
    scan = Scan(
        magnitude,
        factor * in_radians(phase, 'arbitrary'),
        [sidecar['EchoTime'] for sidecar in sidecars],
        sidecars[0]['MagneticFieldStrength'],
        size,
        b0_along(paths[0][0]),
        **keywords,
    )
    return repair_phase(scan, region, shape.shape_mask)


@pytest.mark.parametrize('mask, sign', [(None, 1), ('brain.nii.gz', -1)])
def test_head(mask, sign):
    found = repaired('head_siemens_3t', sign, mask)
    assert (found.sign, found.sign_source) == (sign, 'field of the shape')
    assert sign * found.sign_test.correlation > 0.75
    assert min(sign * shell for shell in found.sign_test.shells) > 0.7
    assert not found.axes or not found.axes.better
    assert decide_sign(found.sign_test, stated=sign).source == 'given'
    with pytest.raises(ValueError, match='leave phase_sign out'):
        decide_sign(found.sign_test, stated=-sign)


def test_round_phantom_is_assumed():
    found = repaired('round_phantom_3t')
    assert (found.sign, found.sign_source) == (1, 'convention')
    assert 'ASSUMED' in found.notes[-1]


@pytest.mark.parametrize('mask', [None, 'everything'])
def test_crop_without_air_is_assumed(mask):
    found = repaired('crop_brain_7t', mask=mask)
    assert (found.sign, found.sign_source) == (1, 'convention')
    assert 'ASSUMED to be +1' in found.notes[-1]
