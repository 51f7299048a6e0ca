"""Numbers and records in words, as sidecars, report and group say them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from precondqsm_bids.numerics.field_quality import MOST_UNUSABLE
from precondqsm_bids.numerics.prior.r2prime import relaxivity
from precondqsm_bids.terms import short, term

Numbers = Mapping[str, Any]
"""Record of one stage: what it used, chose and measured."""

BRAIN_RELAXIVITY = (110.0, 274.0)
"""R2' per susceptibility that is published for brain tissue at 3 T, 1/s per ppm: the range; 137 is
that of Shin et al., NeuroImage 2021;240:118371."""

RULES = {
    'l-curve': 'corner of the L-curve',
    'risk': 'least expected error',
    'risk-or-corner': 'least expected error, at most the corner of the L-curve or an eighth of a '
    'voxel',
}
"""``rule`` of the record, how lambda was chosen, in words."""

NOISE_SOURCES = {
    'phase': 'from what the phase fit leaves',
    'magnitude': 'from second differences of the magnitude',
    'air': 'from the air',
    'given': 'as given',
}
"""``noise_source`` of the record in words."""


def number(value: Any) -> str:
    """Four digits with a true minus sign; n/a where there is no number.

    >>> number(-0.0012345), number(float('nan')), number('roi-mean')
    ('−0.001234', 'n/a', 'roi-mean')
    """
    if value is None or (isinstance(value, float) and not np.isfinite(value)):
        return 'n/a'
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f'{value:.4g}'.replace('-', '−')
    return str(value)


def ppm(value: float | None) -> str:
    """Three decimals with a true minus sign, which zero does not have.

    >>> ppm(-0.25), ppm(-1e-9), ppm(None)
    ('−0.250', '0.000', 'n/a')
    """
    return 'n/a' if value is None else fixed(value, 3)


def fixed(value: float, digits: int) -> str:
    """Decimals with a true minus sign, which zero does not have.

    >>> fixed(-0.25, 3), fixed(-1e-9, 4)
    ('−0.250', '0.0000')
    """
    return f'{round(value, digits) + 0.0:.{digits}f}'.replace('-', '−')


def duration(seconds: float | None) -> str:
    """A time in two units at most.

    >>> duration(42.4), duration(200), duration(7500), duration(None)
    ('42 s', '3 min 20 s', '2 h 5 min', 'n/a')
    """
    if seconds is None:
        return 'n/a'
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f'{hours} h {minutes} min'
    return f'{minutes} min {rest} s' if minutes else f'{rest} s'


def signed(value: int) -> str:
    """A number of turns.

    >>> signed(3), signed(-3), signed(0)
    ('+3', '−3', '0')
    """
    return f'{value:+d}'.replace('-', '−') if value else '0'


def as_options(text: str) -> str:
    """A message with options in place of the names of settings, for who gave options.

    >>> as_options('state phase_sign +1, or the direction of B0 (b0_dir): x')
    'state --phase-sign +1, or the direction of B0 (--b0-dir): x'
    """
    return re.sub(r'(?<=[ (])(phase_sign|b0_dir)(?=[ ,:;).]|$)', _option, text)


def _option(found: re.Match[str]) -> str:
    return f'--{found[0].replace("_", "-")}'


def describe_prior(fit: Numbers) -> str:
    """What the prior was made of, from the record of its fit.

    >>> describe_prior({'priors': {'tissue': {'parcels': 3, 'explained': 0.5}}, 'fit': 'global'})
    'tissue (3 coefficients, 50.0 % of the local field), fitted to the field'
    """
    terms = []
    for name, prior in fit['priors'].items():
        if not term(name).inside:
            return term(name).help
        if prior['explained'] is None:
            return f'{short(name)}, as it is'
        many = f'{prior["parcels"]} coefficient' + ('s' if prior['parcels'] > 1 else '')
        terms.append(
            f'{short(name)} ({many}, {100 * prior["explained"]:.1f} % of the local field)'
        )
    if own := fit.get('free_voxels'):
        share = f'{100 * own["explained"]:.1f} % of the local field'
        terms.append(f'sources of their own ({own["voxels"]} voxels, {share})')
    return ' + '.join(terms) + ', fitted to the field'


def known_voxels(record: Mapping[str, Numbers], arm: str = '') -> int | None:
    """Voxels that a map has: the region without fat, of spheres without their rim.

    ``arm`` is ``consensus`` or empty.

    >>> known_voxels({'shape_mask': {'roi_voxels': 9}, 'echo_fit': {'fat_voxels': 2}})
    7
    """
    background = f'{arm}_background_removal'.lstrip('_')
    if (known := record.get(background, {}).get('known_voxels')) is not None:
        return known
    whole = record.get('shape_mask', {}).get('roi_voxels')
    return None if whole is None else whole - record.get('echo_fit', {}).get('fat_voxels', 0)


def volume(voxels: int, voxel_size: Sequence[float]) -> float:
    """Volume in mL, to four digits, of voxels of a size in mm.

    >>> volume(4657, (6, 6, 6))
    1006.0
    """
    return float(f'{voxels * float(np.prod(voxel_size)) / 1000:.4g}')


# -- rows of the report: the numbers of a stage and the whole record, to text or None -----------


def prior(fit: Numbers, record: Numbers) -> str:
    """What the first estimate is made of."""
    return describe_prior(fit) if fit else "R2' by static-dephasing theory, not fitted"


def trust(fit: Numbers, record: Numbers) -> str | None:
    """How far the prior counts, and why."""
    if fit.get('trust') is None:
        return None
    if fit['beyond_null'] is None:
        return f'{fit["trust"]:.0%}: not judged, as it is like itself when turned'
    beyond = f'{fit["beyond_null"]:.1%} of the local field'
    text = f'{fit["trust"]:.0%}: it explains {beyond} beyond what it does when turned'
    return text if fit['trust'] else f'{text}; the map is that of the field alone'


def scales(comparison: Numbers, record: Numbers) -> str | None:
    """What either map explains of the local field, from long to short wavelengths."""
    found = comparison.get('explained_by_scale')
    if not found:
        return None
    parts = (
        f'{scale["preconditioned"]:.0%} ({scale["conventional"]:.0%}) down to '
        f'{scale["shortest"]:.3g} mm'
        for scale in found
    )
    return f'preconditioned (conventional at the same λ): {", ".join(parts)}'


def support(numbers: Numbers, record: Numbers) -> str | None:
    """How far the field decided the map, and the regions that are the prior's."""
    if numbers.get('median_support') is None:
        return None
    text = (
        f'{numbers["median_support"]:.0%} of the value in the median voxel, half or more in '
        f'{numbers["supported_fraction"]:.0%} of the region'
    )
    of_prior = [f'{name} ({what})' for name, what in numbers.get('of_prior', {}).items()]
    return text + f"; the prior's rather than the field's: {', '.join(of_prior)}" * bool(of_prior)


