"""How the derivatives are named, described and written: always whole, always the same bytes.

This module imports niworkflows; the reconstruction nodes of ``precondqsm_bids.interfaces`` do not.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError
from importlib.metadata import metadata as package_metadata
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nb
import numpy as np
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    SimpleInterface,
    TraitedSpec,
    isdefined,
    traits,
)
from niworkflows.interfaces.bids import DerivativesDataSink as _DerivativesDataSink

from precondqsm_bids import __version__
from precondqsm_bids.interfaces.files import temporary_name, write_bidsignore, write_shared
from precondqsm_bids.numerics.constants import hz_per_ppm

NAME = 'precondqsm_bids'
BIDS_VERSION = '1.10.0'

README = f"""Derivatives of {NAME}: preconditioned quantitative susceptibility mapping.

sub-*.html    the report: look at it first
anat/         susceptibility (Chimap, ppm), R2*, T2*, S0, R2', masks, values per labelled region
fmap/         total, flattened and local field (Hz) and the magnitude
figures/      what the report shows
logs/         settings and log of every run of the program

desc-precond_Chimap is the result; desc-conventional is the same inversion without a prior, and
desc-prior plus desc-residual, minus the reference, is desc-precond. The JSON beside each map says
how it was made, with every number.
"""

_ANAT = (
    'sub-{subject}[/ses-{session}]/{datatype<anat>}/sub-{subject}[_ses-{session}][_task-{task}]'
    '[_acq-{acquisition}][_ce-{ceagent}][_rec-{reconstruction}][_run-{run}][_chunk-{chunk}]'
    '[_desc-{desc}]_{suffix<'
)
# A fieldmap has no task, ce or rec: `fieldmap_acquisition` folds them into acq.
_FMAP = (
    'sub-{subject}[/ses-{session}]/{datatype<fmap>}/sub-{subject}[_ses-{session}]'
    '[_acq-{acquisition}][_run-{run}][_chunk-{chunk}][_desc-{desc}]_{suffix<'
)
_FIGURES = (
    'sub-{subject}/{datatype<figures>}/sub-{subject}[_ses-{session}][_task-{task}]'
    '[_acq-{acquisition}][_ce-{ceagent}][_rec-{reconstruction}][_run-{run}][_chunk-{chunk}]'
    '[_desc-{desc}]_{suffix<'
)


class Output(NamedTuple):
    """One map that is written, and what its sidecar says about it."""

    datatype: str
    desc: str | None
    suffix: str
    units: str | None
    description: str
    algorithm: str | None
    reference: str | None
    stages: tuple[str, ...]
    """Stages whose record goes into the sidecar."""


_FIT = 'Nonlinear least-squares fit of the complex multi-echo signal, weighted by its noise'
_FIT_REF = 'Liu T et al., Magn Reson Med 2013;69:467'
_QSM_REF = (
    'Liu T et al., NMR Biomed 2011;24:1129 (PDF); Bilgic B et al., Magn Reson Med 2014;72:1444 '
    '(closed-form l2 inversion, L-curve)'
)
_PRIOR_REF = 'Yablonskiy DA and Haacke EM, Magn Reson Med 1994;32:749'
_FLATTEN_REF = (
    'Marques JP and Bowtell R, Concepts Magn Reson B 2005;25:65; '
    'Jenkinson M et al., Magn Reson Med 2004;52:471'
)
_PRIOR = ('echo_fit', 'r2prime_prior', 'prior_fit')
_CHAIN = (*_PRIOR, 'shape_mask', 'flattening', 'background_removal')

OUTPUTS = {
    'precond_chi': Output(
        'anat', 'precond', 'Chimap', 'ppm',
        'Magnetic susceptibility by preconditioned QSM: prior plus inverted residual',
        "Field of the prior and of the object's shape subtracted from the measured field; "
        'projection onto dipole fields; closed-form l2-regularised inversion; prior added again',
        _QSM_REF, (*_CHAIN, 'dipole_inversion', 'recombination', 'comparison'),
    ),
    'conventional_chi': Output(
        'anat', 'conventional', 'Chimap', 'ppm',
        'Magnetic susceptibility by conventional QSM, without a prior, for comparison',
        'Projection onto dipole fields; closed-form l2-regularised inversion', _QSM_REF,
        (
            'echo_fit', 'shape_mask', 'conventional_background_removal',
            'conventional_dipole_inversion', 'conventional_recombination',
        ),
    ),
    'prior_chi': Output(
        'anat', 'prior', 'Chimap', 'ppm',
        'First estimate of the susceptibility, not referenced',
        "Static dephasing: chi = 9 sqrt(3) R2' / (2 pi gamma B0)", _PRIOR_REF,
        (*_PRIOR, 'shape_mask'),
    ),
    'prior_labels': Output(
        'anat', 'prior', 'dseg', None,
        'Parcels of the fitted prior, those of the finest scale: 1 to their number',
        None, None, _PRIOR,
    ),
    'residual_chi': Output(
        'anat', 'residual', 'Chimap', 'ppm',
        'Susceptibility that the prior lacks: inversion of the flattened field, not referenced',
        'Projection onto dipole fields; closed-form l2-regularised inversion', _QSM_REF,
        (*_CHAIN, 'dipole_inversion'),
    ),
    'r2star': Output(
        'anat', None, 'R2starmap', '1/s', 'Effective transverse relaxation rate R2*', _FIT,
        _FIT_REF, ('echo_fit',),
    ),
    't2star': Output(
        'anat', None, 'T2starmap', 's', 'Effective transverse relaxation time T2* = 1 / R2*',
        _FIT, _FIT_REF, ('echo_fit',),
    ),
    's0': Output(
        'anat', None, 'S0map', 'arbitrary', 'Signal at echo time zero', _FIT, _FIT_REF,
        ('echo_fit',),
    ),
    'r2prime': Output(
        'anat', None, 'R2primemap', '1/s', "Reversible transverse relaxation rate R2' = R2* - R2",
        'Difference of R2* and the stated R2', _PRIOR_REF, ('echo_fit', 'r2prime_prior'),
    ),
    'shape_mask': Output(
        'anat', 'shape', 'mask', None, 'Object against air, from the measured magnitude',
        None, None, ('shape_mask',),
    ),
    'roi_mask': Output(
        'anat', 'roi', 'mask', None,
        'Region of interest: voxels that were reconstructed and that references are taken over',
        None, None, ('shape_mask', 'echo_fit'),
    ),
    'total_field': Output(
        'fmap', 'total', 'fieldmap', 'Hz', 'Total field: frequency offset from the echo fit',
        _FIT, _FIT_REF, ('echo_fit',),
    ),
    'flattened_field': Output(
        'fmap', 'flattened', 'fieldmap', 'Hz',
        "Total field minus the calculated field of the prior and of the object's shape",
        'Convolution with the voxel-integrated dipole kernel', _FLATTEN_REF,
        (*_PRIOR, 'shape_mask', 'flattening'),
    ),
    'local_field': Output(
        'fmap', 'local', 'fieldmap', 'Hz',
        'Flattened field without the field of sources outside the region of interest',
        'Projection onto dipole fields', 'Liu T et al., NMR Biomed 2011;24:1129', _CHAIN,
    ),
    'magnitude': Output(
        'fmap', None, 'magnitude', 'arbitrary', 'Root of the sum of squares over the echoes',
        None, None, (),
    ),
}  # fmt: skip
"""Port of the reconstruction -> the file it becomes."""

ACQUISITION_KEYS = (
    'Manufacturer',
    'ManufacturersModelName',
    'DeviceSerialNumber',
    'StationName',
    'MagneticFieldStrength',
    'PulseSequenceType',
    'PulseSequenceDetails',
    'ScanningSequence',
    'SequenceVariant',
    'SequenceName',
    'MRAcquisitionType',
    'RepetitionTime',
    'RepetitionTimeExcitation',
    'FlipAngle',
    'PixelBandwidth',
    'ReceiveCoilName',
    'CoilCombinationMethod',
    'ParallelReductionFactorInPlane',
    'ParallelReductionFactorOutOfPlane',
    'ParallelAcquisitionTechnique',
    'PartialFourier',
)
"""What the QSM consensus (10.1002/mrm.30006) asks for, under the names of BIDS."""

EXCLUSION = (
    'Nothing inside desc-roi_mask was excluded from the map or from the reference; voxels outside '
    'it are zero.'
)


def parse_source(source_file: str) -> dict[str, str]:
    """Entities of a BIDS file name, by their short names.

    >>> parse_source('sub-01_ses-a_rec-norm_run-02_echo-1_part-mag_MEGRE.nii.gz')['run']
    '02'
    """
    stem = Path(source_file).name.split('.')[0]
    return dict(part.split('-', 1) for part in stem.split('_') if '-' in part)


def run_prefix(source_file: str) -> str:
    """Name of the run a file belongs to: all entities but echo and part.

    >>> run_prefix('/data/sub-01/anat/sub-01_run-1_echo-1_part-mag_MEGRE.nii.gz')
    'sub-01_run-1'
    """
    entities = parse_source(source_file)
    return '_'.join(f'{k}-{v}' for k, v in entities.items() if k not in ('echo', 'part'))


def fieldmap_acquisition(source_file: str) -> str | None:
    """The acq label of a fieldmap, which must also carry task, ce and rec to stay unique.

    >>> fieldmap_acquisition('sub-01_acq-hi_rec-norm_echo-1_MEGRE.nii')
    'hirecnorm'
    >>> fieldmap_acquisition('sub-01_echo-1_MEGRE.nii') is None
    True
    """
    entities = parse_source(source_file)
    folded = ''.join(f'{key}{entities[key]}' for key in ('task', 'ce', 'rec') if key in entities)
    return (entities.get('acq', '') + folded) or None


class DerivativesDataSink(_DerivativesDataSink):
    """The sink of niworkflows with our names, whole files only, and always ``.nii.gz``.

    niworkflows removes the old file and then writes the new one in place; a reader (or a kill)
    in between sees half a map. Here it writes to a staging folder, and each file goes to its
    place under a temporary name that is then renamed, the sidecar before its map.
    """

    out_path_base = ''
    _file_patterns = (
        _ANAT + 'Chimap|R2starmap|T2starmap|S0map|R2primemap|mask|dseg>}.{extension<nii.gz>}',
        _ANAT + 'values>}.{extension<tsv|json>}',
        _FMAP + 'fieldmap|magnitude>}.{extension<nii.gz>}',
        _FIGURES + 'Chimap|R2starmap|fieldmap|mask|values|report>}.{extension<png|svg|json>}',
    )

    def _run_interface(self, runtime):
        base_directory = Path(self.inputs.base_directory).absolute()
        # Set here and not as a default of the trait: defaults are lost when a node is copied.
        self.inputs.compress = [_is_nifti(path) for path in self.inputs.in_file]
        with tempfile.TemporaryDirectory(dir=runtime.cwd) as staging:
            self.inputs.base_directory = staging
            try:
                runtime = super()._run_interface(runtime)
            finally:
                self.inputs.base_directory = str(base_directory)
            staged = self._results['out_file']
            if 'out_meta' in self._results:
                self._results['out_meta'] = _publish(
                    self._results['out_meta'], staging, base_directory
                )
            self._results['out_file'] = [_publish(f, staging, base_directory) for f in staged]
        return runtime


class _PpmToHzInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc='field, ppm')
    field_strength = traits.Float(mandatory=True, desc='B0, tesla')


class _PpmToHzOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc='field, Hz')


class PpmToHz(SimpleInterface):
    """Field in Hz from field in ppm: ``Hz = ppm 1e-6 gammabar B0`` (`constants.hz_per_ppm`)."""

    input_spec = _PpmToHzInputSpec
    output_spec = _PpmToHzOutputSpec

    def _run_interface(self, runtime):
        image = nb.load(self.inputs.in_file)
        field = np.asanyarray(image.dataobj, dtype=np.float32)
        scaled = field * np.float32(hz_per_ppm(self.inputs.field_strength))
        header = image.header.copy()
        header.set_data_dtype(np.float32)
        out_file = Path(runtime.cwd) / 'field_hz.nii.gz'
        nb.Nifti1Image(scaled, image.affine, header).to_filename(out_file)
        self._results['out_file'] = str(out_file)
        return runtime


class _SidecarsInputSpec(BaseInterfaceInputSpec):
    record = traits.Dict(mandatory=True, desc='stage -> the numbers it used, chose or measured')
    precond_chi = File(exists=True, mandatory=True, desc='any map of the run, for its grid')
    source_files = traits.List(traits.Str, mandatory=True, desc='raw files of the run')
    bids_dir = traits.Str(mandatory=True, desc='root of the raw dataset')
    derivatives = traits.Dict(traits.Str, traits.Str, desc='derivative datasets: name -> root')
    labels = traits.Str(desc='segmentation that ROI values were taken with')
    mask = traits.Str(desc='region of interest that was given')
    more_sources = traits.List(
        traits.Str, desc='other files that were read: tissue, R2, susceptibility maps'
    )
    metadata = traits.Dict(mandatory=True, desc='merged sidecar of the first magnitude')
    echo_times = traits.List(traits.Float, mandatory=True, desc='echo times, s')
    field_strength = traits.Float(mandatory=True, desc='B0, T')
    settings_record = traits.Dict(desc='settings of the method')
    columns = traits.Dict(desc='data dictionary of the ROI table')


class _SidecarsOutputSpec(TraitedSpec):
    sidecars = traits.Dict(desc='port -> sidecar')


class Sidecars(SimpleInterface):
    """Compose the sidecar of every output, once the numbers of the run are known."""

    input_spec = _SidecarsInputSpec
    output_spec = _SidecarsOutputSpec

    def _run_interface(self, runtime):
        inputs = self.inputs
        image = nb.load(inputs.precond_chi)
        derivatives = inputs.derivatives if isdefined(inputs.derivatives) else {}
        sources = [bids_uri(f, inputs.bids_dir, derivatives) for f in inputs.source_files]
        if isdefined(inputs.mask):
            sources.append(bids_uri(inputs.mask, inputs.bids_dir, derivatives))
        if isdefined(inputs.more_sources):
            sources += [bids_uri(f, inputs.bids_dir, derivatives) for f in inputs.more_sources]
        common = {
            'echo_times': list(inputs.echo_times),
            'field_strength': inputs.field_strength,
            'metadata': inputs.metadata,
            'matrix': [int(n) for n in image.shape[:3]],
            'voxel_size': [round(float(v), 6) for v in image.header.get_zooms()[:3]],
            'settings': inputs.settings_record if isdefined(inputs.settings_record) else {},
        }
        sidecars = {
            port: compose_sidecar(output, inputs.record, sources=sources, **common)
            for port, output in OUTPUTS.items()
        }
        if isdefined(inputs.columns):
            tables = list(sources)
            if isdefined(inputs.labels):
                tables.append(bids_uri(inputs.labels, inputs.bids_dir, derivatives))
            sidecars['roi_values'] = {**inputs.columns, 'Sources': tables}
        self._results['sidecars'] = sidecars
        return runtime


def compose_sidecar(
    output: Output,
    record: Mapping[str, Mapping[str, Any]],
    *,
    sources: Sequence[str],
    echo_times: Sequence[float],
    field_strength: float,
    metadata: Mapping[str, Any],
    matrix: Sequence[int],
    voxel_size: Sequence[float],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """The JSON beside one map.

    What BIDS requires and recommends, and for every susceptibility map what the QSM consensus
    (10.1002/mrm.30006) asks to travel with it: acquisition, toolbox and version, every algorithm
    with its numeric parameters, unit, reference with mean and sd, exclusion criteria.
    """
    stages = {stage: record[stage] for stage in output.stages if stage in record}
    sidecar: dict[str, Any] = {
        'Description': _as_run(output.description, stages),
        'Sources': list(sources),
        'SpatialReference': 'orig',
    }
    if stages:
        sidecar['Parameters'] = stages
    if output.suffix == 'mask':
        return json_ready({**sidecar, 'Type': 'ROI'})
    if output.suffix == 'dseg':
        return json_ready({**sidecar, 'Manual': False})

    sidecar |= {
        'SkullStripped': False,  # the region of interest is the object, not the brain
        'Units': output.units,
        'EchoTime': list(echo_times),
        'MagneticFieldStrength': field_strength,
    }
    if output.algorithm:
        sidecar['EstimationAlgorithm'] = _with_numbers(_as_run(output.algorithm, stages), stages)
        sidecar['EstimationReference'] = _references(output, stages)
    if output.suffix == 'Chimap':
        sidecar |= {
            key: metadata[key]
            for key in ACQUISITION_KEYS
            if metadata.get(key) is not None and key not in sidecar
        }
        sidecar |= {
            'NumberOfEchoes': len(echo_times),
            'EchoSpacing': echo_spacing(echo_times),
            'MatrixSize': list(matrix),
            'VoxelSize': list(voxel_size),
            'Toolbox': f'{NAME} {__version__}',
            'Settings': dict(settings),
            'Reference': _reference(stages),
            'ExclusionCriteria': EXCLUSION,
        }
    return json_ready(sidecar)


def echo_spacing(echo_times: Sequence[float]) -> str:
    """Echo times in milliseconds as TE1:dTE:TEmax, or as a list where they are not equidistant.

    >>> echo_spacing([0.002, 0.005, 0.008])
    '2:3:8 ms'
    >>> echo_spacing([0.002, 0.005, 0.009])
    '2, 5, 9 ms'
    """
    ms = [1e3 * t for t in echo_times]
    steps = np.diff(ms)
    if len(ms) > 2 and np.allclose(steps, steps.mean(), atol=0.01):
        return f'{ms[0]:.5g}:{steps.mean():.5g}:{ms[-1]:.5g} ms'
    return ', '.join(f'{t:.5g}' for t in ms) + ' ms'


def bids_uri(path: str | Path, bids_dir: str | Path, derivatives: Mapping[str, Any]) -> str:
    """A BIDS URI, whose dataset name `write_dataset_description` lists under DatasetLinks.

    A file in none of the datasets gets a file URI.

    >>> bids_uri('/data/sub-1/anat/x.nii', '/data', {})
    'bids:raw:sub-1/anat/x.nii'
    """
    absolute = Path(path).absolute()
    # The folder may be given through a link; the file itself may be one (git-annex) and stays it.
    resolved = absolute.parent.resolve() / absolute.name
    # Derivatives first: they may live inside the raw dataset.
    for name, root in [*derivatives.items(), ('raw', bids_dir)]:
        for candidate, folder in (
            (absolute, Path(root).absolute()),
            (resolved, Path(root).resolve()),
        ):
            if candidate.is_relative_to(folder):
                return f'bids:{name}:{candidate.relative_to(folder).as_posix()}'
    return absolute.as_uri()


def json_ready(value: Any) -> Any:
    """Python numbers, lists and strings all the way down; NaN and infinity, unknown to JSON, null.

    >>> json_ready({'a': np.float32(0.5), 'b': (np.nan, np.int64(2)), 'c': Path('x')})
    {'a': 0.5, 'b': [None, 2], 'c': 'x'}
    """
    if isinstance(value, Mapping):
        return {str(key): json_ready(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [json_ready(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return json_ready(value.tolist())
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    return str(value)


def write_dataset_description(
    output_dir: str | Path,
    bids_dir: str | Path,
    derivatives: Mapping[str, str | Path] | None = None,
) -> Path:
    """Write ``dataset_description.json``, ``.bidsignore`` and a README of the derivatives.

    Parallel processes may do this at the same time: each file is written under a temporary name
    and renamed, and one that another user already put there is good enough.

    Parameters
    ----------
    output_dir, bids_dir : path_like
        The derivatives and the raw dataset.
    derivatives : mapping of str to path_like, optional
        Other datasets that were read, by the name that BIDS URIs use for them.

    Returns
    -------
    Path
        The description.
    """
    output_dir, bids_dir = Path(output_dir).absolute(), Path(bids_dir).absolute()
    try:
        raw = json.loads((bids_dir / 'dataset_description.json').read_text())
    except (OSError, ValueError):
        raw = {}
    links = {'raw': _link(bids_dir, output_dir)} | {
        name: _link(Path(root).absolute(), output_dir)
        for name, root in (derivatives or {}).items()
    }
    description = {
        'Name': f'{NAME}: preconditioned quantitative susceptibility mapping',
        'BIDSVersion': BIDS_VERSION,
        'DatasetType': 'derivative',
        'GeneratedBy': [{'Name': NAME, 'Version': __version__} | _code_url() | _container()],
        'SourceDatasets': [
            {'DOI': raw['DatasetDOI']} if raw.get('DatasetDOI') else {'URL': links['raw']}
        ],
        'DatasetLinks': links,
        'HowToAcknowledge': (
            f'Cite {NAME} {__version__} and the publications that the methods section of each '
            f"participant's report names, besides the source dataset."
        ),
    }
    # Licence and authors of derived data follow from the raw data; without them we know none.
    description |= {key: raw[key] for key in ('License', 'Authors') if raw.get(key)}

    output_dir.mkdir(parents=True, exist_ok=True)
    if not any(output_dir.glob('README*')):
        write_shared(output_dir / 'README', README)
    write_bidsignore(output_dir)
    return write_shared(
        output_dir / 'dataset_description.json', json.dumps(description, indent=2) + '\n'
    )


def _publish(staged: str, staging: str, base_directory: Path) -> str:
    """Copy a staged file beside its destination and rename it; other file systems included."""
    destination = base_directory / Path(staged).relative_to(staging)
    destination.parent.mkdir(parents=True, exist_ok=True)
    with temporary_name(destination) as temporary:
        shutil.copyfile(staged, temporary)
        os.replace(temporary, destination)
    return str(destination)


def _is_nifti(path: str) -> bool:
    return str(path).endswith(('.nii', '.nii.gz'))


def _link(target: Path, start: Path) -> str:
    """Relative where the two travel together, else a URI."""
    if start.is_relative_to(target) or target.is_relative_to(start):
        return Path(os.path.relpath(target, start)).as_posix()
    return target.as_uri()


def _code_url() -> dict[str, str]:
    """The project's page as the installed package declares it (``url`` in setup.cfg)."""
    with suppress(PackageNotFoundError):
        if url := package_metadata(NAME).get('Home-page'):
            return {'CodeURL': url}
    return {}


