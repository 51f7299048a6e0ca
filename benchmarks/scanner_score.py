"""What is measured of a run on a phantom as scanned: maps, noise, field, phase of each echo."""

import csv
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import opponents
from heads import TRUTH, HeadScore, Truth
from reconstruction import WORKERS, Score
from scipy import ndimage

from precondqsm_bids.interfaces.volumes import load as load_volume
from precondqsm_bids.numerics import Geometry, b0_direction, noise_weights, pdf
from precondqsm_bids.numerics.constants import hz_per_ppm
from precondqsm_bids.phantom.head_spec import HeadSpec
from precondqsm_bids.phantom.kinds import stored_magnitude
from precondqsm_bids.phantom.scanner import echo_phase

STEP = 0.15
"""Step of the true susceptibility between neighbours that makes a wall, ppm."""

NEAR = 2
"""Distance from a wall or the edge of the region up to which a voxel counts as at it, voxels."""

DEGREE = 4
"""Degree of the solid harmonics that are taken off the error of the field: background removal
takes them for the field of sources outside."""

MOST_VOXELS = 100_000
"""Voxels that the harmonics are fitted to."""

ARMS = {'conventional': 'conventional_', 'preconditioned': ''}
"""Arms of the reconstruction and the beginning of their nodes' names."""


# --- truth -----------------------------------------------------------------------------------


def tubes_truth(anat):
    """Susceptibility and labels of the tubes, as a phantom has them."""
    names, dchi = {}, {}
    with (anat / 'sub-01_desc-tubes_dseg.tsv').open(encoding='utf-8') as file:
        for row in csv.DictReader(file, delimiter='\t'):
            names[int(row['index'])] = row['name']
            dchi[int(row['index'])] = float(row['dchi'])
    return SimpleNamespace(
        chi=load_volume(anat / 'sub-01_desc-truth_Chimap.nii.gz'),
        labels=load_volume(anat / 'sub-01_desc-tubes_dseg.nii.gz', np.int16),
        label_names=names,
        label_dchi=dchi,
    )


def true_field(root, spec):
    """What a perfect echo fit would find, ppm: the field and what else grows with TE."""
    folder = (root / TRUTH).parent
    field = load_volume(folder / 'fmap' / 'sub-01_desc-truth_fieldmap.nii.gz')
    field = field / np.float32(hz_per_ppm(spec.field_strength))
    shift = np.float32(spec.scanner.white_matter_shift)
    if shift and isinstance(spec, HeadSpec):
        field += shift * load_volume(folder / 'anat' / 'sub-01_label-WM_probseg.nii.gz')
    elif shift:
        weakest = 1 + int(np.argmin(np.abs(spec.tubes_dchi)))
        labels = load_volume(folder / 'anat' / 'sub-01_desc-tubes_dseg.nii.gz', np.int16)
        field += shift * (labels == weakest)
    return field


# --- field -----------------------------------------------------------------------------------


def solid_harmonics(points, degree):
    """Solid harmonics up to a degree, (N, (degree + 1)^2) ndarray of float32.

    ``(l - m + 1) R[l+1, m] = (2 l + 1) z R[l, m] - (l + m) r^2 R[l-1, m]``, from
    ``R[m, m] = (x + i y)^m``; real and imaginary part of each.

    Parameters
    ----------
    points : (N, 3) array_like
        Without unit, within about 1 of the origin.
    degree : int
        The greatest.

    Examples
    --------
    >>> solid_harmonics([[1.0, 2, 3]], 1)
    array([[1., 3., 1., 2.]], dtype=float32)
    """
    x, y, z = np.asarray(points, float).T
    r2 = x**2 + y**2 + z**2
    columns = []
    for m in range(degree + 1):
        before, now = 0, (x + 1j * y) ** m
        for n in range(m, degree + 1):
            columns.append(now.real)
            if m:
                columns.append(now.imag)
            following = ((2 * n + 1) * z * now - (n + m) * r2 * before) / (n - m + 1)
            before, now = now, following
    return np.stack(columns, axis=1).astype(np.float32)


