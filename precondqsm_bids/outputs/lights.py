"""Six lights of a run: what its record says of how far the map is to be trusted.

Nothing is measured here: each light takes the numbers of a stage against the limits by which that
stage itself warns. ``docs/reading.md`` argues them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from precondqsm_bids.numerics.comparison import REVERSED, SILENT
from precondqsm_bids.numerics.field_quality import (
    MOST_FIELD_SD,
    MOST_MISFIT,
    MOST_NOISE_RATIO,
    MOST_UNUSABLE,
    REFUSED_FIELD_SD,
    REFUSED_MISFIT,
    REFUSED_UNUSABLE,
)
from precondqsm_bids.numerics.measure_field import MOST_AMBIGUOUS
from precondqsm_bids.numerics.phase.sign import CONTRADICTION, LEAST_CORRELATION
from precondqsm_bids.numerics.prior.verdict import COUNTED
from precondqsm_bids.numerics.shape_mask import (
    LEAST_COVERAGE,
    LEAST_SURFACE,
    MOST_FADING,
    MOST_LEFT_OUT,
)
from precondqsm_bids.outputs.reporting import consensus_deviations
from precondqsm_bids.outputs.wording import Numbers, field_given, one_echo

LEVELS = {
    'good': 'nothing speaks against it',
    'unknown': 'nothing tested it',
    'doubtful': 'look at it before the map is used',
    'bad': 'the map is not to be used without mending it',
}
"""What a light may say, the best first."""

_RANK = list(LEVELS)


class Light(NamedTuple):
    """What one light says."""

    level: str
    """One of ``LEVELS``."""
    sentence: str
    """What was found, and what to do about it."""
    measure: str = ''
    """What the number is, with its unit; empty where there is none."""
    number: float | None = None
    limit: float | None = None
    """Beyond which the level is not good."""
    at_least: bool = False
    """Whether the limit is the least that is good, not the most."""


class Row(NamedTuple):
    """One row of the table of lights."""

    name: str
    heading: str
    place: str
    """Part of the run's section in the report that shows it: the ``desc`` of a figure."""
    judge: Callable[[Numbers, Mapping[str, Any]], Light]
    """Record of all stages, merged sidecar of the first magnitude."""


class _Limit(NamedTuple):
    """A number that should not exceed its limit."""

    measure: str
    number: float | None
    limit: float
    bad: float
    """Beyond which it is bad."""
    sentence: str

    @property
    def level(self) -> str:
        """By the number, of what is known."""
        number = self.number or 0.0
        return 'bad' if number > self.bad else 'doubtful' if number > self.limit else 'good'


def lights(record: Numbers, metadata: Mapping[str, Any]) -> dict[str, Light]:
    """The six lights of a run by name.

    Parameters
    ----------
    record : mapping
        Stage -> what it used, chose and measured.
    metadata : mapping
        Merged sidecar of the first magnitude.

    Examples
    --------
    >>> found = lights({'prior_fit': {'trust': 1.0, 'beyond_null': 0.5}}, {})
    >>> found['prior'].level, found['sign'].level
    ('good', 'unknown')
    """
    return {row.name: row.judge(record, metadata) for row in LIGHTS}


def _of_limits(limits: Iterable[_Limit], good: str, doubts: Sequence[str] = ()) -> Light:
    """The worst of several numbers against their limits.

    ``good`` is said where all are kept; any of ``doubts`` makes a light doubtful that was good.
    """
    known = [limit for limit in limits if limit.number is not None]
    if not known:
        return Light('doubtful' if doubts else 'unknown', '; '.join(doubts) or NOT_RECORDED)
    worst = max(known, key=lambda one: (_RANK.index(one.level), (one.number or 0) / one.limit))
    level, said = worst.level, [*doubts]
    if level != 'good':
        said.insert(0, worst.sentence)
    elif doubts:
        level = 'doubtful'
    return Light(level, '; '.join(said) or good, *worst[:3])


def _halfway(warned: float, refused: float) -> float:
    """Between what is warned of and what is refused, on a scale of logarithms."""
    return math.sqrt(warned * refused)


NOT_RECORDED = 'the record has no numbers of it'


