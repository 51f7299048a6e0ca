"""What the files of a phantom's dataset say of it, for each kind of phantom."""

from collections.abc import Callable
from typing import NamedTuple

from precondqsm_bids import __version__
from precondqsm_bids.phantom.head_spec import HeadSpec
from precondqsm_bids.phantom.scanner import MAGNITUDE_LEVELS

MAGNITUDE_SCALE = 10000
"""Stored magnitude of the medium (agar, white matter) at TE -> 0, unless the scanner stores small
integers."""


def stored_magnitude(spec):
    """Stored magnitude of the medium (agar, white matter) at TE -> 0."""
    return MAGNITUDE_LEVELS if spec.scanner.integers else MAGNITUDE_SCALE


def _tubes_readme(spec, labels, seed):
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
  imaginary parts; {stored_magnitude(spec)} stored units of magnitude are that signal

Simulation
: field in closed form (finite cylinders, sphere), less the solid harmonics up to second order
  that a shim would cancel
: {spec.supersampling} points per voxel and axis, made into voxels by: {_sampling(spec)}
: {len(labels)} participant(s): the same phantom with noise of its own, seed {seed}
"""


def _head_readme(spec, labels, seed):
    times = ', '.join(f'{1000 * value:g}' for value in spec.echo_times)
    matrix = ' x '.join(str(n) for n in spec.matrix)
    size = ' x '.join(f'{length:g}' for length in spec.voxel_size)
    fine = ' x '.join(f'{length / spec.supersampling:g}' for length in spec.voxel_size)
    if spec.hard:
        hidden = f"""veins, microbleeds and calcifications (in the label image), the lesions with
  {spec.lesion_relaxivity:g} of the R2' that the relaxivity would give them; a texture of 0.01 ppm;
  patches of other R2 and the same susceptibility, and the reverse"""
    else:
        hidden = 'nothing'
    return f"""Digital phantom: a head of known susceptibility
===============================================

A simulation by precondqsm_phantom {__version__}, not a measurement, and nobody's head.
The truth is in derivatives/truth.

Object
: brain of the ICBM 152 template (nonlinear, symmetric, 2009a; Fonov et al., NeuroImage
  2011;54:313) with analytic deep nuclei; CSF, skull, scalp, face, eyes, sinuses, ear canals,
  mastoid cells, airway, neck and spine built around it
: susceptibilities after Marques et al., MRM 2021;86:526; texture of 15 % (standard deviation)
  of their para- and diamagnetic parts
: R2' = {spec.relaxivity:g} Hz/ppm (at 3 T, in proportion to B0) of the sum of both parts' sizes
: hidden from the magnitude: {hidden}
: left out: {_left_out(spec)}

Protocol
: {spec.field_strength:g} T, head and slab at {spec.b0_tilt:g} degrees to B0
: {matrix} voxels of {size} mm
: echo times {times} ms
: TR {1000 * spec.repetition_time:g} ms, flip angle 20 degrees, T1 of each tissue
: SNR {spec.snr:g}: the signal of white matter at TE -> 0 over the noise in each of the real and
  imaginary parts; {stored_magnitude(spec)} stored units of magnitude are that signal

Simulation
: tissues, field and signal on points of {fine} mm, made into voxels by: {_sampling(spec)}
: field by finite differences on those points, of the whole head and neck in air, less the solid
  harmonics up to second order that a shim on the brain would cancel
: {len(labels)} participant(s): the same head with noise of its own, seed {seed}

Template
: Copyright (C) 1993-2009 Louis Collins, McConnell Brain Imaging Centre, Montreal Neurological
  Institute, McGill University. Permission to use, copy, modify, and distribute this software and
  its documentation for any purpose and without fee is hereby granted, provided that the above
  copyright notice appear in all copies. It is provided "as is" without express or implied
  warranty.
"""


def _sampling(spec):
    return spec.scanner.sampling(spec.sampling)


def _left_out(spec):
    scanner = spec.scanner
    absent = {
        'chemical shift of fat': not scanner.fat,
        'flow': not scanner.flow,
        'motion': True,
        'anisotropy of white matter': True,
        'teeth': True,
        'shoulders': True,
    }
    return ', '.join(name for name, out in absent.items() if out)


class Kind(NamedTuple):
    """What the files say of one kind of phantom."""

    name: str
    licence: str
    acknowledge: str
    field: str
    t1: str
    segments: str
    chi: str
    dseg: str
    labels: str
    dchi: str
    total_field: str
    readme: Callable


_TUBES = Kind(
    name='Digital phantom of tubes of known susceptibility in agar',
    licence='CC0',
    acknowledge='Cite precondqsm_bids and the abstract whose phantom this is.',
    field='closed-form field',
    t1='T1 left out',
    segments='labels of the voxels that\nlie in one material with all their points',
    chi='relative to the agar inside the container (an air bubble is the step from water to air), '
    '0 in the air outside',
    dseg='tubes',
    labels='Tubes and agar. A voxel has a label where all its points lie in that material; '
    'voxels on an edge have none.',
    dchi='True susceptibility relative to the agar',
    total_field='container, tubes and bubble in air, less the solid harmonics up to second order '
    'of the field in the agar (the shim)',
    readme=_tubes_readme,
)
_HEAD = Kind(
    name='Digital phantom of a head of known susceptibility',
    licence='CC0, with the notice of the ICBM 152 template that the README holds',
    acknowledge='Cite precondqsm_bids, and Fonov et al., NeuroImage 2011;54:313 for the template.',
    field='field by finite differences on a finer grid',
    t1='spoiled steady state',
    segments='labels of the\ntissues, their shares in each voxel and a mask of the brain',
    chi='relative to water inside the head (an air space is the step from water to air), 0 in the '
    'air outside',
    dseg='tissues',
    labels='Tissues. A voxel has the label of the tissue that holds most of its points, 0 for the '
    'air outside.',
    dchi='Nominal susceptibility relative to water; texture comes on top',
    total_field='the whole head and neck in air, less the solid harmonics up to second order of '
    'the field in the brain (the shim)',
    readme=_head_readme,
)


def kind_of(spec):
    """The texts of the kind of a spec."""
    return _HEAD if isinstance(spec, HeadSpec) else _TUBES
