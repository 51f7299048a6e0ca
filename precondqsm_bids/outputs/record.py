"""The record: the one table of what its numbers mean and where they are shown.

A stage's record is what it used, chose and measured; all of it goes into the sidecars. What the
report and the tables and figures of the group show of it is a row here.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from precondqsm_bids.numerics.field_quality import MOST_FIELD_SD, MOST_MISFIT
from precondqsm_bids.outputs import wording


class Row(NamedTuple):
    """The row of a measure in the report."""

    place: int
    """Rows stand in this order, those of ``echo_fit`` in a table of their own."""
    heading: str
    words: str | Callable[[wording.Numbers, wording.Numbers], str | None]
    """Format of the stage's numbers, for where there is this one; or the text from these numbers
    and the whole record, None for no row."""


class Measure(NamedTuple):
    """One number (or word) of the record."""

    name: str
    """Column of ``group_quality.tsv``."""
    stage: str
    meaning: str
    unit: str = ''
    kind: str = 'linear'
    """``linear``: a number; ``log``: a positive number, compared by its logarithm; ``text``;
    ``length``: of a list of numbers; ``names`` and ``parcels``: the terms of a prior and the sum
    of their coefficients."""
    other_key: str = ''
    """Of the stage's record, where it is not the name."""
    column: bool = True
    """Whether the group level gathers it."""
    report: Row | None = None
    """None if it is not in the report."""

    @property
    def key(self) -> str:
        """Of the stage's record."""
        return self.other_key or self.name

    @property
    def compared(self) -> bool:
        """Whether the group level compares it over the runs, and draws it."""
        return self.column and self.kind not in ('text', 'names')