def _container() -> dict[str, dict[str, str]]:
    if image := os.environ.get('APPTAINER_CONTAINER') or os.environ.get('SINGULARITY_CONTAINER'):
        return {'Container': {'Type': 'singularity', 'URI': Path(image).absolute().as_uri()}}
    if tag := os.environ.get('PRECONDQSM_BIDS_DOCKER_TAG'):
        return {'Container': {'Type': 'docker', 'Tag': tag}}
    return {}


def _as_run(text: str, stages: Mapping[str, Mapping[str, Any]]) -> str:
    """Leave the shape out where it was not part of the prior."""
    if stages.get('flattening', {}).get('shape') is False:
        return text.replace(" and of the object's shape", '')
    return text


def _with_numbers(algorithm: str, stages: Mapping[str, Mapping[str, Any]]) -> str:
    """Add what was chosen to the name of the algorithm: how the prior was fitted, lambda."""
    fit = stages.get('prior_fit')
    if fit and algorithm.startswith('Static dephasing'):
        return describe_prior(fit)
    if algorithm == _FIT and _one_echo(stages):
        if str(stages['echo_fit'].get('offset_model')).startswith('none'):
            return (
                'Phase difference of two echoes, unwrapped in space, over the time between them; '
                'it has no phase offset'
            )
        return (
            'Phase of the one echo, unwrapped in space, over its echo time; the phase offset is '
            'part of it'
        )
    source = stages.get('r2prime_prior', {}).get('r2_source')
    if source and algorithm.startswith('Difference of R2*'):
        return f'{algorithm}; R2: {source}'
    for stage, numbers in stages.items():
        if stage.endswith('dipole_inversion') and 'reg_weight' in numbers:
            if numbers['reg_weight'] is None:
                return f'{algorithm}; the field is zero, and nothing was inverted'
            rule = numbers.get('rule', 'given')
            return f'{algorithm}; lambda = {numbers["reg_weight"]:.4g} ({rule})'
    return algorithm


