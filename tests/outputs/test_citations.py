"""The methods text: what it cites, and that it says what was done and nothing else."""

import re
from dataclasses import asdict

import pytest

from precondqsm_bids.method import Method
from precondqsm_bids.outputs import sentences as module
from precondqsm_bids.outputs.citations import bibliography, cited, entries, write_out
from precondqsm_bids.outputs.sentences import done, opening, sentences, text_of_runs

RECORD = {
    'shape_mask': {'mask': 'object', 'erosion': 0.0},
    'echo_fit': {'offset_model': 'quartic', 'echo_times': [0.004, 0.008]},
    'r2prime_prior': {},
    'prior_fit': {'trust': 1.0},
    'flattening': {'shape': True},
    'recombination': {},
}


def summary(method=None, **stages):
    record = {stage: {**numbers, **stages.get(stage, {})} for stage, numbers in RECORD.items()}
    settings = asdict(method or Method())
    return {'record': record, 'settings': settings, 'version': '9.9'}


METHODS = [
    Method(),
    Method(prior='r2prime', r2='literature'),
    Method(prior=('tissue', 'r2prime'), prior_fit='clusters'),
    Method(inversion='tv', background='vsharp'),
    Method(field='derivatives', prior='shape'),
]


@pytest.mark.parametrize('method', METHODS, ids=lambda m: m.summary())
@pytest.mark.parametrize('one_echo', [False, True])
def test_every_key_of_every_text_is_in_the_bibliography(method, one_echo):
    text = opening('1.0') + sentences(method, one_echo) + module.region_sentence('synthstrip', 0)
    keys = cited(text)
    assert {'nipype', 'preconditioning', 'precondqsm_bids', 'synthstrip'} < set(keys)
    assert set(keys) <= set(entries())
    found = write_out(text)
    assert len(found.references) == len(keys)
    assert not re.search(r'@\w', ' '.join(found.paragraphs))


def test_bibtex_has_what_is_cited_with_braces_that_match():
    text = bibliography('[@liu2013; @qsmconsensus2024] and [@nipype], [@unknown]')
    assert re.findall(r'^@(\w+)\{(\w+),$', text, re.MULTILINE) == [
        ('article', 'liu2013'), ('article', 'qsmconsensus2024'), ('article', 'nipype'),
    ]  # fmt: skip
    assert text.count('{') == text.count('}')
    assert '  author = {Gorgolewski, K and others},' in text
    assert '  author = {{QSM Consensus Organization Committee}},' in text


def test_text_of_a_run_says_what_was_found_and_done():
    text = done(summary())
    assert 'turned or shifted: in full.' in text
    assert 'and of the shape of the object in air' in text
    assert 'Only ' not in text
    assert 'with a smooth phase offset' in text
    assert 'no field of a dipole' in text
    alone = done(summary(prior_fit={'trust': 1.0, 'beyond_null': None}))
    assert (
        'as far as it explains of the field, as mirrored, turned or shifted it is like it' in alone
    )
    assert 'ringing' not in text
    assert 'ghosts' not in text
    mended = done(summary(echo_fit={'ghost_axis': 'j', 'ringing': [1.0, 1.0, 0.0]}))
    assert 'ghosts of a field that fluctuates' in mended
    assert 'freed of ringing' in mended
    assert {'atkinson1997', 'kellner2016'} <= set(cited(mended)) & set(entries())
    own = done(summary(echo_fit={'offset_model': 'voxelwise'}))
    assert 'with an offset of its own in each voxel' in own
    text = done(
        summary(
            shape_mask={'mask': 'brain', 'erosion': 2.0},
            prior_fit={'trust': 0.0},
            flattening={'shape': False},
        )
    )
    assert text.startswith('Only the brain, found in the magnitude, less a border of 2 mm, was')
    assert 'turned or shifted: not at all.' in text
    assert 'no field of a dipole' not in text  # of an estimate that is dropped, nothing is taken
    assert 'shape of the object in air' not in text
    given = done(summary(shape_mask={'mask': 'synthstrip_desc-brain_mask.nii.gz'}))
    assert '[@synthstrip]' in given
    assert 'given mask' in done(summary(shape_mask={'mask': 'mine.nii.gz'}))


LEAST, TOWARDS, AT_MOST = (
    'with the regularisation weight of least expected error; and the estimate was',
    'with the regularisation weight of least expected error, moved towards that at the corner',
    'least expected error, at most that at the corner of the L-curve or an eighth of a voxel, as '
    'the estimate does not',
)


@pytest.mark.parametrize(('trust', 'said'), [(1.0, LEAST), (0.4, TOWARDS), (0.0, AT_MOST)])
def test_weight_is_said_by_how_far_the_estimate_counted(trust, said):
    text = done(summary(prior_fit={'trust': trust}))
    assert [words in text for words in (LEAST, TOWARDS, AT_MOST)] == [
        words == said for words in (LEAST, TOWARDS, AT_MOST)
    ]
    assert 'comparison, from no sources on, with the corner of the L-curve as reg' in text
    both = done(summary(Method(reg_rule='risk'), prior_fit={'trust': trust}))
    other = (
        'comparison, from no sources on, with the regularisation weight of least expected error;'
    )
    assert (other in both) == (trust < 1)  # the conventional arm knows of no estimate