MEASURES = (
    Measure('field_strength', 'echo_fit', 'Field strength', 'T'),
    Measure('n_echoes', 'echo_fit', 'Number of echoes', kind='length', other_key='echo_times'),
    Measure('noise_sd', 'echo_fit',
            'Noise of the real or imaginary part, in the unit of the magnitude', 'arbitrary',
            'log', report=Row(10, 'Noise of a channel', wording.noise)),
    Measure('median_field_sd', 'echo_fit',
            'Median standard deviation of the field over the region of interest', 'ppm', 'log',
            report=Row(
                30, 'Standard deviation of the field',
                f'{{median_field_sd}} ppm in the median voxel (warned of above {MOST_FIELD_SD:g})',
            )),
    Measure('reliable_fraction', 'echo_fit', 'Share of voxels with two usable echoes or more'),
    Measure('offset_model', 'echo_fit',
            'Model of the phase at echo time zero: quartic, spline or voxelwise', kind='text',
            report=Row(60, 'Phase offset', wording.offset)),
    Measure('offset_misfit', 'echo_fit',
            'What a smooth model leaves of the phase at echo time zero', 'rad'),
    Measure('echo_phase_size', 'echo_fit',
            'Phase of one echo beyond a line in TE, largest root mean square', 'rad'),
    Measure('ghost_size', 'echo_fit',
            'Phase of the phase-encoding lines in the last echo by a field that fluctuates, root '
            'mean square, taken off', 'rad', report=Row(65, 'Ghosts', wording.ghosts)),
    Measure('ringing', 'echo_fit', 'Correction of ringing along each axis', column=False,
            report=Row(66, 'Ringing', wording.ringing)),
    Measure('misfit_fraction', 'echo_fit',
            'Share of voxels that one field and one R2* do not describe',
            report=Row(
                40, 'Misfit: more than one field and one R2*',
                f'{{misfit_fraction:.1%}} of the region (warned of above {MOST_MISFIT:.0%})',
            )),
    Measure('unusable_fraction', 'echo_fit',
            'Share of voxels with fewer than two echoes above the noise (one echo: none)',
            report=Row(50, 'Fewer than two echoes above the noise', wording.few_echoes)),
    Measure('no_echo', 'echo_fit', 'The same, of one echo', other_key='unusable_fraction',
            column=False, report=Row(51, 'No echo above the noise', wording.no_echo)),
    Measure('channels', 'echo_fit', 'Channels of the root sum of squares', column=False,
            report=Row(20, 'Channels in the root sum of squares', '{channels:.1f}')),
    Measure('bodies', 'echo_fit', 'Bodies of the region that are not connected',
            report=Row(70, 'Bodies of the region', wording.bodies)),
    Measure('phase_sign', 'echo_fit', 'Sign of the stored phase; -1 was negated'),
    Measure('phase_sign_source', 'echo_fit',
            'Where the sign is from: given, field of the shape, or assumed (vendor, convention)',
            kind='text'),
    Measure('phase_sign_correlation', 'echo_fit',
            "Partial correlation of the measured field and that of the object's shape"),
    Measure('r2', 'r2prime_prior', 'R2 that was taken from R2*', '1/s',
            report=Row(40, 'R2', '{r2} /s: {r2_source}')),
    Measure('relaxivity', 'r2prime_prior', "R2' per susceptibility that the prior was made with",
            '1/s/ppm'),
    Measure('shape_voxels', 'shape_mask', 'Voxels of the object against air'),
    Measure('roi_voxels', 'shape_mask', 'Voxels of the region of interest',
            report=Row(10, 'Region of interest', wording.region)),
    Measure('fat_voxels', 'echo_fit',
            'Voxels that were recognised as fat and left out of the region of interest'),
    Measure('prior', 'prior_fit', 'Terms of the prior; n/a where it was not fitted', kind='names',
            other_key='priors', report=Row(20, 'Prior', wording.prior)),
    Measure('coefficient', 'prior_fit', 'The coefficient of a prior that has one',
            other_key='coefficients', column=False,
            report=Row(30, 'Coefficient of the prior', wording.coefficient)),
    Measure('prior_parcels', 'prior_fit', 'Number of coefficients of the prior', kind='parcels',
            other_key='priors'),
    Measure('prior_expected_size', 'prior_fit', 'Expected size of the susceptibility inside',
            'ppm', 'log', other_key='expected_size'),
    Measure('prior_explained', 'prior_fit',
            "Share of the local field's energy that the fitted prior explains",
            other_key='explained'),
    Measure('prior_trust', 'prior_fit', 'How far the prior counts, from 0 (dropped) to 1',
            other_key='trust', report=Row(25, 'The prior counts for', wording.trust)),
    Measure('prior_beyond_null', 'prior_fit',
            'What the prior explains of the local field beyond the same prior turned; n/a where '
            'every turn is like it',
            other_key='beyond_null'),
    Measure('tissue_shift_sd', 'prior_fit',
            'Spread of the frequency of the tissue that is no field of a dipole', 'ppm', 'log',
            report=Row(35, 'Tissue shift', wording.shift)),
    Measure('down_weighted_fraction', 'prior_fit',
            'Share of voxels that the robust weights hold at less than half'),
    Measure('total_field_sd', 'flattening',
            'Spread of the total field over the region of interest', 'ppm', 'log'),
    Measure('flattened_field_sd', 'flattening',
            'Spread of the flattened field over the region of interest', 'ppm', 'log'),
    Measure('known_voxels', 'background_removal',
            'Voxels of the region of interest whose local field is known', column=False,
            report=Row(11, 'Region without the rim that spheres do not know',
                       '{known_voxels} voxels: those of desc-roi_mask and of the maps')),
    Measure('relative_residual', 'background_removal',
            'Gradient at the last iteration of the background removal over that at the first',
            kind='log'),
    Measure('reg_weight', 'dipole_inversion', 'Regularisation weight lambda', 'mm', 'log',
            report=Row(70, 'Preconditioned: λ', wording.weight)),
    Measure('reg_rule', 'dipole_inversion', 'How lambda was chosen', kind='text',
            other_key='rule'),
    Measure('corner', 'dipole_inversion', 'Lambda at the corner of the L-curve', 'mm', 'log'),
    Measure('conventional_reg_weight', 'conventional_dipole_inversion',
            'Lambda of the conventional arm', 'mm', 'log', other_key='reg_weight',
            report=Row(71, 'Conventional: λ', wording.weight)),
    Measure('conventional_corner', 'conventional_dipole_inversion',
            'Lambda at the corner of the L-curve of the conventional arm', 'mm', 'log',
            other_key='corner'),
    Measure('conventional_risk_reg_weight', 'conventional_risk_dipole_inversion',
            'Lambda of the conventional map of least expected error', 'mm', 'log',
            other_key='reg_weight',
            report=Row(72, 'Conventional, least expected error: λ', wording.weight)),
    Measure('consensus_background', 'consensus_background_removal',
            'How the arm of the consensus removed the background', kind='text',
            other_key='method'),
    Measure('consensus_known_voxels', 'consensus_background_removal',
            'Voxels in which the map of the consensus is known', other_key='known_voxels',
            report=Row(12, 'Consensus: region', wording.consensus_region)),
    Measure('consensus_reg_weight', 'consensus_dipole_inversion',
            'Lambda of the arm of the consensus', 'mm', 'log', other_key='reg_weight',
            report=Row(73, 'Consensus: λ', wording.weight)),
    Measure('reference', 'recombination', 'What is 0 ppm', kind='text',
            report=Row(80, 'Preconditioned: reference', wording.reference)),
    Measure('reference_value', 'recombination',
            'Susceptibility that was subtracted to refer the map', 'ppm'),
    Measure('reference_sd', 'recombination',
            'Standard deviation of the map in the reference region', 'ppm'),
    Measure('roi_mean', 'recombination',
            'Mean of the map over the region of interest before it was referred', 'ppm'),
    Measure('roi_sd', 'recombination', 'Standard deviation of the map over the region of interest',
            'ppm'),
    Measure('conventional_reference', 'conventional_recombination',
            'What is 0 ppm in the conventional map', kind='text', other_key='reference',
            column=False, report=Row(81, 'Conventional: reference', wording.reference)),
    Measure('consensus_reference', 'consensus_recombination',
            'What is 0 ppm in the map of the consensus', kind='text', other_key='reference',
            column=False, report=Row(82, 'Consensus: reference', wording.reference)),
    Measure('median_chi_sd', 'uncertainty',
            'Median standard deviation of the preconditioned susceptibility', 'ppm', 'log',
            other_key='median_sd',
            report=Row(
                60, 'Standard deviation of the map', '{median_sd} ppm in the median voxel',
            )),
    Measure('median_support', 'uncertainty',
            'Median part of the value that the field decided rather than the contrast',
            report=Row(61, 'Decided by the field', wording.support)),
    Measure('supported_fraction', 'uncertainty',
            'Share of voxels whose value the field decided by half or more'),
    Measure('resolution', 'uncertainty',
            'Part of a change of susceptibility, anywhere, that the inversion shows'),
    Measure('explained', 'comparison',
            "Share of the conventional local field's energy that preconditioning takes off",
            report=Row(50, 'Field explained by the prior',
                       '{explained:.1%} of the energy of the conventional local field')),
    Measure('explained_by_scale', 'comparison', 'The same at each scale', column=False,
            report=Row(55, 'Field explained by the maps at each scale', wording.scales)),
)  # fmt: skip
"""In the order of the columns of ``group_quality.tsv``."""

