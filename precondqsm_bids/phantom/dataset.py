"""The phantom as a raw BIDS dataset, with its truth as a derivative dataset inside."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np

from precondqsm_bids import __version__
from precondqsm_bids.numerics.constants import hz_per_ppm
from precondqsm_bids.phantom.tubes import simulate_tubes

MAGNITUDE_SCALE = 10000
"""Stored magnitude of the agar at TE -> 0."""

PHASE_SLOPE = np.nextafter(np.float32(np.pi / 32768), np.float32(0))
"""Radians per stored unit of phase: 16 bits span [-pi, pi), never a rounding error more."""

PIXEL_BANDWIDTH = 1102
"""Receiver bandwidth of the protocol, Hz per pixel; it has no effect on the simulation."""

BIDS_VERSION = '1.10.0'

AUTHORS = ['The precondqsm_bids developers', 'precondqsm_phantom (the program)']
"""Two, because the validator takes a single author for a list that was written as one string."""


def write_dataset(out_dir, spec=None, *, participants=1, seed=0):
    """Simulate the tubes phantom and write it as a BIDS dataset.

    The echoes go to ``sub-<n>/anat/``, the truth to ``derivatives/truth/``. The participants are
    the same phantom with noise of their own. The same settings give the same bytes.

    Parameters
    ----------
    out_dir : path-like
        Where to write: a new or empty directory.
    spec : TubesSpec, optional
        What to simulate; the default is the published phantom.
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
    """
    out_dir = Path(out_dir)
    check_empty(out_dir)
    if participants < 1:
        raise ValueError(f'at least 1 participant is needed, not {participants}')
    if seed < 0:
        raise ValueError(f'the seed must not be negative: {seed}')
    phantom = simulate_tubes(spec, seed=(seed, 1))
    labels = [f'{i:02d}' for i in range(1, participants + 1)]
    writer = _Writer()
    _write_root(writer, out_dir, phantom.spec, labels, seed)
    truth_dir = out_dir / 'derivatives' / 'truth'
    _write_truth_root(writer, truth_dir)
    for number, label in enumerate(labels, start=1):
        if number > 1:
            phantom = phantom.remeasure((seed, number))
        _write_echoes(writer, out_dir, phantom, label)
        _write_truth(writer, truth_dir, phantom, label)
    return writer.written


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
            'Name': 'Digital phantom of tubes of known susceptibility in agar',
            'BIDSVersion': BIDS_VERSION,
            'DatasetType': 'raw',
            'License': 'CC0',
            'Authors': AUTHORS,
            'HowToAcknowledge': 'Cite precondqsm_bids and the abstract whose phantom this is.',
            'GeneratedBy': [_generated_by()],
            'SourceDatasets': [],
            'HEDVersion': [],
        },
    )
    writer.text(out_dir / 'README', _readme(spec, labels, seed))
    writer.table(out_dir / 'participants.tsv', _participants(labels))
    writer.json(out_dir / 'participants.json', _PARTICIPANTS_JSON)


def _write_truth_root(writer, truth_dir):
    writer.json(
        truth_dir / 'dataset_description.json',
        {
            'Name': 'Truth of the digital phantom',
            'BIDSVersion': BIDS_VERSION,
            'DatasetType': 'derivative',
            'License': 'CC0',
            'Authors': AUTHORS,
            'HowToAcknowledge': 'Cite precondqsm_bids and the abstract whose phantom this is.',
            'GeneratedBy': [_generated_by()],
            'SourceDatasets': [{'URL': '../..', 'Version': __version__}],
            'DatasetLinks': {'raw': '../..'},
        },
    )
    writer.text(
        truth_dir / 'README',
        'What is true of the phantom in the dataset two folders up: voxel means, without noise,\n'
        'of susceptibility (ppm), R2* (1/s) and total field (Hz), and labels of the voxels that\n'
        'lie in one material with all their points.\n',
    )


def _write_echoes(writer, out_dir, phantom, label):
    anat = out_dir / f'sub-{label}' / 'anat'
    shared = _protocol(phantom.spec)
    for echo, time in enumerate(phantom.echo_times):
        stem = f'sub-{label}_echo-{echo + 1}'
        sidecar = {'EchoTime': time, 'EchoNumber': echo + 1, **shared}

        magnitude = np.rint(phantom.magnitude[..., echo] * MAGNITUDE_SCALE)
        path = anat / f'{stem}_part-mag_MEGRE.nii.gz'
        writer.image(path, np.minimum(magnitude, 32767).astype(np.int16), phantom.affine)
        writer.json(_sidecar(path), {**sidecar, 'Units': 'arbitrary'})

        phase = np.rint(phantom.phase[..., echo] / PHASE_SLOPE).astype(np.int32)
        phase = (phase + 32768) % 65536 - 32768  # pi is -pi
        path = anat / f'{stem}_part-phase_MEGRE.nii.gz'
        writer.image(path, phase.astype(np.int16), phantom.affine, slope=PHASE_SLOPE)
        writer.json(_sidecar(path), {**sidecar, 'Units': 'rad'})


def _write_truth(writer, truth_dir, phantom, label):
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
    algorithm = {
        'EstimationReference': 'The digital phantom itself; nothing is estimated',
        'EstimationAlgorithm': 'Mean over the points of each voxel of what was simulated',
        'EchoTime': list(phantom.echo_times),
        'MagneticFieldStrength': phantom.spec.field_strength,
    }

    path = subject / 'anat' / f'sub-{label}_desc-truth_Chimap.nii.gz'
    writer.image(path, phantom.chi, phantom.affine)
    description = (
        'True susceptibility, relative to the agar inside the container (an air bubble is the '
        'step from water to air), 0 in the air outside. Voxels on an edge hold the mean.'
    )
    writer.json(
        _sidecar(path), {'Description': description, 'Units': 'ppm', **common, **algorithm}
    )

    path = subject / 'anat' / f'sub-{label}_desc-truth_R2starmap.nii.gz'
    writer.image(path, phantom.r2star, phantom.affine)
    description = 'True R2*, 0 where there is no signal. Voxels on an edge hold the mean.'
    writer.json(
        _sidecar(path), {'Description': description, 'Units': '1/s', **common, **algorithm}
    )

    path = subject / 'anat' / f'sub-{label}_desc-tubes_dseg.nii.gz'
    writer.image(path, phantom.labels, phantom.affine)
    names = phantom.label_names
    rows = [(index, names[index], phantom.label_dchi[index]) for index in names]
    writer.table(
        path.with_name(path.name.replace('.nii.gz', '.tsv')), [('index', 'name', 'dchi'), *rows]
    )
    writer.json(
        _sidecar(path),
        {
            'Description': (
                'Tubes and agar. A voxel has a label where all its points lie in that material; '
                'voxels on an edge have none.'
            ),
            'Manual': False,
            **common,
            'dchi': {'Description': 'True susceptibility relative to the agar', 'Units': 'ppm'},
        },
    )

    path = subject / 'fmap' / f'sub-{label}_desc-truth_fieldmap.nii.gz'
    hz = phantom.field * hz_per_ppm(phantom.spec.field_strength)
    writer.image(path, hz.astype(np.float32), phantom.affine)
    description = (
        'True total field, voxel mean: container, tubes and bubble in air, less the solid '
        'harmonics up to second order of the field in the agar (the shim).'
    )
    writer.json(
        _sidecar(path),
        {
            'Description': description,
            'Units': 'Hz',
            **common,
            'MagneticFieldStrength': phantom.spec.field_strength,
            'B0FieldIdentifier': 'truth',
        },
    )
    path = subject / 'fmap' / f'sub-{label}_desc-truth_magnitude.nii.gz'
    writer.image(path, phantom.density, phantom.affine)
    writer.json(_sidecar(path), {'Description': 'Share of each voxel that gives signal', **common})


def _sidecar(path):
    return path.with_name(path.name.replace('.nii.gz', '.json'))


def _generated_by():
    return {
        'Name': 'precondqsm_phantom',
        'Version': __version__,
        'Description': 'Digital phantom: closed-form field, multi-echo signal, noise',
    }


def _protocol(spec):
    """Metadata that all echoes share."""
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
        'PulseSequenceDetails': 'Simulated; unipolar readouts, T1 left out',
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
    }


def _participants(labels):
    return [('participant_id', 'species'), *((f'sub-{label}', 'n/a') for label in labels)]


_PARTICIPANTS_JSON = {
    'participant_id': {'Description': 'One measurement of the digital phantom'},
    'species': {'Description': 'Not applicable: a digital phantom'},
}


def _readme(spec, labels, seed):
    tubes = ', '.join(f'{value:g}' for value in spec.tubes_dchi)
    times = ', '.join(f'{1000 * value:g}' for value in spec.echo_times)
    bubble = f'{spec.air_bubble:g} mm' if spec.air_bubble else 'none'
    container = f'{spec.container_height:g} mm high and {2 * spec.container_radius:g} mm wide'
    tube = f'{spec.tube_height:g} mm high and {2 * spec.tube_radius:g} mm wide'
    return f"""Digital phantom: tubes of known susceptibility in an agar-filled container
===========================================================================

A simulation by precondqsm_phantom {__version__}, not a measurement.
The truth is in derivatives/truth.

Object
: cylindrical container of agar in air, {container}; its polymer wall is left out
: {len(spec.tubes_dchi)} parallel tubes, {tube}
: dchi of the tubes (ppm, relative to the agar): {tubes}
: R2 {spec.r2:g} /s everywhere; R2' of the agar 0, of the tubes {spec.relaxivity_scale:g} times the
  theory of static dephasing
: air bubble under the lid: {bubble} (radius)

Protocol
: {spec.field_strength:g} T, container at {spec.b0_tilt:g} degrees to B0
: echo times {times} ms
: TR {1000 * spec.repetition_time:g} ms, flip angle 20 degrees: without effect, T1 is left out
: SNR {spec.snr:g}: the agar's signal at TE -> 0 over the noise in each of the real and
  imaginary parts; {MAGNITUDE_SCALE} stored units of magnitude are that signal

Simulation
: field in closed form (finite cylinders, sphere), less the solid harmonics up to second order
  that a shim would cancel
: {spec.supersampling} points per voxel and axis, made into voxels by: {spec.sampling}
: {len(labels)} participant(s): the same phantom with noise of its own, seed {seed}
"""
