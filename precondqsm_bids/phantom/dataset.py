"""The phantom as a raw BIDS dataset, with its truth as a derivative dataset inside."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np

from precondqsm_bids import __version__
from precondqsm_bids.numerics.constants import hz_per_ppm
from precondqsm_bids.phantom import scanner_record
from precondqsm_bids.phantom.head_spec import HeadSpec
from precondqsm_bids.phantom.kinds import kind_of, stored_magnitude
from precondqsm_bids.phantom.scanner import phase_codes
from precondqsm_bids.phantom.scanner_spec import PIXEL_BANDWIDTH
from precondqsm_bids.phantom.spec import TubesSpec

PHASE_SLOPE = np.nextafter(np.float32(np.pi / 32768), np.float32(0))
"""Radians per stored unit of phase: 16 bits span [-pi, pi), never a rounding error more."""

BIDS_VERSION = '1.10.0'

AUTHORS = ['The precondqsm_bids developers', 'precondqsm_phantom (the program)']
"""Two, because the validator takes a single author for a list that was written as one string."""


def write_dataset(out_dir, spec=None, *, participants=1, seed=0):
    """Simulate a phantom and write it as a BIDS dataset.

    The echoes go to ``sub-<n>/anat/``, the truth to ``derivatives/truth/``. The participants are
    the same phantom with noise of their own. The same settings give the same bytes.

    Parameters
    ----------
    out_dir : path-like
        Where to write: a new or empty directory.
    spec : TubesSpec or HeadSpec, optional
        What to simulate; the default is the published phantom of tubes.
    participants : int
        How many times to measure it.
    seed : int
        Seed of the noise.

    Returns
    -------
    list of Path
        Files written, in order.

    Raises
    ------
    FileExistsError
        ``out_dir`` holds something.
    ValueError
        ``participants`` or ``seed`` is out of range.
    FileNotFoundError
        The template that the head is made from is not installed.
    """
    out_dir = Path(out_dir)
    check_empty(out_dir)
    if participants < 1:
        raise ValueError(f'participants must be at least 1, not {participants}')
    if seed < 0:
        raise ValueError(f'seed must not be negative: {seed}')
    out_dir.mkdir(parents=True, exist_ok=True)  # before the simulation, which takes a while
    spec = spec or TubesSpec()
    phantom = _simulate(spec, (seed, 1))
    labels = [f'{i:02d}' for i in range(1, participants + 1)]
    writer = _Writer()
    _write_root(writer, out_dir, spec, labels, seed)
    truth_dir = out_dir / 'derivatives' / 'truth'
    _write_truth_root(writer, truth_dir, spec)
    for number, label in enumerate(labels, start=1):
        if number > 1:
            phantom = phantom.remeasure((seed, number))
        _write_echoes(writer, out_dir, phantom, label)
        _write_truth(writer, truth_dir, phantom, label)
    return writer.written


def _simulate(spec, seed):
    # imported here: the tubes need nothing of the head, and its geometry takes a while to load
    if isinstance(spec, HeadSpec):
        from precondqsm_bids.phantom.head import simulate_head

        return simulate_head(spec, seed=seed)
    from precondqsm_bids.phantom.tubes import simulate_tubes

    return simulate_tubes(spec, seed=seed)


def check_empty(out_dir):
    """Raise FileExistsError if ``out_dir`` is a file, or a directory that is not empty."""
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise FileExistsError(
            f'{out_dir} exists and is not an empty directory: name a new one, or empty it first'
        )


class _Writer:
    """Writes files, makes their folders and keeps the list."""

    def __init__(self):
        self.written = []

    def _claim(self, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.written.append(path)
        return path

    def text(self, path, text):
        self._claim(path).write_text(text, encoding='utf-8')

    def json(self, path, content):
        self.text(path, json.dumps(content, indent=2, ensure_ascii=False) + '\n')

    def table(self, path, rows):
        self.text(path, ''.join('\t'.join(str(cell) for cell in row) + '\n' for row in rows))

    def image(self, path, data, affine, slope=None):
        """Write ``data``; integers with a ``slope`` are stored as they are, for it to scale."""
        image = nib.Nifti1Image(data, affine)
        image.header.set_xyzt_units('mm')
        image.set_qform(affine, code=1)
        image.set_sform(affine, code=1)
        if slope is not None:
            image.header.set_slope_inter(slope, 0)
        nib.save(image, self._claim(path))


def _write_root(writer, out_dir, spec, labels, seed):
    writer.json(
        out_dir / 'dataset_description.json',
        {
            'Name': kind_of(spec).name,
            'BIDSVersion': BIDS_VERSION,
            'DatasetType': 'raw',
            'License': kind_of(spec).licence,
            'Authors': AUTHORS,
            'HowToAcknowledge': kind_of(spec).acknowledge,
            'GeneratedBy': [_generated_by(spec)],
            'SourceDatasets': [],
            'HEDVersion': [],
        },
    )
    readme = kind_of(spec).readme(spec, labels, seed) + scanner_record.readme(spec)
    writer.text(out_dir / 'README', readme)
    writer.table(out_dir / 'participants.tsv', _participants(labels))
    writer.json(out_dir / 'participants.json', _PARTICIPANTS_JSON)


def _write_truth_root(writer, truth_dir, spec):
    writer.json(
        truth_dir / 'dataset_description.json',
        {
            'Name': 'Truth of the digital phantom',
            'BIDSVersion': BIDS_VERSION,
            'DatasetType': 'derivative',
            'License': kind_of(spec).licence,
            'Authors': AUTHORS,
            'HowToAcknowledge': kind_of(spec).acknowledge,
            'GeneratedBy': [_generated_by(spec)],
            'SourceDatasets': [{'URL': '../..', 'Version': __version__}],
            'DatasetLinks': {'raw': '../..'},
        },
    )
    writer.text(
        truth_dir / 'README',
        'What is true of the phantom in the dataset two folders up: voxel means, without noise,\n'
        f'of susceptibility (ppm), R2* (1/s) and total field (Hz), and {kind_of(spec).segments}.\n'
        + ('' if spec.scanner.ideal else _RECORD_README),
    )
    if not spec.scanner.ideal:
        writer.text(truth_dir / '.bidsignore', '*_desc-truth_scanner.json\n')


_RECORD_README = (
    '\n*_desc-truth_scanner.json says what the scanner did, with the constants and gradients of\n'
    'phase of each echo. None of it is in the true field.\n'
)


def _write_echoes(writer, out_dir, phantom, label):
    anat = out_dir / f'sub-{label}' / 'anat'
    shared = _protocol(phantom.spec)
    for echo, time in enumerate(phantom.echo_times):
        stem = f'sub-{label}_echo-{echo + 1}'
        sidecar = {'EchoTime': time, 'EchoNumber': echo + 1, **shared}

        magnitude = np.rint(phantom.magnitude[..., echo] * stored_magnitude(phantom.spec))
        path = anat / f'{stem}_part-mag_MEGRE.nii.gz'
        writer.image(path, np.minimum(magnitude, 32767).astype(np.int16), phantom.affine)
        writer.json(_sidecar(path), {**sidecar, 'Units': 'arbitrary'})

        path = anat / f'{stem}_part-phase_MEGRE.nii.gz'
        if phantom.spec.scanner.integers:
            phase = phase_codes(phantom.phase[..., echo])
            writer.image(path, phase.astype(np.int16), phantom.affine)
            writer.json(_sidecar(path), {**sidecar, 'Units': 'arbitrary'})
            continue
        phase = np.rint(phantom.phase[..., echo] / PHASE_SLOPE).astype(np.int32)
        phase = (phase + 32768) % 65536 - 32768  # pi is -pi
        writer.image(path, phase.astype(np.int16), phantom.affine, slope=PHASE_SLOPE)
        writer.json(_sidecar(path), {**sidecar, 'Units': 'rad'})


def _write_truth(writer, truth_dir, phantom, label):
    """Maps, labels, field and what the scanner did, of one participant."""
    subject = truth_dir / f'sub-{label}'
    n_echoes = range(1, len(phantom.echo_times) + 1)
    common = {
        'Sources': [
            f'bids:raw:sub-{label}/anat/sub-{label}_echo-{echo}_part-{part}_MEGRE.nii.gz'
            for part in ('mag', 'phase')
            for echo in n_echoes
        ],
        'SpatialReference': 'orig',
        'SkullStripped': False,
    }

    def write(folder, name, data, sidecar):
        path = subject / folder / f'sub-{label}_{name}.nii.gz'
        writer.image(path, data, phantom.affine)
        writer.json(_sidecar(path), {**sidecar, **common})
        return path

    _write_maps(write, phantom)
    path = _write_labels(write, phantom)
    names = phantom.label_names
    rows = [(index, names[index], phantom.label_dchi[index]) for index in names]
    writer.table(
        path.with_name(path.name.replace('.nii.gz', '.tsv')), [('index', 'name', 'dchi'), *rows]
    )
    if isinstance(phantom.spec, HeadSpec):
        _write_tissues(write, phantom)
    _write_field(write, phantom)
    if not phantom.spec.scanner.ideal:
        path = subject / 'anat' / f'sub-{label}_desc-truth_scanner.json'
        writer.json(path, scanner_record.truth(phantom.spec))


def _write_maps(write, phantom):
    """Susceptibility and R2*."""
    algorithm = {
        'EstimationReference': 'The digital phantom itself; nothing is estimated',
        'EstimationAlgorithm': 'Mean over the points of each voxel of what was simulated',
        'EchoTime': list(phantom.echo_times),
        'MagneticFieldStrength': phantom.spec.field_strength,
    }
    chi = f'True susceptibility, {kind_of(phantom.spec).chi}. Voxels on an edge hold the mean.'
    rate = 'True R2*, 0 where there is no signal. Voxels on an edge hold the mean.'
    for name, data, description, units in (
        ('Chimap', phantom.chi, chi, 'ppm'),
        ('R2starmap', phantom.r2star, rate, '1/s'),
    ):
        sidecar = {'Description': description, 'Units': units, **algorithm}
        write('anat', f'desc-truth_{name}', data, sidecar)


def _write_labels(write, phantom):
    """The label image; its path."""
    kind = kind_of(phantom.spec)
    sidecar = {
        'Description': kind.labels,
        'Manual': False,
        'dchi': {'Description': kind.dchi, 'Units': 'ppm'},
    }
    return write('anat', f'desc-{kind.dseg}_dseg', phantom.labels, sidecar)


def _write_field(write, phantom):
    """Total field, Hz, and the share of each voxel that gives signal."""
    hz = phantom.field * hz_per_ppm(phantom.spec.field_strength)
    sidecar = {
        'Description': f'True total field, voxel mean: {kind_of(phantom.spec).total_field}.'
        + scanner_record.not_in_the_field(phantom.spec),
        'Units': 'Hz',
        'MagneticFieldStrength': phantom.spec.field_strength,
        'B0FieldIdentifier': 'truth',
    }
    write('fmap', 'desc-truth_fieldmap', hz.astype(np.float32), sidecar)
    sidecar = {'Description': 'Share of each voxel that gives signal'}
    write('fmap', 'desc-truth_magnitude', phantom.density, sidecar)


def _write_tissues(write, phantom):
    """Brain mask, and the share of each tissue class in each voxel."""
    sidecar = {
        'Description': 'Voxels of which at least half lies inside the outline of the brain',
        'Type': 'Brain',
    }
    write('anat', 'desc-brain_mask', phantom.brain_mask.astype(np.uint8), sidecar)
    for name, what in (
        ('GM', 'grey matter, deep nuclei included'),
        ('WM', 'white matter'),
        ('CSF', 'CSF inside the outline of the brain'),
    ):
        sidecar = {'Description': f'True share of {what}, 0 to 1', 'Manual': False}
        write('anat', f'label-{name}_probseg', phantom.probsegs[name], sidecar)


def _sidecar(path):
    return path.with_name(path.name.replace('.nii.gz', '.json'))


def _generated_by(spec):
    return {
        'Name': 'precondqsm_phantom',
        'Version': __version__,
        'Description': f'Digital phantom: {kind_of(spec).field}, multi-echo signal, noise',
    }


def _protocol(spec):
    """Metadata that all echoes share."""
    readouts = 'alternating (bipolar)' if spec.scanner.bipolar else 'unipolar'
    return {
        'Manufacturer': 'Simulated',
        'ManufacturersModelName': 'precondqsm_phantom',
        'DeviceSerialNumber': 'none',
        'StationName': 'none',
        'InstitutionName': 'none (simulated)',
        'InstitutionAddress': 'none (simulated)',
        'InstitutionalDepartmentName': 'none (simulated)',
        'ReceiveCoilName': 'simulated',
        'ReceiveCoilActiveElements': 'simulated',
        'MatrixCoilMode': 'none',
        'CoilCombinationMethod': 'none (one simulated channel)',
        'NonlinearGradientCorrection': False,
        'SequenceName': 'MEGRE',
        'PulseSequenceDetails': f'Simulated; {readouts} readouts, {kind_of(spec).t1}',
        'SoftwareVersions': __version__,
        'MagneticFieldStrength': spec.field_strength,
        'PulseSequenceType': '3D spoiled multi-echo gradient echo',
        'ScanningSequence': 'GR',
        'SequenceVariant': 'SP',
        'MRAcquisitionType': '3D',
        'SpoilingState': True,
        'SpoilingType': 'RF',
        'SpoilingRFPhaseIncrement': 150,
        'RepetitionTime': spec.repetition_time,
        'RepetitionTimeExcitation': spec.repetition_time,
        'FlipAngle': 20,
        'PixelBandwidth': PIXEL_BANDWIDTH,
        'DwellTime': round(1 / (PIXEL_BANDWIDTH * spec.matrix[0]), 12),
        **scanner_record.protocol(spec),
    }


def _participants(labels):
    return [('participant_id', 'species'), *((f'sub-{label}', 'n/a') for label in labels)]


_PARTICIPANTS_JSON = {
    'participant_id': {'Description': 'One measurement of the digital phantom'},
    'species': {'Description': 'Not applicable: a digital phantom'},
}
