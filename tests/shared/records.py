"""Keys of the records that the stages write, read from their source."""

import ast
import re
from pathlib import Path

import numpy as np

import precondqsm_bids
from precondqsm_bids.numerics import (
    GivenField,
    Scan,
    measure_field,
    region_of_interest,
    take_field,
)
from precondqsm_bids.numerics.prior.verdict import Verdict


def record_keys(stage):
    """Keys of the record in the modules of a stage: those of ``record = {...}`` or
    ``self._results['record'] = {...}``, and those set later by ``record['key'] = ...``. That of
    the echo fit is made of a cube of no field, and of the same as a given field; that of the
    region of a cube."""
    if stage == 'shape_mask':
        return {*region_of_interest(np.pad(np.ones((5, 5, 5)), 2), (1, 1, 1)).record}
    if stage == 'echo_fit':
        noise = np.random.default_rng(0).normal(0, 0.01, (2, 9, 9, 9, 3))
        times = np.array([0.004, 0.008, 0.012])
        magnitude, phase = np.exp(-30 * times) + noise[0], noise[1]
        scan = Scan(magnitude, phase, times, 3.0, phase_units='rad')
        mask = np.ones((9, 9, 9), bool)
        given = GivenField(noise[0, ..., 0], magnitude[..., 0], 3.0, r2star=magnitude[..., 0])
        keys = {*measure_field(scan, mask).record, *take_field(given, mask).record}
        return keys | {'field_units'}  # of the file
    package = Path(precondqsm_bids.__file__).parent
    name = {'prior_fit': 'prior/estimate'}.get(stage, stage)
    paths = [package / 'interfaces' / f'{stage}.py', package / 'numerics' / f'{name}.py']
    text = '\n'.join(path.read_text(encoding='utf-8') for path in paths if path.exists())
    keys = {*Verdict(0, 0, 0, (), (), None).record} if stage == 'prior_fit' else set()
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Assign | ast.AnnAssign):
            continue
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        names = ast.unparse(targets[0])
        if names in ('record', "self._results['record']") and isinstance(node.value, ast.Dict):
            keys |= {key.value for key in node.value.keys}
        else:
            keys |= set(re.findall(r"(?<![\w.])record\['(\w+)'\]", names))
    assert keys, f'{stage} has no record'
    return keys