def without_harmonics(error, sd, roi, voxel_size):
    """Error of the field in the region less its robust fit of solid harmonics, (V,) ndarray."""
    points = np.argwhere(roi) * np.asarray(voxel_size, float)
    points -= points.mean(axis=0)
    basis = solid_harmonics(points / np.abs(points).max(), DEGREE)
    values = error[roi].astype(float)
    weight = 1 / np.maximum(sd[roi], np.median(sd[roi]))
    stride = max(1, len(values) // MOST_VOXELS) | 1
    used, found, kept = basis[::stride], values[::stride], weight[::stride]
    for _ in range(5):
        fitted = np.linalg.lstsq(used * kept[:, None], found * kept, rcond=None)[0]
        left = np.abs(found - used @ fitted)
        kept = weight[::stride] * (left <= 3 * 1.4826 * np.median(left))
    return values - basis @ fitted


def walls(chi, roi):
    """Voxels of the region near a step of the true susceptibility or the edge of the region."""
    step = ndimage.maximum_filter(chi, 3) - ndimage.minimum_filter(chi, 3) > STEP
    block = np.ones((3, 3, 3), bool)
    near = ndimage.binary_dilation(step, block, iterations=NEAR - 1)
    inner = ndimage.binary_erosion(roi, block, iterations=NEAR, border_value=0)
    return roi & (near | ~inner)


def field_scores(total_field, field_sd, truth, roi, voxel_size, b0_dir):
    """Robust deviation of the error of the field over its standard deviation, and in ppm.

    Less its solid harmonics, and less what PDF takes for sources outside, which can be any error
    at the edge of the region.

    Parameters
    ----------
    total_field, field_sd : (X, Y, Z) ndarray
        What the echo fit found, ppm.
    truth : (X, Y, Z) ndarray
        What it should have, ppm.
    roi : tuple of 2 (X, Y, Z) ndarray of bool
        The region, and what of it is at walls.
    voxel_size : (3,) array_like
        mm
    b0_dir : (3,) array_like
        Direction of B0 in voxel axes.

    Returns
    -------
    dict
        ``away`` and ``walls``, ``away_pdf`` and ``walls_pdf``: z; ``away_ppm``;
        ``wall_fraction``.
    """
    region, wall = roi
    whole = np.where(region, total_field - truth, 0).astype(np.float32)
    error = without_harmonics(whole, field_sd, region, voxel_size)
    weights = noise_weights(field_sd, region)
    local = pdf(whole, region, voxel_size, b0_dir, weights, workers=WORKERS).local_field
    sd, at_wall = np.maximum(field_sd[region], 1e-9), wall[region]
    return {
        'away': robust_sd((error / sd)[~at_wall]),
        'walls': robust_sd((error / sd)[at_wall]),
        'away_pdf': robust_sd((local[region] / sd)[~at_wall]),
        'walls_pdf': robust_sd((local[region] / sd)[at_wall]),
        'away_ppm': robust_sd(error[~at_wall]),
        'wall_fraction': float(at_wall.mean()),
    }


def robust_sd(values):
    """1.4826 times the median of the size: the standard deviation, of a normal deviate about 0."""
    return float(1.4826 * np.median(np.abs(values))) if len(values) else None


# --- phase of each echo ----------------------------------------------------------------------


def echo_phase_scores(found, spec, kept, roi, voxel_size):
    """Size of the true and the found phase of each echo, and of their difference, rad.

    Root mean squares over the region; what is constant or linear in TE cannot be told from field
    and offset and is taken off all three.

    Parameters
    ----------
    found : dict or None
        ``echo_phase`` of the echo fit's record: ``constant`` (E,), rad, at the centre of the
        region, and ``gradient`` (E, 3), rad/mm.
    spec : TubesSpec or HeadSpec
        What was simulated.
    kept : tuple of int
        The echoes of the run, from 0.
    roi : (X, Y, Z) ndarray of bool
        The region.
    voxel_size : (3,) array_like
        mm
    """
    size = np.asarray(voxel_size, float)
    middle = (np.asarray(spec.matrix) - 1) / 2 - [0, 0, spec.slab.start]
    points = (np.argwhere(roi) - middle) * size
    centre = points.mean(axis=0)
    constant, gradient = (part[list(kept)] for part in echo_phase(spec))
    true = np.column_stack([constant + gradient @ centre, gradient])
    times = np.asarray(spec.echo_times)[list(kept)]
    lines = np.column_stack([np.ones_like(times), times])
    project = np.eye(len(times)) - lines @ np.linalg.pinv(lines)
    columns = np.column_stack([np.ones(len(points)), points - centre])
    moments = columns.T @ columns / len(points)

    def sizes(coefficients):
        own = project @ coefficients
        return np.sqrt(np.einsum('ei,ij,ej->e', own, moments, own)).tolist()

    scores = {'true': sizes(true), 'found': None, 'left': None}
    if found and found.get('constant') is not None:
        own = np.column_stack([np.asarray(found['constant'], float), found['gradient']])
        scores |= {'found': sizes(own), 'left': sizes(own - true)}
    return scores


# --- the whole run ---------------------------------------------------------------------------


def noise_scores(fit, spec):
    """Noise that the run found, in its unit and over the true noise of one channel."""
    true = stored_magnitude(spec) / spec.snr
    air = fit.get('air_noise')
    return {
        'found': fit['noise_sd'],
        'over_true': fit['noise_sd'] / true,
        'air_over_true': None if air is None else air / true,
        'source': fit.get('noise_source'),
    }


def warnings_of(outputs, run):
    """What the run tells its user: as in the report, and what the dataset lacks."""
    found = {}
    for text in run.missing:
        found.setdefault(text, 'inputs')
    for node, stage in outputs.items():
        record = getattr(stage, 'record', None)
        for text in (record.get('warnings') or ()) if isinstance(record, dict) else ():
            found.setdefault(text, node.replace('_', ' '))
    return [f'{stage}: {text}' for text, stage in found.items()]


def assess(root, spec, kept, outputs, run):
    """All that is reported of one run, ready for JSON, and sections of its maps."""
    image = nib.load(outputs['shape_mask'].roi_mask)
    roi, voxel_size = load_volume(outputs['shape_mask'].roi_mask, bool), image.header.get_zooms()
    head = isinstance(spec, HeadSpec)
    truth = Truth(root) if head else tubes_truth(root / TRUTH)
    score = (HeadScore if head else Score)(truth, roi)
    fit = outputs['echo_fit'].record
    maps = {arm: load_volume(outputs[f'{p}recombination'].chi) for arm, p in ARMS.items()}
    region = roi, walls(truth.chi, roi)
    fitted = [load_volume(getattr(outputs['echo_fit'], n)) for n in ('total_field', 'field_sd')]
    geometry = Geometry(roi, voxel_size, b0_direction(image.affine), WORKERS)
    local = load_volume(outputs['conventional_background_removal'].local_field)
    against = opponents.assess(fitted[0], local, fitted[1], geometry, truth.chi, score.roi)
    ours = opponents.of_default(maps['preconditioned'], geometry, truth.chi, score.roi)
    record = {
        'roi_voxels': int(roi.sum()),
        'opponents': against,
        'opponents_ours': ours,
        'maps': {arm: score(chi) for arm, chi in maps.items()},
        'weights': {
            arm: outputs[f'{p}dipole_inversion'].record['reg_weight'] for arm, p in ARMS.items()
        },
        'true': true_values(score, truth, head),
        'coverage': score.coverage if head else None,
        'noise': noise_scores(fit, spec),
        'field': field_scores(
            *fitted, true_field(root, spec), region, voxel_size, b0_direction(image.affine)
        ),
        'echo_phase': echo_phase_scores(fit.get('echo_phase'), spec, kept, roi, voxel_size),
        'warnings': warnings_of(outputs, run),
        'stages': {
            node: outputs[node].record
            for node in ('shape_mask', 'echo_fit', 'prior_fit', 'comparison')
            if node in outputs
        },
    }
    sections = {}
    if head:
        plane = truth.planes()['axial']
        for name, chi in {'true': truth.chi, **maps}.items():
            shown = np.where(score.roi, chi - chi[score.roi].mean(), np.nan)
            sections[name] = shown[plane].astype(np.float16)
        sections['voxel_size'] = np.array(voxel_size[:2])
    return record, sections


def true_values(score, truth, head):
    """True value of each region (ppm, relative to the brain's mean) or tube (to the agar)."""
    if head:
        return score.values(truth.chi)
    return [truth.label_dchi[i] for i, n in truth.label_names.items() if n.startswith('tube')]