COLUMNS = tuple(measure for measure in MEASURES if measure.column)
"""Those that the group level gathers."""

COEFFICIENTS = {
    'coefficient': ('coefficients', 'Coefficient of the prior that the field chose', ''),
    'coefficient_error': ('coefficient_errors', 'Standard error of the coefficient', ''),
    'implied_relaxivity': (
        'implied_relaxivity', "R2' per susceptibility that the coefficient implies", '1/s/ppm',
    ),
}  # fmt: skip
"""Column of ``group_coefficients.tsv`` -> key of the record of `prior_fit`, what it is, unit."""


class _Format(string.Formatter):
    """Format with the numbers of the report where nothing else is asked for."""

    def format_field(self, value: Any, format_spec: str) -> str:
        return format(value, format_spec) if format_spec else wording.number(value)


def report_rows(record: Mapping[str, wording.Numbers], of_field: bool) -> list[tuple[str, str]]:
    """Heading and text of the rows of the report: of the field (``echo_fit``), or the others."""
    rows = []
    for _, heading, words, measure in sorted(
        (*measure.report, measure)
        for measure in MEASURES
        if measure.report and (measure.stage == 'echo_fit') is of_field
    ):
        numbers = record.get(measure.stage, {})
        if callable(words):
            text = words(numbers, record)
        elif numbers.get(measure.key) is None:
            text = None
        else:
            text = _Format().vformat(words, (), numbers)
        if text is not None:
            rows.append((heading, text))
    return rows


def warnings_of(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Every warning that a stage left, after the name of the stage.

    >>> list(warnings_of({'comparison': {'warnings': ['it did not help']}, 'echo_fit': {}}))
    [('comparison', 'it did not help')]
    """
    for stage, numbers in record.items():
        texts = numbers.get('warnings') if isinstance(numbers, Mapping) else None
        for text in [texts] if isinstance(texts, str) else texts or ():
            yield stage, str(text)