def _references(output: Output, stages: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The publications of a map; those of a fitted prior depend on what it is made of."""
    if output.reference == _FIT_REF and _one_echo(stages):
        return 'Herraez MA et al., Appl Opt 2002;41:7437'
    fit = stages.get('prior_fit')
    if output.reference != _PRIOR_REF or output.suffix != 'Chimap' or not fit:
        return output.reference
    by_theory = any(name.startswith('r2prime') for name in fit['priors'])
    terms = [_PRIOR_REF] if by_theory else []
    if fit['fit'] != 'none':
        terms.append(
            'Liu T et al., NMR Biomed 2011;24:1129 (projection, here with unknowns inside)'
        )
    if list(fit['priors']) == ['shape']:
        return _FLATTEN_REF
    return '; '.join(terms) or 'The map that was given, see Sources'


def _one_echo(stages: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether the field is that of a single echo."""
    return len(stages.get('echo_fit', {}).get('echo_times', ())) == 1


def describe_prior(fit: Mapping[str, Any]) -> str:
    """What the prior was made of, from the record of its fit.

    >>> describe_prior({'priors': {'tissue': {'parcels': 3, 'explained': 0.5}}, 'fit': 'global'})
    'tissue (3 coefficients, 50.0 % of the local field), fitted to the field'
    """
    terms = []
    for name, prior in fit['priors'].items():
        if name == 'shape':
            return 'the shape of the object alone, nothing inside'
        word = f'map:{Path(name[4:]).name}' if name.startswith('map:') else name
        if prior['explained'] is None:
            return f'{word}, as it is'
        number = prior['parcels']
        many = f'{number} coefficient' + ('s' if number > 1 else '')
        terms.append(f'{word} ({many}, {100 * prior["explained"]:.1f} % of the local field)')
    if own := fit.get('own_sources'):
        share = f'{100 * own["explained"]:.1f} % of the local field'
        terms.append(f'sources of their own ({own["voxels"]} voxels, {share})')
    return ' + '.join(terms) + ', fitted to the field'


def _reference(stages: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | str:
    """What the map is relative to: the region, what was subtracted, and the region's sd."""
    for stage, numbers in stages.items():
        if stage.endswith('recombination') and numbers['reference'] != 'none':
            if 'bodies' in numbers:
                return _reference_of_bodies(numbers)
            return {
                'Region': numbers['reference'],
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
