"""The maps of a run: the one table that workflow, sidecars, values, figures and names are made of.

A new map is one row here and one connection in ``workflows/qsm.py``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple


class Algorithm(NamedTuple):
    """How a map is made, and the publication of it.

    Fields in braces, in the descriptions of maps too, stand for what was run:
    :func:`~precondqsm_bids.outputs.sidecars.as_run`.
    """

    words: str
    reference: str


class Map(NamedTuple):
    """A map that the reconstruction makes, the file it becomes and what the sidecar says of it."""

    name: str
    """Port of the workflow's outputnode, and first part of its columns in the table of values."""
    unit: str | None
    """In the workflow; None of a mask or label image."""
    words: str
    """What it is, in a few words."""
    suffix: str | None = None
    """BIDS suffix of the file; None if no file is written."""
    desc: str | None = None
    datatype: str = 'anat'
    description: str = ''
    """``Description`` of the sidecar."""
    algorithm: Algorithm | None = None
    stages: tuple[str, ...] = ()
    """Stages whose record the sidecar shows, in their order."""
    many_echoes: bool = False
    """Not known from a single echo."""
    of_echoes: bool = False
    """Not known of a given field."""
    arm: str = ''
    """Only with this arm (name of an :class:`~precondqsm_bids.method.Arm`)."""
    on_request: bool = False
    """Only where the settings ask for it."""
    of_trust: bool = False
    """Says how far another map is to be believed, and is no susceptibility."""

    @property
    def file_unit(self) -> str | None:
        """Unit in the file: BIDS takes a fieldmap in Hz."""
        return 'Hz' if self.suffix == 'fieldmap' else self.unit

    @property
    def ending(self) -> str:
        """End of the file's name, after the entities of the run.

        >>> MAPS['precond_chi'].ending, MAPS['r2star'].ending
        ('desc-precond_Chimap', 'R2starmap')
        """
        return f'desc-{self.desc}_{self.suffix}' if self.desc else f'{self.suffix}'


PDF_REFERENCE = 'Liu T et al., NMR Biomed 2011;24:1129'
BACKGROUNDS = {
    'pdf': Algorithm('projection onto dipole fields', f'{PDF_REFERENCE} (PDF)'),
    'vsharp': Algorithm(
        'V-SHARP, means over spheres', 'Wu B et al., Magn Reson Med 2012;67:137 (V-SHARP)'
    ),
}
L2 = Algorithm(
    'closed-form l2-regularised inversion',
    'Bilgic B et al., Magn Reson Med 2014;72:1444 (closed-form l2 inversion, L-curve)',
)
WEIGHTED = Algorithm(
    'least squares with l2 regularisation, weighted by the noise of the field, which expect more '
    'where the prior steps to its neighbours',
    f'{L2.reference}; Liu T et al., Magn Reson Med 2013;69:467 (weights by the noise)',
)
TV = Algorithm(
    'inversion with total variation, alpha = {tv_weight:.3g} ppm mm',
    f'{L2.reference}; Milovic C et al., Magn Reson Med 2018;80:814 (total variation)',
)
FIT = Algorithm(
    'Nonlinear least-squares fit of the complex multi-echo signal, weighted by its noise',
    'Liu T et al., Magn Reson Med 2013;69:467',
)
STATIC_DEPHASING = Algorithm(
    "Static dephasing: chi = 9 sqrt(3) R2' / (2 pi gamma B0)",
    'Yablonskiy DA and Haacke EM, Magn Reson Med 1994;32:749',
)
DIFFERENCE = Algorithm('Difference of R2* and the stated R2', STATIC_DEPHASING.reference)
TISSUE_SHIFT = Algorithm(
    'A constant frequency for each cell of the prior, fitted with the susceptibility',
    'Schweser F, Zivadinov R, NMR Biomed 2018;31:e3999',
)
CONVOLUTION = Algorithm(
    'Convolution with the voxel-integrated dipole kernel',
    'Marques JP and Bowtell R, Concepts Magn Reson B 2005;25:65; '
    'Jenkinson M et al., Magn Reson Med 2004;52:471',
)
BACKGROUND = Algorithm('{background}', '{background_reference}')
INVERSION = Algorithm('{background}; {inversion}', '{background_reference}; {inversion_reference}')
PRECONDITIONED = Algorithm(
    'Field of the prior{shape} subtracted from the measured field; {background}; {inversion}; '
    'prior added again',
    INVERSION.reference,
)
BY_ANOTHER_PROGRAM = Algorithm(
    'Field of the prior{shape} subtracted from the measured field; inversion by another program, '
    'see the last of Sources; prior added again',
    'That of the other program',
)
CONSENSUS = Algorithm(
    'Border voxels of uncertain field left out; {background}; {inversion}',
    'QSM Consensus Organization Committee, Magn Reson Med 2024, 10.1002/mrm.30006; '
    f'{INVERSION.reference}',
)

