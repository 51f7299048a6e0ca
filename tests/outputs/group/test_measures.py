"""What is taken from the sidecars is what the stages write."""

import ast
from pathlib import Path

import pytest

import precondqsm_bids
from precondqsm_bids.interfaces.roi_values import MAPS
from precondqsm_bids.outputs.group.measures import (
    COEFFICIENTS,
    COUNTED,
    MEASURES,
    take_coefficients,
)

INTERFACES = Path(precondqsm_bids.__file__).parent / 'interfaces'


def record_keys(stage):
    """Keys of dictionaries with text keys in the source of a stage's interface."""
    tree = ast.parse((INTERFACES / f'{stage}.py').read_text(encoding='utf-8'))
    dictionaries = [node for node in ast.walk(tree) if isinstance(node, ast.Dict)]
    subscripts = [node.slice for node in ast.walk(tree) if isinstance(node, ast.Subscript)]
    keys = [key for node in dictionaries for key in node.keys] + subscripts
    return {key.value for key in keys if isinstance(key, ast.Constant)}


@pytest.mark.parametrize('measure', MEASURES, ids=lambda measure: measure.column)
def test_the_stage_writes_it(measure):
    assert measure.key in record_keys(measure.stage.removeprefix('conventional_'))


def test_the_fit_of_the_prior_writes_the_coefficients():
    assert {key for key, *_ in COEFFICIENTS.values()} <= record_keys('prior_fit')


def test_columns_have_one_source_each():
    columns = [measure.column for measure in MEASURES]
    assert len(set(columns)) == len(columns)
    assert {measure.kind for measure in MEASURES} == {'linear', 'log', 'text', 'names', 'parcels'}
    assert set(COUNTED) <= {measure.key for measure in MEASURES}


def test_compared_maps_exist():
    from precondqsm_bids.outputs.group.report import TITLES
    from precondqsm_bids.outputs.group.tables import COMPARED

    assert set(TITLES) == set(COMPARED)
    assert {column.removesuffix('_mean') for column in COMPARED} <= set(MAPS)


@pytest.mark.parametrize(
    'fit', [None, {}, {'coefficients': []}, 'text', {'coefficients': None}], ids=repr
)
def test_no_coefficients(fit):
    assert take_coefficients({'prior_fit': fit}) == ([], '')


def test_coefficients_that_are_no_list():
    assert take_coefficients({'prior_fit': {'coefficients': 'abc'}})[1]