def coefficient(fit: Numbers, record: Numbers) -> str | None:
    """Coefficients of the terms that have one, the standard error, and what it says of R2'."""
    one = {
        name: values[0]
        for name, values in fit.get('coefficients', {}).items()
        if isinstance(values, list) and len(values) == 1
    }
    said = []
    for name, value in one.items():
        text = f'{value:.3f}'
        if 'coefficient_errors' in fit:
            error = fit['coefficient_errors'][0]
            text += ' ± ' + ('unknown' if error is None else f'{error:.3f}')
        if term(name).is_theory and fit.get('implied_relaxivity'):
            text += f'; {_implied(fit, record)}'
        alone = term(name).is_theory and len(one) == 1
        said.append(text if alone else f'{short(name)}: {text}')
    return ' | '.join(said) or None


def _implied(fit: Numbers, record: Numbers) -> str:
    """What the coefficient of R2' says of it."""
    implied = fit['implied_relaxivity'][0]
    if implied is None:
        return "implies no R2'"
    field_strength = record['echo_fit']['field_strength']
    low, high = (x * field_strength / 3 for x in BRAIN_RELAXIVITY)
    return (
        f"implies R2' of {implied:.0f} 1/s per ppm (static dephasing "
        f'{relaxivity(field_strength):.0f}, published for brain tissue {low:.0f} to {high:.0f})'
    )


def region(shape: Numbers, record: Numbers) -> str | None:
    """What the region of interest is."""
    if 'mask' not in shape:
        return None
    text = {
        'object': 'the object',
        'brain': 'the brain, found in the magnitude (--mask object takes all)',
    }.get(shape['mask'], f'the object inside {shape["mask"]}')
    if shape['erosion'] > 0:
        border = f'{number(shape["erosion"])} mm of its border'
        text += f', less {border} ({shape["eroded_voxels"]} voxels)'
    text += f': {shape["roi_voxels"]} voxels'
    if volumes := shape.get('volumes', ()):
        several = f' in {len(volumes)} bodies' * (len(volumes) > 1)
        text += f'{several}, {", ".join(number(v) for v in volumes)} ml'
    if fat := record.get('echo_fit', {}).get('fat_voxels'):
        text += f', less {fat} voxels of fat (by their chemical shift)'
    if left_out := shape.get('left_out', ()):
        text += f'; pieces of {", ".join(number(v) for v in left_out)} ml were left out'
    if not shape.get('shape_used', True):
        text += '; the shape of the object is not part of the first estimate: '
        text += 'it is not known' if shape['mask'] == 'auto' else 'the region lies inside it'
    return text


def consensus_region(local: Numbers, record: Numbers) -> str | None:
    """What the arm of the consensus leaves of the region, and why."""
    if 'known_voxels' not in local:
        return None
    quality = record.get('consensus_quality_mask', {})
    return (
        f'{local["known_voxels"]} voxels (desc-consensus_mask): without '
        f'{quality.get("left_out_voxels", 0)} at the border whose field is uncertain, and without '
        f'the rim that the background removal ({local["method"]}) does not know'
    )