def _sign(record: Numbers, metadata: Mapping[str, Any]) -> Light:
    """The shape's field, or what else the sign is from; R2* as a witness."""
    fit, comparison = (record.get(stage, {}) for stage in ('echo_fit', 'comparison'))
    source, number = fit.get('phase_sign_source'), fit.get('phase_sign_correlation')
    given = field_given(fit)
    if number is not None and not given:  # it is that of the phase as it is stored
        number *= fit['phase_sign']
    level, sentence = 'good', 'the field of the object has the sign that its shape predicts'
    opposed = number is not None and number <= -LEAST_CORRELATION
    reversed_ = (comparison.get('r2star_agreement') or 0.0) <= REVERSED
    unconfirmed = number is None or number < LEAST_CORRELATION
    if source is None:
        level, sentence = 'unknown', NOT_RECORDED
    elif source in ('vendor', 'convention') and not given:
        level = 'bad' if reversed_ or opposed else 'doubtful'
        sentence = (
            f'the sign is assumed (by {source}), the field of the shape does not tell it; state '
            '--phase-sign, or compare with a map of this scanner: veins and iron are bright'
        )
    elif opposed:
        level = 'bad'
        sentence = (
            "the field of the object's shape contradicts the sign: every susceptibility may be "
            'negated; check --phase-sign, and the direction of B0'
        )
    elif given and source == 'convention':
        level = 'unknown'
        sentence = 'the sign of the given field was not stated, and its shape does not tell it'
    elif source == 'given' and unconfirmed:
        sentence = 'the sign is as stated; the field of the shape is too weak to confirm it'
        level = 'doubtful' if reversed_ else 'good'
    weakly = number is not None and number < CONTRADICTION
    if source == 'field of the shape' and reversed_ and weakly:
        level = 'bad'
        sentence = (
            'the field of the shape tells the sign weakly, and R2* speaks against it: compare '
            'with a map of this scanner (veins and iron are bright), and state --phase-sign'
        )
    if reversed_ and source != 'field of the shape' and level in ('bad', 'doubtful'):
        sentence += '; the susceptibility falls where R2* rises, right for calcium, not for iron'
    if fit.get('b0_contradicted'):
        # What explains no field by dipoles along this axis is the second witness.
        unsupported = record.get('prior_fit', {}).get('trust', 1.0) < 1
        level = 'bad' if level == 'bad' or unsupported else 'doubtful'
        sentence = (
            'the field of the shape fits B0 along another axis better: check the header, and '
            'state --b0-dir if it is wrong'
        )
    what = "partial correlation with the field of the object's shape"
    return Light(level, sentence, what, number, LEAST_CORRELATION, True)


def _echoes(record: Numbers, metadata: Mapping[str, Any]) -> Light:
    """Unwrapping, precision of the field, and what one field and one R2* leave of the echoes."""
    fit = record.get('echo_fit', {})
    ratio = fit.get('noise_ratio')
    ratio = max(ratio, 1 / ratio) if ratio else 0.0
    limits = (
        _Limit('share of neighbours more than half a turn apart', fit.get('ambiguous_fraction'),
               MOST_AMBIGUOUS, MOST_AMBIGUOUS,
               'the field may be wrong by whole turns: look for abrupt steps in the total field, '
               'and leave out what has no signal'),
        _Limit('standard deviation of the field in the median voxel, ppm',
               fit.get('median_field_sd'), MOST_FIELD_SD,
               _halfway(MOST_FIELD_SD, REFUSED_FIELD_SD),
               'the noise of the field is as large as what tissues differ by: average the map '
               'over regions, or scan with more signal'),
        _Limit('share of the region without two echoes above the noise',
               fit.get('unusable_fraction', fit.get('no_signal_fraction')), MOST_UNUSABLE,
               _halfway(MOST_UNUSABLE, REFUSED_UNUSABLE),
               'the echoes are lost in noise: look at the usable echoes, and restrict the mask to '
               'what has signal'),
        _Limit('share of the region that one field and one R2* do not describe',
               fit.get('misfit_fraction'), MOST_MISFIT, _halfway(MOST_MISFIT, REFUSED_MISFIT),
               'the echoes do not agree with one field: motion, flow, fat or wrong echo times; '
               'look at the misfit'),
        # Within its limit it is no measure of anything, and is not shown.
        _Limit('noise of the phase over that of the air, or the inverse',
               ratio if ratio > MOST_NOISE_RATIO else None, MOST_NOISE_RATIO, math.inf,
               'the noise of the phase is not that of the air: the phase has errors that the '
               'magnitude does not show, as by motion between the echoes, or the background was '
               'changed; look at what is left of the phase of each echo'),
    )  # fmt: skip
    doubts = []
    times = fit.get('echo_times', ())
    if 0 < len(times) < 3:
        doubts.append(
            ('one echo: nothing' if one_echo(fit) else 'two echoes: no third one')
            + ' tests the phase for eddy currents or motion'
        )
    if fit.get('offset_model') == 'voxelwise' and fit.get('offset_misfit'):
        doubts.append(
            'the phase offset is not smooth: look for errors of the coil combination in the phase'
        )
    return _of_limits(limits, 'the echoes agree with one field, and it has no jumps', doubts)


def _region(record: Numbers, metadata: Mapping[str, Any]) -> Light:
    """How far the region of interest is known, and what it leaves out."""
    shape = record.get('shape_mask', {})
    volumes, left_out = (shape.get(key) or [0.0] for key in ('volumes', 'left_out'))
    share = None
    if shape.get('mask') == 'object' and shape.get('shape_voxels'):
        share = 1 - shape['roi_voxels'] / shape['shape_voxels']
    look = 'look at the outlines of the masks, and give --mask'
    limits = (
        _Limit('share of the border where the signal fades into the noise',
               shape.get('fading_fraction'), MOST_FADING, 1 - LEAST_SURFACE,
               f'the border is no surface of the object: {look}'),
        _Limit('share of the object that is not in the region', share, 1 - LEAST_COVERAGE,
               1 - LEAST_COVERAGE, f'most of the object is left out: {look}'),
        _Limit('largest piece that was left out, over the region',
               max(left_out) / sum(volumes) if sum(volumes) else None, MOST_LEFT_OUT, math.inf,
               f'pieces with signal are not in the region: {look} that has them'),
    )  # fmt: skip
    doubts = list(shape.get('warnings', ()))
    if len(volumes) > 1:
        doubts.append(
            f'{len(volumes)} bodies that are not connected: do not compare values between them'
        )
    return _of_limits(limits, 'the region is one body with a border that is known', doubts)


