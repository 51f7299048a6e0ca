"""The public API: what it exports, how it is documented, and what it does not need."""

import importlib
import inspect
import json
import subprocess
import sys

import pytest

from precondqsm_bids import numerics

STAGES = {
    'echo_fit': ('fit_echoes', 'EchoFit'),
    'prior.r2prime': ('r2prime_prior', 'R2PrimePrior'),
    'shape_mask': ('shape_mask', 'ShapeMask'),
    'prior.fit': ('fit_prior', 'PriorFit'),
    'flattening': ('flatten_field', 'Flattening'),
    'background_removal': ('pdf', 'BackgroundRemoval'),
    'dipole_inversion': ('invert', 'DipoleInversion'),
    'recombination': ('recombine', 'Recombination'),
    'uncertainty': ('map_uncertainty', 'Uncertainty'),
}
FUNCTIONS = [name for name in numerics.__all__ if inspect.isfunction(getattr(numerics, name))]


@pytest.mark.parametrize('stage', STAGES)
def test_every_stage_has_its_function_and_result(stage):
    function, result = STAGES[stage]
    module = importlib.import_module(f'precondqsm_bids.numerics.{stage}')
    assert inspect.isfunction(getattr(module, function))
    assert getattr(numerics, function) is getattr(module, function)
    assert getattr(numerics, result) is getattr(module, result)
    assert issubclass(getattr(module, result), tuple)


@pytest.mark.parametrize('name', FUNCTIONS)
def test_functions_document_units_errors_and_an_example(name):
    function = getattr(numerics, name)
    text = inspect.getdoc(function)
    parameters = inspect.signature(function).parameters
    for parameter in parameters:
        assert f'\n{parameter} :' in text or f', {parameter} :' in text or f'{parameter}, ' in text
    assert '>>>' in text


@pytest.mark.parametrize('name', [n for n in numerics.__all__ if n not in FUNCTIONS])
def test_every_part_of_a_result_is_documented(name):
    fields = getattr(numerics, name)._fields
    source = inspect.getsource(getattr(numerics, name))
    for field in fields:
        _, _, after = source.partition(f'    {field}:')
        assert after.split('\n', 2)[1].strip().startswith('"""'), field


def test_numerics_need_no_files_and_no_workflow_engine():
    code = 'import json, sys, precondqsm_bids.numerics; print(json.dumps(sorted(sys.modules)))'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    loaded = {module.split('.')[0] for module in json.loads(done.stdout)}
    assert not loaded & {'nibabel', 'nipype', 'niworkflows', 'bids', 'matplotlib'}