OTHERS = (
    Method(reg_weight=0.1),
    Method(reg_rule='l-curve'),
    Method(prior='r2prime', prior_fit='global'),  # the residual is a correction: lambda is whole
)


@pytest.mark.parametrize(
    ('prior', 'parcel'),
    [(('contrast',), 'cell'), (('tissue',), 'tissue class'), (('shape',), None)],
)
def test_frequency_is_that_of_cells_or_of_tissue_classes(prior, parcel):
    text = sentences(Method(prior=prior))
    assert (f'the frequency of each {parcel} that the fit' in text) is (parcel is not None)
    assert ('frequency of each' in text) is (parcel is not None)


@pytest.mark.parametrize(
    ('found', 'spheres', 'projection'),
    [(None, True, True), ('vsharp', True, False), ('pdf', False, True)],
)
def test_background_removal_that_was_chosen_is_said(found, spheres, projection):
    record = {'background_removal': {'method': found}} if found else {}
    text = sentences(Method(background='vsharp-or-pdf', conventional=False), record=record)
    assert ('means over spheres' in text) is spheres
    assert ('projection onto dipole fields' in text) is projection
    assert (' or, where that is more' in text) is (found is None)


@pytest.mark.parametrize(('inside', 'erosion'), [('brain', 0), ('brain', 2), ('synthstrip', 0)])
def test_what_follows_a_comma_ends_with_one(inside, erosion):
    text = module.region_sentence(inside, erosion)
    assert text.endswith(', was reconstructed.\n')
    assert ',,' not in text


@pytest.mark.parametrize('method', OTHERS, ids=['given', 'corner', 'r2prime'])
def test_weight_that_does_not_depend_on_the_estimate_is_said_as_it_is(method):
    texts = [done(summary(method, prior_fit={'trust': trust})) for trust in (1.0, 0.4)]
    assert texts[0] == texts[1].replace('shifted: in part', 'shifted: in full')
    assert ('held to' in texts[0]) == (method.prior == ('contrast',))


def test_what_a_dropped_prior_leaves_is_inverted_in_closed_form():
    part, dropped = (done(summary(prior_fit={'trust': trust})) for trust in (0.4, 0.0))
    assert 'least squares with l2' in part
    assert 'least squares with l2' not in dropped
    assert 'was inverted in closed form' in dropped
    assert 'the inversion was that in closed form' not in dropped


def test_what_was_not_done_here_is_not_said():
    whole = summary()
    resumed, stopped = (
        {**whole, 'record': {**whole['record'], 'take_map': {}}},
        {**whole, 'record': {k: v for k, v in whole['record'].items() if k != 'recombination'}},
    )
    assert 'was inverted by least squares with l2 gradient' in done(whole)
    assert 'the inversion was that in closed form' in done(whole)
    for one in (resumed, stopped):
        assert 'turned or shifted: in full.' in done(one)
        assert 'closed form' not in done(one)
        assert 'least squares' not in done(one)
        assert 'conventional' not in done(one)
    assert 'inverted by another program, and the estimate added back.' in done(resumed)
    assert 'relative to the mean of the region' in done(resumed)
    assert 'inverted' not in done(stopped)
    assert 'relative to' not in done(stopped)


def test_one_echo_and_phase_difference_are_told_by_the_record():
    one = summary()
    del one['record']['r2prime_prior']
    one['record']['echo_fit'] = {'offset_model': 'in the field', 'echo_times': [0.02]}
    assert 'the phase offset of the coil' in done(one)
    one['record']['echo_fit']['offset_model'] = 'none (phase difference)'
    assert 'difference of two echoes' in done(one)


def test_equal_runs_are_said_once_and_others_by_name():
    same = {'sub-1': summary(), 'sub-2': summary()}
    assert text_of_runs(same).count('nonlinear fit') == 1
    assert 'sub-1' not in text_of_runs(same)
    both = text_of_runs(same | {'sub-3': summary(prior_fit={'trust': 0.0})})
    assert 'Runs sub-1, sub-2: ' in both
    assert 'Run sub-3: ' in both
    assert '*precondqsm_bids* 9.9 [' in both


def test_no_run_has_no_text():
    assert text_of_runs({}) == ''
    assert text_of_runs({'sub-1': {}}) == ''
    other = summary()
    other['settings']['prior'] = ['a word of another version']
    assert text_of_runs({'sub-1': other}) == ''


def test_settings_as_json_keeps_them_are_the_same_method():
    method = Method(b0_dir=(0, 0, 1.0), prior=('tissue', 'contrast'), contrasts=('T1w',))
    kept = summary(method)
    kept['settings'] = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in kept['settings'].items()
    } | {'of_a_later_version': 3}
    assert done(kept) == done(summary(method))