_PRIOR = ('echo_fit', 'r2prime_prior', 'prior_fit')
_CHAIN = (*_PRIOR, 'shape_mask', 'flattening', 'background_removal')
_CONVENTIONAL = (
    'echo_fit', 'shape_mask', 'conventional_background_removal', 'conventional_dipole_inversion',
    'conventional_recombination',
)  # fmt: skip
_CONVENTIONAL_RISK = (
    'echo_fit', 'shape_mask', 'conventional_background_removal',
    'conventional_risk_dipole_inversion', 'conventional_risk_recombination',
)  # fmt: skip
_CONSENSUS_MASK = (
    'echo_fit', 'shape_mask', 'consensus_quality_mask', 'consensus_background_removal',
)  # fmt: skip
_CONSENSUS = (*_CONSENSUS_MASK, 'consensus_dipole_inversion', 'consensus_recombination')

UNCERTAINTY = Algorithm(
    "Variances of the prior's error and of the noise by the power of the local field, at each "
    'wavelength and place, through the closed form of the inversion',
    'Bilgic B et al., J Magn Reson Imaging 2014;40:181 (the closed form)',
)

_ROWS = (
    Map('precond_chi', 'ppm', 'preconditioned susceptibility', 'Chimap', 'precond', 'anat',
        'Magnetic susceptibility by preconditioned QSM: prior plus inverted residual',
        PRECONDITIONED,
        (*_CHAIN, 'dipole_inversion', 'recombination', 'comparison', 'uncertainty')),
    Map('conventional_chi', 'ppm', 'conventional susceptibility', 'Chimap', 'conventional', 'anat',
        'Magnetic susceptibility by conventional QSM, without a prior, for comparison',
        INVERSION, _CONVENTIONAL, arm='conventional'),
    Map('conventional_risk_chi', 'ppm', 'conventional susceptibility, least expected error',
        'Chimap', 'conventionalrisk', 'anat',
        'The same as desc-conventional, with the lambda of least expected error instead of that '
        'at the corner of the L-curve',
        INVERSION, _CONVENTIONAL_RISK, arm='conventional_risk'),
    Map('consensus_chi', 'ppm', 'susceptibility by the consensus', 'Chimap', 'consensus', 'anat',
        'Magnetic susceptibility by the choice of the QSM consensus, for comparison; known within '
        'desc-consensus_mask',
        CONSENSUS, _CONSENSUS, arm='consensus'),
    Map('prior_chi', 'ppm', 'prior susceptibility', 'Chimap', 'prior', 'anat',
        'First estimate of the susceptibility, not referenced',
        STATIC_DEPHASING, (*_PRIOR, 'shape_mask')),
    Map('prior_labels', None, 'parcels of the prior', 'dseg', 'prior', 'anat',
        'Parcels of the fitted prior, those of the finest scale (of the contrasts, the cells of '
        'its histogram): 1 to their number',
        None, _PRIOR, on_request=True),
    Map('residual_chi', 'ppm', 'residual susceptibility', 'Chimap', 'residual', 'anat',
        'Susceptibility that the prior lacks: inversion of the flattened field, not referenced',
        INVERSION, (*_CHAIN, 'dipole_inversion')),
    Map('chi_sd', 'ppm', 'standard deviation of the preconditioned susceptibility', 'Chimap',
        'precondstd', 'anat',
        'Standard deviation of the preconditioned susceptibility: noise and misfit of the field, '
        'and what the prior lacks and the field does not reach', UNCERTAINTY,
        (*_CHAIN, 'dipole_inversion', 'recombination', 'uncertainty'), of_trust=True),
    Map('support', '1', 'support by the field', 'Chimap', 'support', 'anat',
        'Part of the preconditioned susceptibility that the field decided rather than the '
        'contrast, from 0 to 1', UNCERTAINTY,
        (*_CHAIN, 'dipole_inversion', 'recombination', 'uncertainty'), of_trust=True),
    Map('r2star', '1/s', 'R2*', 'R2starmap', None, 'anat',
        'Effective transverse relaxation rate R2*', FIT, ('echo_fit',), many_echoes=True),
    Map('t2star', 's', 'T2*', 'T2starmap', None, 'anat',
        'Effective transverse relaxation time T2* = 1 / R2*', FIT, ('echo_fit',),
        many_echoes=True),
    Map('s0', 'arbitrary', 'S0', 'S0map', None, 'anat',
        'Signal at echo time zero', FIT, ('echo_fit',), many_echoes=True, of_echoes=True),
    Map('r2prime', '1/s', "R2'", 'R2primemap', None, 'anat',
        "Reversible transverse relaxation rate R2' = R2* - R2",
        DIFFERENCE, ('echo_fit', 'r2prime_prior'), many_echoes=True),
    Map('shape_mask', None, 'object against air', 'mask', 'shape', 'anat',
        'Object against air, from the measured magnitude', None, ('shape_mask',)),
    Map('roi_mask', None, 'region of interest', 'mask', 'roi', 'anat',
        'Region of interest: voxels that were reconstructed and that references are taken over',
        None, ('shape_mask', 'echo_fit')),
    Map('consensus_mask', None, 'region of the map by the consensus', 'mask', 'consensus', 'anat',
        'Where desc-consensus_Chimap is known: the region of interest without border voxels of '
        'uncertain field and without the rim that the background removal does not know',
        None, _CONSENSUS_MASK, arm='consensus'),
    Map('total_field', 'ppm', 'total field', 'fieldmap', 'total', 'fmap',
        'Total field: frequency offset{source}', FIT, ('echo_fit',)),
    Map('flattened_field', 'ppm', 'flattened field', 'fieldmap', 'flattened', 'fmap',
        'Total field minus the calculated field of the prior{shape}, and minus the tissue shift',
        CONVOLUTION, (*_PRIOR, 'shape_mask', 'flattening')),
    Map('tissue_shift', 'ppm', 'tissue shift', 'fieldmap', 'tissueshift', 'fmap',
        'Frequency of the tissue that is no field of a dipole, as the prior fit found it; the '
        'flattened field is without it',
        TISSUE_SHIFT, _PRIOR, on_request=True),
    Map('local_field', 'ppm', 'local field', 'fieldmap', 'local', 'fmap',
        'Flattened field without the field of sources outside the region of interest',
        BACKGROUND, _CHAIN),
    Map('magnitude', 'arbitrary', 'magnitude of all echoes', 'magnitude', None, 'fmap',
        'Root of the sum of squares over the echoes'),
    Map('conventional_local_field', 'ppm', 'local field, conventional',
        arm='conventional'),
    Map('field_sd', 'ppm', 'standard deviation of the field'),
    Map('misfit', '1', 'residual of the echoes over the noise', many_echoes=True,
        of_echoes=True),
    Map('usable_echoes', 'echoes', 'echoes whose signal exceeds twice the noise'),
)  # fmt: skip