def weight(inversion: Numbers, record: Numbers) -> str | None:
    """Lambda of one arm and how it was chosen."""
    if 'reg_weight' not in inversion:
        return None
    if inversion['reg_weight'] is None:
        return 'none: the field is zero, and nothing was inverted'
    rule, trust = str(inversion.get('rule', 'given')), record.get('prior_fit', {}).get('trust')
    words = RULES.get(rule, rule)
    # Behind a prior whose residual is clipped lambda depends on how far that counts.
    if rule == 'risk' and inversion.get('outliers_clipped') and trust is not None and trust < 1:
        words = RULES['risk-or-corner'] + ', as the prior does not count'
        if trust:
            words = f'{RULES["risk"]}, moved towards the corner of the L-curve, where this is '
            words += f'smaller, as the prior counts for {trust:.0%}'
    return f'{number(inversion["reg_weight"])} mm ({words})'


def shift(fit: Numbers, record: Numbers) -> str | None:
    """Spread of the frequency that is no field of a dipole; what is next to nothing in words.

    >>> shift({'tissue_shift_sd': 1e-5}, {}), shift({'tissue_shift_sd': 0.00234}, {})
    ('below 0.0001 ppm (standard deviation)', '0.0023 ppm (standard deviation)')
    """
    spread = fit.get('tissue_shift_sd')
    if spread is None:
        return None
    return f'{"below 0.0001" if spread < 1e-4 else f"{spread:.2g}"} ppm (standard deviation)'


def reference(numbers: Numbers, record: Numbers) -> str | None:
    """What the map of one arm is relative to."""
    if not numbers:
        return None
    if numbers['reference'] == 'none':
        return 'none: nothing was subtracted'
    brain = record.get('shape_mask', {}).get('mask') == 'brain'
    name = numbers['reference'] + ' (the brain)' * (brain and numbers['reference'] == 'roi-mean')
    text = (
        f'{name}: {number(numbers["reference_value"])} ppm subtracted '
        f'(sd of the reference region {number(numbers["reference_sd"])} ppm)'
    )
    return text + ('; each body by itself, this one holds most of it' * ('bodies' in numbers))


def noise(fit: Numbers, record: Numbers) -> str:
    """Noise of a channel and where it was seen."""
    source = fit.get('noise_source')
    text = f'{number(fit.get("noise_sd"))} (unit of the magnitude), '
    text += str(NOISE_SOURCES.get(str(source), source))
    if fit.get('noise_ratio') is not None:
        text += f'; {fit["noise_ratio"]:.2f} times that of the air'
    return text


def few_echoes(fit: Numbers, record: Numbers) -> str | None:
    """Share of the region with fewer than two echoes above the noise."""
    share = fit.get('unusable_fraction')
    if share is None or one_echo(fit):
        return None
    return f'{share:.1%} of the region (warned of above {MOST_UNUSABLE:.0%})'


def no_echo(fit: Numbers, record: Numbers) -> str | None:
    """Share of the region in which the only echo is not above the noise."""
    return few_echoes({**fit, 'echo_times': ()}, record) if one_echo(fit) else None


def stopped(record: Numbers) -> bool:
    """Whether the record is that of a run which was stopped after the flattening."""
    return 'flattening' in record and 'recombination' not in record


def one_echo(fit: Numbers) -> bool:
    """Whether the record of the echo fit is that of a single echo."""
    return len(fit.get('echo_times', ())) == 1


def field_given(fit: Numbers) -> bool:
    """Whether the record of the echo fit is that of a field which was given."""
    return fit.get('field_source') == 'given'


def offset(fit: Numbers, record: Numbers) -> str | None:
    """Model of the phase at echo time zero and what it leaves."""
    if fit.get('offset_model') is None:
        return None
    text = str(fit['offset_model'])
    if fit.get('offset_misfit') is not None:
        text += f', leaves {number(fit["offset_misfit"])} rad'
    if fit.get('own_offset_fraction') is not None:
        text += f'; free in {fit["own_offset_fraction"]:.1%} of the voxels'
    return text


def ghosts(fit: Numbers, record: Numbers) -> str | None:
    """Ghosts that were taken off."""
    if not fit.get('ghost_axis'):
        return None
    return (
        f'of a field that fluctuates during the scan, along axis {fit["ghost_axis"]}, '
        f'{number(fit["ghost_size"])} rad in the last echo: taken off'
    )


def ringing(fit: Numbers, record: Numbers) -> str | None:
    """Ringing that was taken off the magnitude."""
    if not fit.get('ringing'):
        return None
    shares = ', '.join(
        f'{axis} ({share:.0%})' for axis, share in zip('ijk', fit['ringing'], strict=True) if share
    )
    return f'of edges, since k-space ends, along {shares}: taken off R2*, S0 and magnitude'


def bodies(fit: Numbers, record: Numbers) -> str | None:
    """Number of bodies of the region, and their turns against the largest."""
    count = fit.get('bodies')
    if count is None or count <= 1:
        return None if count is None else 'one'
    turns = ', '.join(signed(n) for n in fit.get('body_turns', ()))
    return (
        f'{count} that are not connected, moved against the largest by {turns} turns; '
        'differences between them are undetermined'
    )
