"""What the QSM consensus (10.1002/mrm.30006) asks to be reported, from the sidecar of a map.

The items are those of its three tables: hardware, sequence, reconstruction and analysis.
``docs/reporting.md`` shows the same rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from precondqsm_bids.outputs.wording import number, one_echo

LEAST_ALTERNATING = 0.7
"""Share of the gradients of phase, beyond a line in TE, that changes sign from echo to echo, from
which the readouts alternate. Eddy currents that know nothing of the polarity have 1 / (E - 2)."""

POLARITIES = {'bipolar': 'bipolar', 'monopolar': 'monopolar', 'unipolar': 'monopolar'}
"""Word of a sidecar -> polarity of the readouts."""

LEAST_ECHOES = 6
"""With fewer, gradients of any kind may look alternating."""


class Item(NamedTuple):
    """One item that is to be reported."""

    group: str
    name: str
    keys: tuple[str, ...]
    """Of the sidecar; with a dot a key within another."""
    essential: bool = False
    """Whether the consensus calls it essential or mandatory."""


ITEMS = (
    Item('Hardware', 'Field strength', ('MagneticFieldStrength',), True),
    Item('Hardware', 'Vendor', ('Manufacturer',), True),
    Item('Hardware', 'Scanner model', ('ManufacturersModelName',)),
    Item('Hardware', 'Software release', ('SoftwareVersions',)),
    Item('Hardware', 'Coils and channels',
         ('ReceiveCoilName', 'ReceiveCoilActiveElements', 'CoilCombinationMethod')),
    Item('Hardware', 'Gradient system', ('GradientSetType',)),
    Item('Sequence', 'Type of the sequence',
         ('MRAcquisitionType', 'PulseSequenceType', 'ScanningSequence', 'SequenceVariant'), True),
    Item('Sequence', 'Name of the sequence', ('SequenceName', 'PulseSequenceDetails')),
    Item('Sequence', 'Trajectory in k-space', ('NonCartesianTrajectory',)),
    Item('Sequence', 'Orientation: direction of B0', ('B0Direction',)),
    Item('Sequence', 'Number of echoes, TE1:dTE:TEmax', ('NumberOfEchoes', 'EchoSpacing'), True),
    Item('Sequence', 'TR', ('RepetitionTime', 'RepetitionTimeExcitation'), True),
    Item('Sequence', 'Flip angle', ('FlipAngle',)),
    Item('Sequence', 'Bandwidth', ('PixelBandwidth',)),
    Item('Sequence', 'Field of view and matrix', ('FieldOfView', 'MatrixSize'), True),
    Item('Sequence', 'Voxel size', ('VoxelSize',), True),
    Item('Sequence', 'Monopolar or bipolar echoes',
         ('ReadoutPolarity.Polarity', 'ReadoutPolarity.Source')),
    Item('Sequence', 'Centre frequency',
         ('CenterFrequency.Value', 'CenterFrequency.Units', 'CenterFrequency.Source'), True),
    Item('Sequence', 'Flow compensation', ('FlowCompensation',)),
    Item('Sequence', 'Acceleration',
         ('ParallelAcquisitionTechnique', 'ParallelReductionFactorInPlane',
          'ParallelReductionFactorOutOfPlane'), True),
    Item('Sequence', 'Partial Fourier', ('PartialFourier', 'PartialFourierDirection'), True),
    Item('Reconstruction', 'Toolbox and version', ('Toolbox',), True),
    Item('Reconstruction', 'Algorithms with their parameters',
         ('EstimationAlgorithm', 'EstimationReference', 'Settings', 'Parameters'), True),
    Item('Reconstruction', 'Region of interest',
         ('RegionOfInterest.Region', 'RegionOfInterest.Volume', 'RegionOfInterest.Units')),
    Item('Reconstruction', 'Unit', ('Units',), True),
    Item('Reconstruction', 'Reference',
         ('Reference.Region', 'Reference.Subtracted', 'Reference.StandardDeviation'), True),
    Item('Reconstruction', 'Reference against the whole region (the brain, where it is one)',
         ('Reference.WholeRegion', 'Reference.WholeRegionReferencedMean',
          'Reference.StandardDeviation'), True),
    Item('Reconstruction', 'Exclusion', ('ExclusionCriteria',), True),
    Item('Reconstruction', 'Deviates from the consensus in', ('ConsensusDeviations',)),
)  # fmt: skip
"""Rows of the report and of the page."""

SHOWN = {
    'MagneticFieldStrength': '{} T',
    'NumberOfEchoes': '{} echoes',
    'RepetitionTime': '{} s',
    'RepetitionTimeExcitation': '{} s between excitations',
    'FlipAngle': '{}°',
    'PixelBandwidth': '{} Hz per pixel',
    'FieldOfView': '{} mm',
    'MatrixSize': 'matrix {}',
    'VoxelSize': '{} mm',
    'B0Direction': '({}) along the stored axes',
    'CenterFrequency.Value': '{} MHz',
    'CenterFrequency.Source': 'by {}',
    'ReadoutPolarity.Source': 'by {}',
    'ParallelReductionFactorInPlane': '{} in plane',
    'ParallelReductionFactorOutOfPlane': '{} out of plane',
    'RegionOfInterest.Volume': '{} ml',
    'Reference.Subtracted': '{} ppm subtracted',
    'Reference.StandardDeviation': 'standard deviation {} ppm',
    'Reference.WholeRegion': 'against the mean of the {}',
    'Reference.WholeRegionReferencedMean': 'mean {} ppm',
}
"""Key -> how the report says its value."""

LONG = ('Settings', 'Parameters', 'EstimationReference')
"""Keys that the report leaves to the sidecar."""


def reporting_rows(sidecar: Mapping[str, Any]) -> list[tuple[str, str, str, bool]]:
    """Group, item, value in words and whether it is essential, from the sidecar of a map.

    >>> rows = {name: text for _, name, text, _ in reporting_rows({'FlipAngle': 20})}
    >>> rows['Flip angle'], rows['TR']
    ('20°', 'not known')
    """
    rows = []
    for item in ITEMS:
        found = [_said(sidecar, key) for key in item.keys if key not in LONG]
        text = ', '.join(word for word in found if word)
        if item.keys[-1] == 'ConsensusDeviations' and sidecar.get('ConsensusDeviations') == []:
            text = 'nothing that is known'
        if item.name == 'Partial Fourier':
            text = text or _lines_seen(sidecar)
        if item.name == 'Reference' and sidecar.get('Reference') == 'none':
            text = 'none'
        rows.append((item.group, item.name, text or 'not known', item.essential))
    return rows


def _lines_seen(sidecar: Mapping[str, Any]) -> str:
    """Partial Fourier as the images show it, where their sidecars do not tell it."""
    shares = _find(sidecar, 'Parameters.echo_fit.measured_lines') or ()
    return ', '.join(
        f'{share:.0%} of the lines of k-space along {axis}, by the images'
        for axis, share in zip('ijk', shares, strict=False)
        if share < 1
    )


def _find(sidecar: Mapping[str, Any], key: str) -> Any:
    """The value of a key, within another after a dot; None where there is none."""
    value: Any = sidecar
    for name in key.split('.'):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _said(sidecar: Mapping[str, Any], key: str) -> str:
    """A value in words; nothing where there is none, or the same was said before."""
    if key.endswith('.Units'):  # in the words of the value
        return ''
    text = _words(_find(sidecar, key))
    if key == 'Reference.WholeRegion' and '.' in text:
        text = f'region of {text}'
    if key == 'RepetitionTimeExcitation' and sidecar.get('RepetitionTime') == sidecar.get(key):
        return ''
    return text and SHOWN.get(key, '{}').format(text)


def _words(value: Any) -> str:
    """A value as text: sizes with a cross between them, other lists with a semicolon."""
    if value is None:
        return ''
    if isinstance(value, list | tuple):
        of_sizes = all(isinstance(item, int | float) and item > 0 for item in value)
        return (' × ' if of_sizes else '; ').join(map(_words, value))
    return number(value)


def readout_polarity(metadata: Mapping[str, Any], fit: Mapping[str, Any]) -> dict[str, str]:
    """Whether the readouts of the echoes alternate, and what tells it.

    The sidecar of the images tells it in words, or the phase of the echoes does: the gradient that
    it has beyond a line in TE changes sign from echo to echo. Without such a gradient nothing is
    known: a scanner may have corrected it.

    Parameters
    ----------
    metadata : mapping
        Sidecar of the first magnitude.
    fit : mapping
        Record of the echo fit.
    """
    said = ' '.join(
        str(metadata.get(key, ''))
        for key in ('PulseSequenceDetails', 'SequenceName', 'PulseSequenceType', 'ScanOptions')
    ).lower()
    for word, polarity in POLARITIES.items():
        if word in said:
            return {'Polarity': polarity, 'Source': 'sidecar of the images'}
    if one_echo(fit):
        return {'Polarity': 'one readout', 'Source': 'one echo'}
    if alternates((fit.get('echo_phase') or {}).get('gradient') or ()):
        return {'Polarity': 'bipolar', 'Source': 'gradient of the phase that alternates'}
    return {'Polarity': 'not known', 'Source': 'neither word nor alternating phase'}


def alternates(gradients: Sequence[Sequence[float]]) -> bool:
    """Whether gradients of phase (one of each echo, rad/mm) change sign from echo to echo.

        g_e = a + b e + c (-1)^e

    by least squares in each direction: the last term has most of what the first two leave.

    >>> alternates([[0.01 * (-1) ** e, 0, 0] for e in range(6)])
    True
    >>> alternates([[0.01 * e, 0, 0] for e in range(6)])
    False
    """
    g = np.asarray(gradients, float)
    if g.ndim != 2 or len(g) < LEAST_ECHOES:
        return False
    echo = np.arange(len(g))
    line = np.stack([np.ones(len(g)), echo], axis=1)
    sign = (-1.0) ** echo
    beyond, turn = (v - line @ np.linalg.lstsq(line, v, rcond=None)[0] for v in (g, sign))
    power = float((beyond**2).sum())
    if power < 1e-12:
        return False
    return bool(((turn @ beyond) ** 2).sum() / (turn @ turn) >= LEAST_ALTERNATING * power)


def consensus_deviations(
    record: Mapping[str, Mapping[str, Any]], metadata: Mapping[str, Any]
) -> list[str]:
    """What a run has otherwise than the consensus advises, but for its inversion.

    Parameters
    ----------
    record : mapping
        Stage -> what it used, chose and measured.
    metadata : mapping
        Sidecar of the first magnitude.
    """
    fit = record.get('echo_fit', {})
    found = []
    if one_echo(fit):
        found.append('one echo, not several')
    if str(metadata.get('MRAcquisitionType', '')).upper() == '2D':
        found.append('2D acquisition, not 3D')
    if readout_polarity(metadata, fit)['Polarity'] == 'bipolar':
        found.append('bipolar readouts, not monopolar')
    if record.get('recombination', {}).get('reference') == 'none':
        found.append('no reference: values cannot be compared with those of others')
    return found
