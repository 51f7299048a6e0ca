"""What is taken from the sidecars is what the stages write."""

import re

import pytest
from records import record_keys

from precondqsm_bids.outputs.group.measures import take_coefficients
from precondqsm_bids.outputs.group.tables import COMPARED
from precondqsm_bids.outputs.maps import WITH_VALUES
from precondqsm_bids.outputs.record import COEFFICIENTS, MEASURES


@pytest.mark.parametrize('measure', MEASURES, ids=lambda measure: measure.name)
def test_the_stage_writes_it(measure):
    stage = re.sub('^(conventional_risk|conventional|consensus)_', '', measure.stage)
    assert measure.key in record_keys(stage)


def test_the_fit_of_the_prior_writes_the_coefficients():
    assert {key for key, *_ in COEFFICIENTS.values()} <= record_keys('prior_fit')


def test_measures_have_one_source_each_and_are_shown():
    names = [measure.name for measure in MEASURES]
    assert len(set(names)) == len(names)
    kinds = {'linear', 'log', 'text', 'length', 'names', 'parcels'}
    assert {measure.kind for measure in MEASURES} == kinds
    assert all(measure.column or measure.report for measure in MEASURES)
    places = [
        (measure.stage == 'echo_fit', measure.report.place)
        for measure in MEASURES
        if measure.report
    ]
    assert len(set(places)) == len(places)


def test_compared_maps_have_values():
    assert {column.removesuffix('_mean') for column in COMPARED} <= set(WITH_VALUES)


@pytest.mark.parametrize(
    'fit', [None, {}, {'coefficients': []}, 'text', {'coefficients': None}], ids=repr
)
def test_no_coefficients(fit):
    assert take_coefficients({'prior_fit': fit}) == ([], '')


def test_coefficients_that_are_no_list():
    assert take_coefficients({'prior_fit': {'coefficients': 'abc'}})[1]
