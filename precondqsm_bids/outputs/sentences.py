"""Methods text: of a reconstruction that is planned, and of runs that are done."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from precondqsm_bids.method import Arm, Method
from precondqsm_bids.outputs.wording import stopped
from precondqsm_bids.terms import MAP, term

NAMED = 20
"""Runs that a text names."""

RULES = {
    'l-curve': 'the corner of the L-curve as regularisation weight',
    'risk': 'the regularisation weight of least expected error',
    'risk-or-corner': 'the regularisation weight of least expected error, at most that at the '
    'corner of the L-curve or an eighth of a voxel',
}
TOWARDS_CORNER = (
    'the regularisation weight of least expected error, moved towards that at the corner of the '
    'L-curve, where this is smaller, by the part for which the estimate does not count (on a '
    'scale of logarithms)'
)
"""The rule `risk` behind an estimate that counts in part."""
BACKGROUNDS = {
    'pdf': '{} iterations of projection onto dipole fields [@liu2011]',
    'vsharp': 'means over spheres of several radii [@wu2012], which leave out the rim of the '
    'region',
    'vsharp-or-pdf': 'means over spheres of several radii [@wu2012], which leave out the rim of '
    'the region, or, where that is more than half of it, by projection onto dipole fields '
    '[@liu2011]',
}
INVERSIONS = {
    'l2': 'in closed form with l2 gradient regularisation [@bilgic2014]',
    'tv': 'with total variation [@rudin1992; @milovic2018], which weighs what the l2 penalty of '
    'the closed form [@bilgic2014] weighs on its map',
}
WEIGHTED = (
    'by least squares with l2 gradient regularisation [@bilgic2014], which weigh each voxel by '
    'the noise of its field [@liu2013] and expect more where the estimate steps to its neighbours'
)
"""The inversion of what a fitted estimate leaves."""
FITS = {
    None: '',
    'clusters': ', with one coefficient for each of its connected clusters',
    'global': ', with one coefficient for the whole of it',
}
R2 = {
    'median': 'the median R2* of the region',
    'map': 'that of a measured map',
    'literature': 'that of the literature for each tissue class [@gelman1999]',
}

HELD = ', its outliers and uncertain voxels held to their neighbours,'
SHIFT = (
    ', and with it the frequency of each {} that the fit found to be no field of a dipole '
    '[@schweser2018]'
)
PARCELS = {'contrast': 'cell', 'tissue': 'tissue class'}
"""Term of the prior that describes the interior -> what has a frequency of its own."""


def sentences(
    method: Method,
    one_echo: bool = False,
    phase_difference: bool = False,
    record: Mapping[str, Any] | None = None,
) -> str:
    """Methods text of a reconstruction, citations in Pandoc's form.

    ``record`` is what the stages used and chose, where it is done: the text then says what was
    done, and not what may be.

    >>> sentences(Method(reference='none')).splitlines()[-1]
    'Maps are not referenced.'
    """
    arm, *conventional = method.arms
    weight = _weight(arm, _trust(record))
    text = [
        *before(method, one_echo, phase_difference, record),
        'From the flattened field the background was removed by '
        f'{_removal(arm, record)}; '
        f'the residual{HELD if arm.clip_outliers else ""} was inverted '
        f'{WEIGHTED if _weighted(arm, record) else INVERSIONS[arm.inversion]}, with {weight}; '
        'and the estimate was added back.',
        *(_comparison(other, arm, weight, record) for other in conventional),
        _reference(method.reference),
    ]
    return '\n'.join(text) + '\n'


def sentences_around(
    method: Method,
    takes: str | None,
    one_echo: bool = False,
    phase_difference: bool = False,
    record: Mapping[str, Any] | None = None,
) -> str:
    """Methods text around an inversion of somebody else's, or up to the flattening (``None``).

    ``record`` as in `sentences`.

    >>> sentences_around(Method(), 'total').splitlines()[-1]
    'Maps are relative to the mean of the region of interest.'
    """
    text = before(method, one_echo, phase_difference, record)
    if takes == 'local':
        arm = method.preconditioned
        removal = _removal(arm, record)
        text.append(f'From the flattened field the background was removed by {removal}.')
    if takes:
        text.append('What was left was inverted by another program, and the estimate added back.')
        text.append(_reference(method.reference))
    return '\n'.join(text) + '\n'


def before(
    method: Method,
    one_echo: bool,
    phase_difference: bool,
    record: Mapping[str, Any] | None = None,
) -> list[str]:
    """Sentences up to the flattening."""
    record = record or {}
    shape = ' and (where the region reaches its surface) of the shape of the object in air'
    used = record.get('flattening', {}).get('shape', method.shape)
    if used and 'flattening' in record:
        shape = ' and of the shape of the object in air'
    trust = record.get('prior_fit', {}).get('trust')
    offset = record.get('echo_fit', {}).get('offset_model')
    parcels = [PARCELS[word] for word in method.prior if word in PARCELS]
    shift = SHIFT.format(' and '.join(parcels)) if parcels and trust != 0 else ''
    return [
        _given_field(one_echo)
        if method.field_given
        else _field(one_echo, phase_difference, offset == 'voxelwise'),
        *_corrections(record.get('echo_fit', {})),
        _estimate(method, one_echo, record.get('prior_fit', {})),
        f'The field of this estimate{shape if used else ""}, computed by convolution with '
        'the voxel-integrated dipole [@marques2005; @jenkinson2004], was subtracted from the '
        f'total field{shift}.',
    ]


def _corrections(fit: Mapping[str, Any]) -> list[str]:
    """What was taken off the images before or in the fit of the echoes."""
    found = []
    if fit.get('ghost_axis'):
        found.append(
            'Before that, ghosts of a field that fluctuates during the scan were taken off the '
            'images by what they leave in the air [@atkinson1997].'
        )
    if fit.get('ringing'):
        found.append(
            'R2* was fitted to magnitudes freed of ringing by local shifts of the grid '
            '[@kellner2016].'
        )
    return found


def _reference(reference: str) -> str:
    return {
        'none': 'Maps are not referenced.',
        'roi-mean': 'Maps are relative to the mean of the region of interest.',
    }.get(reference, f'Maps are relative to the mean of the region "{reference}".')


def region_sentence(inside: str, erosion: float) -> str:
    """Methods sentence on a region of interest that is not the object itself.

    ``inside`` is what was asked for or found (``auto``, ``brain``, ``object``), ``given``,
    ``synthstrip`` or ``field``; the erosion is in mm.

    >>> print(region_sentence('given', 2.0), end='')
    Only the part of the object inside a given mask, less a border of 2 mm, was reconstructed.
    """
    if inside == 'object' and not erosion:
        return ''
    part = {
        'given': 'the part of the object inside a given mask',
        'brain': 'the brain, found in the magnitude,',
        'synthstrip': 'the brain, found by SynthStrip [@synthstrip],',
        'auto': 'the object (of a head the brain, found in the magnitude)',
        'field': 'the part of the object whose field is given',
        'object': 'the object',
    }[inside]
    border = f', less a border of {erosion:g} mm,' if erosion else ''
    part = part.removesuffix(',') if border else part
    return f'Only {part}{border} was reconstructed.\n'


def opening(version: str) -> str:
    """First sentence of a methods text."""
    return (
        f'Maps of magnetic susceptibility were computed with *precondqsm_bids* {version} '
        '[@precondqsm_bids], which is based on *Nipype* [@nipype], with a preconditioned input '
        'field [@preconditioning].\n'
    )


def done(summary: Mapping[str, Any]) -> str | None:
    """Methods text of a run from the numbers that it left; None if they do not tell."""
    record, settings = summary.get('record', {}), summary.get('settings') or {}
    names = {field.name for field in fields(Method)}
    known = {key: value for key, value in settings.items() if key in names}
    if known.get('b0_dir'):
        known['b0_dir'] = tuple(known['b0_dir'])
    if not known or not record:
        return None
    try:
        method = Method(**known)
    except (TypeError, ValueError):  # of a version with other words
        return None
    fit, region = record.get('echo_fit', {}), record.get('shape_mask', {})
    without_r2star = 'r2prime_prior' not in record
    difference = str(fit.get('offset_model')).startswith('none')
    if stopped(record):
        text = sentences_around(method, None, without_r2star, difference, record)
    elif 'take_map' in record:  # --resume-with
        text = sentences_around(method, 'total', without_r2star, difference, record)
    else:
        text = sentences(method, without_r2star, difference, record)
    return region_sentence(_region(region.get('mask', 'object')), region.get('erosion', 0)) + text


def _region(mask: str) -> str:
    """The word of `region_sentence` for what the record calls the mask."""
    if mask in ('object', 'brain'):
        return mask
    if mask.startswith('synthstrip_'):
        return 'synthstrip'
    return 'field' if '_fieldmap.' in mask else 'given'


def methods_text(texts: Mapping[str, str], versions: Iterable[str]) -> str:
    """The whole methods text of several runs: what is the same is said once.

    Parameters
    ----------
    texts : mapping
        Name of each run -> its text.
    versions : iterable of str
        Of the program.

    Examples
    --------
    >>> print(methods_text({'sub-1': 'A.', 'sub-2': 'B.'}, ['1.0']).partition('\\n\\n')[2])
    Run sub-1: A.
    <BLANKLINE>
    Run sub-2: B.
    <BLANKLINE>
    """
    if not texts:
        return ''
    alike: dict[str, list[str]] = {}
    for name, text in texts.items():
        alike.setdefault(text.strip(), []).append(name)
    parts = [opening(' and '.join(sorted(set(versions))))]
    for text, names in alike.items():
        if len(alike) > 1:
            more = f' and {len(names) - NAMED} more' if len(names) > NAMED else ''
            text = f'Run{"s" * (len(names) > 1)} {", ".join(names[:NAMED])}{more}: {text}'
        parts.append(text + '\n')
    return '\n'.join(parts)


def text_of_runs(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    """Methods text of the runs that left numbers; empty if there are none or they do not tell."""
    texts = {name: text for name, summary in summaries.items() if (text := done(summary))}
    return methods_text(texts, [str(summaries[name].get('version')) for name in texts])


def _given_field(one_echo: bool) -> str:
    rate = 'R2* is not known' if one_echo else 'so was R2*'
    return (
        'The total field was not computed here: a given map of it was taken, in ppm of the field '
        f'strength; {rate}. The standard deviation of the field was taken to be inverse to the '
        'magnitude where it was not given.'
    )


def _field(one_echo: bool, phase_difference: bool, own_offset: bool) -> str:
    if not one_echo:
        offset = 'an offset of its own in each voxel' if own_offset else 'a smooth phase offset'
        return (
            'The total field, R2* and S0 were estimated by a nonlinear fit of the complex '
            'multi-echo signal [@liu2013], after spatial unwrapping [@herraez2002] and with '
            f'{offset}.'
        )
    offset = (
        'it is the difference of two echoes, so that it has no phase offset'
        if phase_difference
        else 'the phase offset of the coil, which one echo does not tell from it, is part of it'
    )
    return (
        'The total field is the phase of the single echo, unwrapped in space [@herraez2002], '
        f'over its echo time; {offset}, and R2* is not known.'
    )


def _weight(arm: Arm, trust: float = 1.0) -> str:
    """Lambda of an arm in words; ``trust`` is how far the estimate counts that it follows."""
    if arm.reg_weight is not None:
        return f'a regularisation weight of {arm.reg_weight:g} mm'
    if arm.rule == 'risk' and arm.clip_outliers and trust < 1:
        if trust > 0:
            return TOWARDS_CORNER
        return f'{RULES["risk-or-corner"]}, as the estimate does not count'
    return RULES[arm.rule]


def _trust(record: Mapping[str, Any] | None) -> float:
    """How far the estimate counts, in full where that is not known."""
    trust = (record or {}).get('prior_fit', {}).get('trust')
    return 1.0 if trust is None else trust


def _weighted(arm: Arm, record: Mapping[str, Any] | None) -> bool:
    """Whether the residual is weighted: what a dropped estimate leaves is the whole field."""
    return arm.weighted and _trust(record) > 0


def _start(arm: Arm) -> str:
    if arm.background != 'pdf' or not arm.continued:
        return ''
    return ', which went on from the sources outside that the fit of the prior had found'


def _removal(arm: Arm, record: Mapping[str, Any] | None) -> str:
    """Background removal of an arm in words, where it is done that which was chosen."""
    used = (record or {}).get(f'{arm.prefix}background_removal', {}).get('method')
    return BACKGROUNDS[used or arm.background].format(arm.iterations) + _start(arm)


def _comparison(conventional: Arm, arm: Arm, weight: str, record: Mapping[str, Any] | None) -> str:
    """An arm beside the preconditioned one with its weight in words, and how it differs."""
    if conventional.certain_field:
        return _consensus(conventional, record)
    if conventional.local_of is not None:
        return f'It was made once more with {_weight(conventional)}.'
    differs = ''
    if _start(arm):
        differs += ', from no sources on'
    if _weight(conventional) != weight:
        differs += f', with {_weight(conventional)}'
    if arm.clip_outliers:
        form = f'the inversion was that {INVERSIONS["l2"]}, and ' * _weighted(arm, record)
        differs += f'; {form}no voxel was held to its neighbours'
    return (
        'The same background removal and inversion of the field that was not flattened gave the '
        f'conventional map for comparison{differs}.'
    )


def _consensus(arm: Arm, record: Mapping[str, Any] | None) -> str:
    """The arm by the choice of the consensus, which shares the total field alone."""
    return (
        'A further map follows the recommendations of the QSM consensus [@qsmconsensus2024]: of '
        'the total field, without voxels at the border of the region where it is uncertain, the '
        f'background was removed by {_removal(arm, record)}; the '
        f'local field was inverted {INVERSIONS[arm.inversion]}, with {_weight(arm)}; and the map '
        'is relative to the mean of its region.'
    )


def _estimate(method: Method, one_echo: bool, fit: Mapping[str, Any]) -> str:
    terms = [_term(word, method, one_echo) for word in method.prior]
    if method.fit is None:
        return f'A first estimate of the susceptibility was taken to be {terms[0]}.'
    trust, found = fit.get('trust'), ''
    if trust is not None:
        found = ': in full' if trust >= 1 else ': in part' if trust else ': not at all'
    counts = 'more of the field than the same estimate mirrored, turned or shifted'
    if 'beyond_null' in fit and fit['beyond_null'] is None:
        counts = 'of the field, as mirrored, turned or shifted it is like itself'
    return (
        'A first estimate of the susceptibility was fitted to the field, together with the '
        f'sources outside the region: {"; ".join(terms)}. It counts as far as it explains '
        f'{counts}{found}.'
    )


def _term(word: str, method: Method, one_echo: bool) -> str:
    """One term of the prior in words."""
    if word.startswith(MAP):
        return f'a given susceptibility map{FITS[method.fit]}'
    own = {
        'contrast': lambda: _contrast(method, one_echo),
        'r2prime-by-tissue': lambda: (
            f'{_theory(method.r2)}, with one coefficient for each tissue class'
        ),
        'r2prime': lambda: f'{_theory(method.r2)}{FITS[method.fit]}',
        'shape': lambda: 'zero inside the object',
    }
    return own[word]() if word in own else term(word).help


def _contrast(method: Method, one_echo: bool) -> str:
    first, histogram, polynomial = 'magnitude', 'histogram of the magnitude', 'degree 2'
    if not one_echo:
        first, histogram = 'R2*', 'joint histogram of R2* and magnitude'
        polynomial = 'degree 4 beside any function of R2*'
    shading = (
        f'; images were freed of their shading by a polynomial of {polynomial} [@vanleemput1999]'
    )
    further = ''.join(f' and of that of {first} and {name}' for name in method.contrasts)
    return (
        f'one constant for each cell of the {histogram}{further}, over the whole region and in '
        'windows that overlap smoothly, products of hats on lattices of 3/8, 3/16 and 3/32 of the '
        "cube root of the region's volume"
        f'{shading}'
    )


def _theory(r2: float | str) -> str:
    rate = R2[r2] if isinstance(r2, str) else f'{r2:g}/s'
    return (
        "the susceptibility that static-dephasing theory [@yablonskiy1994] gives to R2' = R2* - "
        f'R2, R2 being {rate}'
    ) + (" (R2* used as R2')" if r2 == 0 else '')