MAPS = {row.name: row for row in _ROWS}
"""Port of the reconstruction -> the map; files are written and columns stand in this order."""

VALUES = 'desc-rois_values.tsv'
"""Ending of the name of the table of values per label."""

WRITTEN = {name: row for name, row in MAPS.items() if row.suffix}
"""Those that become files."""

WITH_VALUES = tuple(
    name for name, row in WRITTEN.items() if row.unit and row.suffix != 'magnitude'
)
"""Those that have columns in the table of values."""


def names_of(
    *,
    one_echo: bool = False,
    field_given: bool = False,
    arms: Collection[str] = ('conventional',),
    requested: tuple[str, ...] = (),
) -> list[str]:
    """Names of the maps that a run has, written or not; ``requested`` are made on request only.

    ``arms`` are the names of those beside the preconditioned one. Of a given field without R2* the
    maps are those of ``one_echo``.

    >>> names_of(one_echo=True, arms=())[:4]
    ['precond_chi', 'prior_chi', 'residual_chi', 'chi_sd']
    """
    return [
        name
        for name, row in MAPS.items()
        if not (row.many_echoes and one_echo)
        and not (row.of_echoes and field_given)
        and (not row.arm or row.arm in arms)
        and (name in requested or not row.on_request)
    ]


def up_to_flattening(names: Iterable[str]) -> list[str]:
    """Those of some maps that are known before anything is inverted.

    >>> up_to_flattening(['precond_chi', 'prior_chi', 'local_field', 'flattened_field'])
    ['prior_chi', 'flattened_field']
    """
    return [
        name
        for name in names
        if not MAPS[name].arm and 'background_removal' not in MAPS[name].stages
    ]
