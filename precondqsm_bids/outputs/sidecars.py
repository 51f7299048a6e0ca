"""The JSON beside each map: what BIDS asks for, and what travels with a susceptibility map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from precondqsm_bids import __version__
from precondqsm_bids.numerics.constants import hz_per_ppm
from precondqsm_bids.outputs.dataset import NAME
from precondqsm_bids.outputs.files import json_ready
from precondqsm_bids.outputs.lights import lights
from precondqsm_bids.outputs.maps import (
    BACKGROUNDS,
    CONVOLUTION,
    DIFFERENCE,
    FIT,
    L2,
    PDF_REFERENCE,
    STATIC_DEPHASING,
    TV,
    WEIGHTED,
    Algorithm,
    Map,
)
from precondqsm_bids.outputs.reporting import consensus_deviations, readout_polarity
from precondqsm_bids.outputs.wording import (
    describe_prior,
    field_given,
    known_voxels,
    one_echo,
    volume,
    weight,
)
from precondqsm_bids.terms import term

Record = Mapping[str, Mapping[str, Any]]
"""Stage -> what it used, chose and measured."""

ACQUISITION_KEYS = (
    'Manufacturer', 'ManufacturersModelName', 'DeviceSerialNumber', 'StationName',
    'SoftwareVersions', 'GradientSetType', 'MagneticFieldStrength', 'PulseSequenceType',
    'PulseSequenceDetails', 'ScanningSequence', 'SequenceVariant', 'SequenceName',
    'MRAcquisitionType', 'RepetitionTime',
    'RepetitionTimeExcitation', 'FlipAngle', 'PixelBandwidth', 'ReceiveCoilName',
    'ReceiveCoilActiveElements', 'NonCartesianTrajectory', 'FlowCompensation',
    'CoilCombinationMethod', 'ParallelReductionFactorInPlane',
    'ParallelReductionFactorOutOfPlane', 'ParallelAcquisitionTechnique', 'PartialFourier',
    'PartialFourierDirection',
)  # fmt: skip
"""What the QSM consensus (10.1002/mrm.30006) asks for, under the names of BIDS."""

EXCLUSION = (
    'Nothing inside desc-roi_mask was excluded from the map or from the reference; voxels outside '
    'it are zero.'
)


class Facts(NamedTuple):
    """What is known of a run before anything is computed."""

    sources: Sequence[str]
    """BIDS URIs of the files that were read."""
    echo_times: Sequence[float]
    """s"""
    field_strength: float
    """T"""
    metadata: Mapping[str, Any] = {}
    """Merged sidecar of the first magnitude."""
    settings: Mapping[str, Any] = {}
    """The method."""
    matrix: Sequence[int] = ()
    voxel_size: Sequence[float] = ()
    """mm"""


def compose_sidecar(output: Map, record: Record, facts: Facts) -> dict[str, Any]:
    """The JSON beside one map, by the records of all stages and the facts of the run.

    What BIDS requires and recommends, and for every susceptibility map what the QSM consensus
    (10.1002/mrm.30006) asks to travel with it: acquisition, toolbox and version, every algorithm
    with its numeric parameters, unit, reference with mean and sd, exclusion criteria.
    """
    stages = {stage: record[stage] for stage in output.stages if stage in record}
    sidecar: dict[str, Any] = {
        'Description': as_run(output.description, stages),
        'Sources': list(facts.sources),
        'SpatialReference': 'orig',
    }
    if (b0_dir := record.get('echo_fit', {}).get('b0_dir')) is not None:
        sidecar['B0Direction'] = b0_dir
    if stages:
        sidecar['Parameters'] = stages
    region = _region_of_interest(record, facts, output.arm if output.arm == 'consensus' else '')
    if output.suffix == 'mask':
        whole = output.name == 'shape_mask'
        return json_ready({**sidecar, 'Type': 'ROI'} | ({} if whole else region))
    if output.suffix == 'dseg':
        return json_ready({**sidecar, 'Manual': False})

    sidecar |= {
        'SkullStripped': output.suffix != 'magnitude' and _inside(record.get('shape_mask', {})),
        'Units': output.file_unit,
        **({'EchoTime': list(facts.echo_times)} if facts.echo_times else {}),
        'MagneticFieldStrength': facts.field_strength,
    }
    if output.algorithm:
        sidecar['EstimationAlgorithm'] = _algorithm(output.algorithm, stages)
        sidecar['EstimationReference'] = _publications(output.algorithm, stages)
    if output.name == 'precond_chi':
        found = lights(record, facts.metadata)
        sidecar['Lights'] = {name: light._asdict() for name, light in found.items()}
    if output.suffix == 'Chimap':
        more = _of_susceptibility(stages, facts) | _of_acquisition(record, facts) | region
        sidecar |= {key: value for key, value in more.items() if key not in sidecar}
    return json_ready(sidecar)


def echo_spacing(echo_times: Sequence[float]) -> str:
    """Echo times in milliseconds as TE1:dTE:TEmax, or as a list where they are not equidistant.

    >>> echo_spacing([0.002, 0.005, 0.008])
    '2:3:8 ms'
    >>> echo_spacing([0.002, 0.005, 0.009])
    '2, 5, 9 ms'
    """
    if not len(echo_times):
        return 'none: the field was given'
    ms = [1e3 * t for t in echo_times]
    steps = np.diff(ms)
    if len(ms) > 2 and np.allclose(steps, steps.mean(), atol=0.01):
        return f'{ms[0]:.5g}:{steps.mean():.5g}:{ms[-1]:.5g} ms'
    return ', '.join(f'{t:.5g}' for t in ms) + ' ms'


def _of_susceptibility(stages: Record, facts: Facts) -> dict[str, Any]:
    """What the consensus asks for beside what every map has."""
    known = {key: facts.metadata.get(key) for key in ACQUISITION_KEYS}
    return {key: value for key, value in known.items() if value is not None} | {
        'NumberOfEchoes': len(facts.echo_times),
        'EchoSpacing': echo_spacing(facts.echo_times),
        'MatrixSize': list(facts.matrix),
        'VoxelSize': list(facts.voxel_size),
        'Toolbox': f'{NAME} {__version__}',
        'Settings': dict(facts.settings),
        'Reference': reference_of(stages),
        'ExclusionCriteria': _excluded(stages),
    }


def _of_acquisition(record: Record, facts: Facts) -> dict[str, Any]:
    """Items of the consensus that the images and the stages tell together."""
    fit = record.get('echo_fit', {})
    items: dict[str, Any] = {
        'CenterFrequency': {
            'Value': round(hz_per_ppm(facts.field_strength), 4),
            'Units': 'MHz',
            'Source': str(fit.get('field_strength_source', 'MagneticFieldStrength')),
        },
        'ReadoutPolarity': readout_polarity(facts.metadata, fit),
        'ConsensusDeviations': consensus_deviations(record, facts.metadata),
    }
    if facts.matrix and facts.voxel_size:
        sides = zip(facts.matrix, facts.voxel_size, strict=True)
        items['FieldOfView'] = [round(n * length, 4) for n, length in sides]
    return items


def _region_of_interest(record: Record, facts: Facts, arm: str) -> dict[str, Any]:
    """The region that a map has, and its volume."""
    if not (voxels := known_voxels(record, arm)) or not facts.voxel_size:
        return {}
    return {
        'RegionOfInterest': {
            'Region': record['shape_mask'].get('mask', 'object'),
            'Volume': volume(voxels, facts.voxel_size),
            'Units': 'mL',
        }
    }


def _excluded(stages: Record) -> str:
    """What a map leaves out of the region of interest."""
    if 'consensus_quality_mask' not in stages:
        return EXCLUSION
    quality, local = (
        stages.get(f'consensus_{stage}', {}) for stage in ('quality_mask', 'background_removal')
    )
    rim = (known_voxels(stages) or 0) - quality.get('left_out_voxels', 0)
    rim -= local.get('known_voxels', rim)
    return (
        f'Of the region of interest, {quality.get("left_out_voxels")} voxels at its border whose '
        f'field has a standard deviation of more than {quality.get("most_field_sd", 0):.3g} ppm, '
        f'and the rim of {rim} voxels that the background removal does not know, were left out of '
        'the map and of its reference; voxels outside desc-consensus_mask are zero.'
    )


def _inside(shape: Mapping[str, Any]) -> bool:
    """Whether the region is a brain or a given mask inside the object: the skull is not in it.

    By the record of the stage: what it found, the name of a mask, or that the region's border is
    hardly the object's surface.
    """
    mask = shape.get('mask', 'object')
    inner = mask != 'object' and not shape.get('shape_used', True)
    return inner or mask == 'brain' or 'desc-brain' in mask


def as_run(text: str, stages: Record) -> str:
    """A text of the table of maps, its fields filled with what was run.

    >>> as_run('{background}; prior{shape}', {'flattening': {'shape': False}})
    'Projection onto dipole fields; prior'
    """
    used = {key: value for numbers in stages.values() for key, value in numbers.items()}
    background = BACKGROUNDS['vsharp' if used.get('method') == 'vsharp' else 'pdf']
    inversion = TV if 'tv_weight' in used else WEIGHTED if used.get('weighted') else L2
    given = field_given(stages.get('echo_fit', {}))
    shape = stages.get('flattening', {}).get('shape') is not False
    filled = text.format(
        source=', as given' if given else ' from the echo fit',
        shape=" and of the object's shape" * shape,
        background=background.words,
        background_reference=background.reference,
        inversion=inversion.words.format_map(used),
        inversion_reference=inversion.reference,
    )
    return filled[:1].upper() + filled[1:]


def _algorithm(algorithm: Algorithm, stages: Record) -> str:
    """The algorithm with what was chosen: how the prior was fitted, lambda."""
    words, fit = as_run(algorithm.words, stages), stages.get('echo_fit', {})
    if algorithm is STATIC_DEPHASING and (prior := stages.get('prior_fit')):
        return describe_prior(prior)
    if algorithm is FIT and field_given(fit):
        return 'None here: the map was given, see Sources; it is zero outside desc-roi_mask'
    if algorithm is FIT and one_echo(fit):
        if str(fit.get('offset_model')).startswith('none'):
            return (
                'Phase difference of two echoes, unwrapped in space, over the time between them; '
                'it has no phase offset'
            )
        return (
            'Phase of the one echo, unwrapped in space, over its echo time; the phase offset is '
            'part of it'
        )
    if algorithm is DIFFERENCE and (source := stages.get('r2prime_prior', {}).get('r2_source')):
        return f'{words}; R2: {source}'
    for stage, numbers in stages.items():
        if stage.endswith('dipole_inversion') and 'reg_weight' in numbers:
            if numbers['reg_weight'] is None:
                return f'{words}; the field is zero, and nothing was inverted'
            return f'{words}; lambda = {weight(numbers, stages)}'
    return words


def _publications(algorithm: Algorithm, stages: Record) -> str:
    """The publications of an algorithm; those of a fitted prior depend on what it is made of."""
    if algorithm is FIT and field_given(stages.get('echo_fit', {})):
        return 'The map that was given, see Sources'
    if algorithm is FIT and one_echo(stages.get('echo_fit', {})):
        return 'Herraez MA et al., Appl Opt 2002;41:7437'
    fit = stages.get('prior_fit')
    if algorithm is not STATIC_DEPHASING or not fit:
        return as_run(algorithm.reference, stages)
    terms = [term(name) for name in fit['priors']]
    if not any(each.inside for each in terms):
        return CONVOLUTION.reference
    found = [algorithm.reference] * any(each.needs_r2star for each in terms)
    if fit['fit'] != 'none':
        found.append(f'{PDF_REFERENCE} (projection, here with unknowns inside)')
    return '; '.join(found) or 'The map that was given, see Sources'


def reference_of(stages: Record) -> dict[str, Any] | str:
    """What the map is relative to: the region, what was subtracted, and the region's sd."""
    for stage, numbers in stages.items():
        if stage.endswith('recombination') and numbers['reference'] != 'none':
            if 'bodies' in numbers:
                return _reference_of_bodies(numbers)
            return {
                'Region': numbers['reference'],
                'WholeRegion': stages.get('shape_mask', {}).get('mask', 'object'),
                'Subtracted': numbers['reference_value'],
                'StandardDeviation': numbers['reference_sd'],
                'WholeRegionReferencedMean': numbers['reference_value'] - numbers['roi_mean'],
                'RegionOfInterestMean': numbers['roi_mean'],
                'RegionOfInterestStandardDeviation': numbers['roi_sd'],
                'Units': 'ppm',
                'Note': 'mean and sd are those of the map before the reference was subtracted; '
                'WholeRegionReferencedMean is the mean of Region in the map that is relative to '
                'the mean of the region of interest',
            }
    return 'none'


def _reference_of_bodies(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """What each body of a region of several is relative to, the largest first."""
    return {
        'Region': numbers['reference'],
        'Bodies': [
            {
                'Voxels': body['voxels'],
                'Volume': body['volume'],
                'Region': body['reference'],
                'Subtracted': body['reference_value'],
                'StandardDeviation': body['reference_sd'],
                'WholeRegionReferencedMean': body['reference_value'] - body['mean'],
            }
            for body in numbers['bodies']
        ],
        'Units': 'ppm',
        'Note': 'the region has bodies that are not connected: each is relative to a reference of '
        'its own, roi-mean being the mean of the body, and differences between bodies are '
        'undetermined; mean and sd are those before the reference was subtracted; Volume: mL; '
        'WholeRegionReferencedMean is the mean of Region in a map that is relative to the mean of '
        'the body',
    }
