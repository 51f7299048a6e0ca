"""The method as a value: what goes together, and what each range says."""

import numpy as np
import pytest

from precondqsm_bids.method import Method
from precondqsm_bids.terms import TERMS


@pytest.mark.parametrize(
    'prior, prior_fit, expected',
    [
        (['contrast'], 'auto', 'global'),
        (['r2prime'], 'auto', None),
        (['r2prime'], 'none', None),
        (['map:a.nii'], 'none', None),
        (['map:a.nii'], 'auto', 'global'),
        (['map:a.nii', 'map:b.nii', 'tissue'], 'clusters', 'clusters'),
        (['contrast', 'r2prime'], 'global', 'global'),
        ([], 'auto', 'prior takes one or several'),
        (['shape'], 'auto', None),
        (['shape'], 'none', None),
        (['shape'], 'global', 'that is for r2prime and map:FILE'),
        (['shape', 'tissue'], 'auto', 'shape is the shape alone; .* leave out shape'),
        (['map:'], 'auto', 'prior map: is not one of'),
        (['tissue', 'tissue'], 'auto', 'prior has tissue twice'),
        (['r2prime'], 'some', 'prior_fit = some is not one of'),
        (['contrast', 'tissue'], 'global', 'that is for r2prime and map:FILE'),
        (['contrast'], 'none', 'only r2prime or one map:FILE, alone'),
        (['r2prime', 'tissue'], 'none', 'only r2prime or one map:FILE, alone'),
        (['map:a', 'map:b'], 'none', 'only r2prime or one map:FILE, alone'),
    ],
)
def test_which_priors_and_fits_go_together(prior, prior_fit, expected):
    if expected in (None, 'global', 'clusters'):
        assert Method(prior=prior, prior_fit=prior_fit).fit == expected
    else:
        with pytest.raises(ValueError, match=expected):
            Method(prior=prior, prior_fit=prior_fit)


@pytest.mark.parametrize(
    'values, expected',
    [
        ({}, False),
        ({'prior': ('contrast', 'tissue')}, True),
        ({'prior': ('r2prime-by-tissue',)}, True),
        ({'r2': 'literature'}, True),
        ({'prior': ('map:/a/tissue.nii',)}, False),
    ],
)
def test_tissue_is_looked_for_where_it_is_read(values, expected):
    assert Method(**values).needs_tissue == expected


@pytest.mark.parametrize(
    'values, message',
    [
        ({'reg_weight': 0}, 'reg_weight = 0 mm should be between 1e-06 and 1e'),
        ({'pdf_iterations': 0}, 'pdf_iterations = 0 should be between 1 and 10000'),
        ({'field_strength': 0.01}, 'field_strength = 0.01 T should be'),
        ({'mask_erosion': float('nan')}, 'mask_erosion = nan mm'),
        ({'r2': -1.0}, 'r2 = -1 1/s should be'),
        ({'r2': 'mean'}, 'r2 = mean is not a number'),
        ({'reg_rule': 'corner'}, 'reg_rule = corner is not one of auto, l-curve and risk'),
        (
            {'background': 'sharp'},
            'background = sharp is not one of pdf, vsharp and vsharp-or-pdf',
        ),
        ({'inversion': 'l1'}, 'inversion = l1 is not one of l2 and tv'),
        ({'phase_sign': 0}, 'phase_sign = 0 should be 1 or -1'),
        ({'b0_dir': (0.0, 0.0, 0.0)}, 'b0_dir .* three finite numbers, not all 0'),
        ({'prior': 'shape', 'shape': False}, 'prior shape without the shape leaves'),
        ({'contrasts': ('T1w',), 'prior': 'tissue'}, 'contrasts T1w are for the prior contrast'),
        ({'contrasts': 'T1_w'}, '"T1_w" is not a suffix'),
        ({'prior': 'nonsense'}, 'prior nonsense is not one of contrast, tissue'),
    ],
)
def test_message_opens_with_the_name_of_the_field(values, message):
    with pytest.raises(ValueError, match=message) as caught:
        Method(**values)
    assert str(caught.value).split()[0].rstrip(':') in values | {'prior': 0}


def test_arms():
    plain, published = Method().arms
    assert (plain.prefix, published.prefix) == ('', 'conventional_')
    assert plain.iterations == published.iterations == 30
    assert (plain.continued, published.continued) == (True, False)
    assert not Method(prior='r2prime').preconditioned.continued
    assert (plain.clip_outliers, published.clip_outliers) == (True, False)
    assert len(Method(conventional=False).arms) == 1
    assert {arm.rule for arm in Method(reg_rule='risk').arms} == {'risk'}
    assert {arm.reg_weight for arm in Method(reg_weight=0.2).arms} == {0.2}
    variation = Method(inversion='tv').arms
    assert {(arm.inversion, arm.rule) for arm in variation} == {('tv', 'risk')}


def test_arms_of_the_consensus_are_beside_the_others_and_have_their_own_settings():
    plain = Method(consensus=True, reg_rule='auto', pdf_iterations=7, reference='none')
    assert plain.arms[:2] == Method(pdf_iterations=7, reference='none').arms
    better, consensus = plain.arms[2:]
    assert (better.local_of, better.rule, better.inversion) == ('conventional_', 'risk', 'l2')
    assert better._replace(prefix='', rule='', local_of=None) == plain.arms[1]._replace(
        prefix='', rule=''
    )
    assert consensus == Method(consensus=True, reg_weight=0.2, inversion='tv').arms[-1]
    assert (consensus.inversion, consensus.rule) == ('tv', 'risk-or-corner')
    assert consensus.certain_field
    assert consensus.conventional
    # a conventional map that is not at the corner has no second one
    for settings in ({'inversion': 'tv'}, {'reg_rule': 'risk'}, {'reg_weight': 0.1}):
        names = [arm.name for arm in Method(consensus=True, **settings).arms]
        assert names == ['preconditioned', 'conventional', 'consensus']
    alone = Method(consensus=True, conventional=False).arms
    assert [arm.name for arm in alone] == ['preconditioned', 'consensus']


def test_every_term_is_made_by_a_function():
    from precondqsm_bids.numerics.prior.estimate import BASES

    assert list(BASES) == list(TERMS)


@pytest.mark.parametrize(
    ('field', 'value', 'should'),
    [
        ('reg_weight', 'auto', 'a number or None'),
        ('reg_weight', True, 'a number or None'),
        ('mask_erosion', '2', 'a number'),
        ('pdf_iterations', 2.5, 'a whole number'),
        ('shape', 'no', 'True or False'),
        ('reference', None, 'a word'),
        ('prior', None, 'a word or several'),
        ('r2', None, 'a number or a word'),
    ],
)
def test_fields_have_the_types_that_are_declared(field, value, should):
    with pytest.raises(ValueError, match=f'^{field} = .* should be {should}$'):
        Method(**{field: value})


def test_numbers_of_numpy_are_numbers():
    assert Method(reg_weight=np.float32(0.5), pdf_iterations=np.int64(7)).pdf_iterations == 7