def _prior(record: Numbers, metadata: Mapping[str, Any]) -> Light:
    """Support of the prior by the field, beyond that of the same prior turned."""
    fit, comparison = (record.get(stage, {}) for stage in ('prior_fit', 'comparison'))
    trust, explained = fit.get('trust'), comparison.get('explained')
    if trust != 0 and explained is not None and explained <= 0:
        return Light(
            'bad' if explained < -SILENT else 'doubtful',
            'the prior adds field instead of explaining it: use the conventional map, or another '
            '--prior',
            'energy of the local field that the prior takes off',
            explained,
            0.0,
            True,
        )
    what = 'share of the local field explained, beyond the same prior turned'
    supported = what, fit.get('beyond_null'), COUNTED, True
    if trust is None:
        sentence = 'the prior was not fitted, and not compared with a null: compare both maps'
        return Light('unknown', sentence if record else NOT_RECORDED)
    if trust == 0:
        sentence = (
            'the field does not support the prior, which was dropped: the map is that of the '
            'field alone, with the errors of a conventional one'
        )
        return Light('doubtful', sentence, *supported)
    if trust < 1:
        sentence = (
            f'the field supports the prior weakly, and it counts for {trust:.1%}: trust what the '
            'conventional map shows too'
        )
        return Light('doubtful', sentence, *supported)
    if harmed := [share for share in comparison.get('explained_by_body', ()) if share <= 0]:
        bodies = 'one of its bodies' if len(harmed) == 1 else f'{len(harmed)} of its bodies'
        sentence = f'the prior helps the region, but not {bodies}: use the conventional map there'
        return Light('doubtful', sentence, *supported)
    if fit.get('beyond_null', 0) is None:
        sentence = 'the prior is like itself when turned, and was not judged: compare both maps'
        return Light('unknown', sentence)
    return Light('good', 'the field supports the prior, which counts in full', *supported)


def _consistency(record: Numbers, metadata: Mapping[str, Any]) -> Light:
    """What the map explains of the measured local field, against the conventional one."""
    inversion, flattening = (record.get(s, {}) for s in ('dipole_inversion', 'flattening'))
    if 'reg_weight' in inversion and inversion['reg_weight'] is None:
        return Light('bad', 'the local field is zero, and the map is the prior: look at the phase')
    doubts = []
    if flattening.get('warnings'):
        doubts.append('the prior has a field that was not measured: compare with the conventional')
    scales = record.get('comparison', {}).get('explained_by_scale') or ()
    lacking = [scale['conventional'] - scale['preconditioned'] for scale in scales]
    silenced = any(
        scale['preconditioned'] < scale['conventional'] / 2 and lack > SILENT
        for scale, lack in zip(scales, lacking, strict=True)
    )
    limit = _Limit(
        'part of the local field that the map lacks against the conventional one, worst scale',
        max(lacking, default=None),
        SILENT,
        SILENT if silenced else math.inf,
        'the map leaves out what the conventional one shows: look there, and state a smaller '
        '--reg-weight',
    )
    light = _of_limits([limit], 'the map explains what the conventional one does', doubts)
    if light.sentence != NOT_RECORDED:
        return light
    return light._replace(
        sentence='there is no conventional map to compare with, or no field above its noise'
    )


def _consensus(record: Numbers, metadata: Mapping[str, Any]) -> Light:
    """What the QSM consensus (10.1002/mrm.30006) advises and this run has not."""
    found = consensus_deviations(record, metadata)
    if not record:
        return Light('unknown', NOT_RECORDED)
    sentence = f'deviates in: {"; ".join(found)}; state it with the results' if found else 'none'
    other = 'take_map' in record  # another program inverted
    if not other and record.get('dipole_inversion', {}).get('inversion', 'l2') == 'l2':
        sentence += '; not counted: the l2 inversion (the consensus: one that favours sparsity)'
    return Light('doubtful' if found else 'good', sentence, 'number of deviations', len(found), 0)


LIGHTS = (
    Row('sign', 'Sign', 'comparison', _sign),
    Row('echoes', 'Unwrapping and echoes', 'quality', _echoes),
    Row('region', 'Region', 'masks', _region),
    Row('prior', 'Support of the prior', 'prior', _prior),
    Row('consistency', 'Consistency with the data', 'fields', _consistency),
    Row('consensus', 'Deviations from the consensus', 'numbers', _consensus),
)
"""In the order of the report."""
