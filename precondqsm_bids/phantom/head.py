"""The head phantom: a template's brain in an analytic head, on a grid finer than the voxels."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from precondqsm_bids.numerics.constants import WATER_IN_AIR
from precondqsm_bids.phantom.acquisition import (
    Readout,
    Spins,
    coil_magnitude,
    fit_shim,
    mean_of,
    phase_offset,
    points_of_voxels,
    scanner_affine,
    solid_harmonics,
)
from precondqsm_bids.phantom.anatomy import Anatomy
from precondqsm_bids.phantom.atlas import Planes, texture
from precondqsm_bids.phantom.fine_field import alias_factor, good_length, object_field
from precondqsm_bids.phantom.head_parts import ONLY_CHI, ONLY_R2
from precondqsm_bids.phantom.head_spec import FIELD_CENTRE, HEIGHT, RADIUS, HeadSpec
from precondqsm_bids.phantom.scanner import (
    Extras,
    Phantom,
    acquire,
    measure_with,
    plane_signal,
    relaxivity_factor,
)
from precondqsm_bids.phantom.tissues import (
    GREY,
    INDEX,
    LESIONS,
    TISSUES,
    among,
    of_tissues,
    spoiled_signal,
)

TEXTURE = 0.15
"""Standard deviation of the visible texture, relative to each part of the susceptibility."""

DENSITY_TEXTURE = 0.02
"""Standard deviation of the texture of the signal at TE = 0, relative."""

HIDDEN_TEXTURE = 0.01
"""Standard deviation of the texture that only the field sees, ppm."""

IRON, MYELIN, DENSITY, HIDDEN = 1, 2, 3, 4
"""Numbers of the textures."""


@dataclass(frozen=True)
class HeadPhantom(Phantom):
    """The head as it is measured, and what is true.

    Of the labels, each voxel has the tissue that holds most of its points; texture comes on top
    of the tissues' susceptibility.

    Attributes
    ----------
    brain_mask : (X, Y, Z) ndarray of bool
        Voxels of which at least half lies inside the outline of the brain.
    probsegs : dict of str to (X, Y, Z) ndarray of float32
        'GM' (nuclei included), 'WM' and 'CSF' (inside the outline): share of each in each voxel.
    """

    brain_mask: np.ndarray
    probsegs: dict[str, np.ndarray]


class _Truth(NamedTuple):
    """Voxel means of one slice."""

    chi: np.ndarray
    field: np.ndarray
    r2star: np.ndarray
    density: np.ndarray
    labels: np.ndarray
    brain_mask: np.ndarray
    gm: np.ndarray
    wm: np.ndarray
    csf: np.ndarray


class _Material(NamedTuple):
    """One fine plane, (X, Y) each."""

    tissue: np.ndarray
    brain: np.ndarray
    chi: np.ndarray
    """ppm relative to water, 0 in the air outside."""
    r2star: np.ndarray
    """1/s, 0 where there is no signal."""
    amplitude: np.ndarray
    """Signal at TE -> 0 before the coil."""


def r2prime(chi_para, chi_dia, spec):
    """R2' of a mixture of para- and diamagnetic sources.

    ``R2' = relaxivity (B0 / 3 T) (|chi+| + |chi-|)``

    Parameters
    ----------
    chi_para, chi_dia : array_like
        Both parts of the susceptibility, ppm.
    spec : HeadSpec
        Relaxivity (Hz/ppm at 3 T) and field strength.

    Returns
    -------
    ndarray
        R2', 1/s.

    References
    ----------
    Shin HG et al. NeuroImage 2021;240:118371.

    Examples
    --------
    >>> print(r2prime(0.035, -0.015, HeadSpec(field_strength=7.0)).round(2))
    15.98
    """
    return spec.relaxivity * spec.field_strength / 3 * (np.abs(chi_para) + np.abs(chi_dia))


class _Head:
    """The head on the planes of the fine grid, field of view and what surrounds it."""

    def __init__(self, spec):
        self.spec = spec
        factor = spec.supersampling
        self.spacing = [size / factor for size in spec.voxel_size]
        margins = [spec.margin(axis) for axis in range(3)]
        grid = [
            good_length(factor * (n + sum(m)), f)
            for n, m, f in zip(spec.matrix, margins, alias_factor(self.spacing), strict=True)
        ]
        self.view = tuple(
            slice(factor * before, factor * (before + n))
            for n, (before, _) in zip(spec.matrix, margins, strict=True)
        )
        self.x, self.y, self.z = (
            centre + (np.arange(n) - view.start - (view.stop - view.start - 1) / 2) * size
            for n, view, size, centre in zip(
                grid, self.view, self.spacing, FIELD_CENTRE, strict=True
            )
        )
        scanner = spec.scanner
        self._anatomy = Anatomy(
            self.x,
            self.y,
            spec.hard,
            fat=bool(scanner.fat),
            flow=bool(scanner.flow),
            bottle=scanner.two_bodies,
        )
        self._texture = {
            number: Planes(texture(number, size), self.x, self.y)
            for number, size in ((IRON, 2.5), (MYELIN, 4.0), (DENSITY, 3.0), (HIDDEN, 2.0))
        }
        self._amplitude = spoiled_signal(spec.repetition_time)
        self._para, self._dia = of_tissues('chi_para'), of_tissues('chi_dia')
        self._r2 = of_tissues('r2')
        self._brain_tissue = of_tissues('brain', bool)
        self._textured = self._brain_tissue & ~among(LESIONS)

    def tissue(self):
        """Tissues and the outline of the brain on the whole grid, (Z, X, Y) each."""
        shape = len(self.z), len(self.x), len(self.y)
        tissue, brain = np.zeros(shape, np.int8), np.zeros(shape, bool)
        for k, z in enumerate(self.z):
            tissue[k], brain[k] = self._anatomy.plane(z)
        return tissue, brain

    def material(self, tissue, brain, z):
        """Susceptibility, relaxation and amplitude of a plane of tissues, `_Material`."""
        spec = self.spec
        para, dia = self._para[tissue], self._dia[tissue]
        amplitude, r2 = self._amplitude[tissue], self._r2[tissue]
        textured = self._textured[tissue]
        if textured.any():
            para, dia, amplitude = (
                # a part of the susceptibility does not change sign, whatever the texture
                values
                * np.where(textured, np.maximum(1 + size * self._texture[number].at(z), 0), 1)
                for values, size, number in (
                    (para, TEXTURE, IRON),
                    (dia, TEXTURE, MYELIN),
                    (amplitude, DENSITY_TEXTURE, DENSITY),
                )
            )
        chi = para + dia
        rate = np.where(self._brain_tissue[tissue], r2prime(para, dia, spec), 0)
        if spec.hard and brain.any():
            lesion = among(LESIONS)[tissue]
            white = TISSUES[INDEX['WM']]
            rate[lesion] *= spec.lesion_relaxivity
            rate[lesion] += r2prime(white.chi_para, white.chi_dia, spec)
            chi += HIDDEN_TEXTURE * textured * self._texture[HIDDEN].at(z)
            chi += textured * self._patches(ONLY_CHI, z)
            r2 = r2 + textured * self._patches(ONLY_R2, z)
        if spec.scanner.relaxivity:
            centred = (
                a - c for a, c in zip((self.x[:, None], self.y, z), FIELD_CENTRE, strict=True)
            )
            rate = rate * relaxivity_factor(spec, *centred)
        on = amplitude > 0
        r2star = np.where(on, r2 + rate, 0)
        return _Material(tissue, brain, chi, r2star, amplitude)

    def extras(self, tissue, z):
        """What the spins of a plane of tissues do beside, `Extras` in the field of view."""
        scanner = self.spec.scanner
        in_x, in_y, _ = self.view
        here = tissue[in_x, in_y]
        white = velocity = None
        if scanner.white_matter_shift:
            white = np.where(here == INDEX['WM'], np.float32(scanner.white_matter_shift), 0)
        if scanner.flow:
            velocity = scanner.flow * self._anatomy.velocity(tissue, z)[:, in_x, in_y]
        return Extras(
            frequency=white,
            fat=here == INDEX['fat'] if scanner.fat else None,
            velocity=velocity,
        )

    def _patches(self, patches, z):
        plane = np.zeros((len(self.x), len(self.y)), np.float32)
        for shape, value in patches:
            self._anatomy.mark(plane, (shape,), z, value)
        return plane

    def field(self, tissue, brain):
        """Relative field in the field of view, less the shim, (Z, X, Y) ndarray of float32."""
        chi = np.empty(tissue.shape, np.float32)
        for k, z in enumerate(self.z):
            chi[k] = self.material(tissue[k], brain[k], z).chi
            chi[k] += WATER_IN_AIR  # relative to the air that surrounds the head
            chi[k][tissue[k] == INDEX['air']] = 0
        b_x, b_y, b_z = self.spec.b0_dir
        d_x, d_y, d_z = self.spacing
        field = object_field(chi, (d_z, d_x, d_y), (b_z, b_x, b_y))
        in_x, in_y, in_z = self.view
        field, inside = field[in_z, in_x, in_y], brain[in_z, in_x, in_y]
        # the shim sees the brain; every third point is more than enough for nine numbers
        k, i, j = np.nonzero(inside[::3, ::3, ::3])
        x, y, z = self.x[in_x], self.y[in_y], self.z[in_z]
        points = np.stack([x[::3][i], y[::3][j], z[::3][k]], axis=-1)
        shim = fit_shim(points, field[::3, ::3, ::3][k, i, j], RADIUS)
        for plane, height in zip(field, z, strict=True):
            terms = solid_harmonics(x[:, None], y[None], height, RADIUS)
            for coefficient, term in zip(shim, terms, strict=True):
                plane -= np.float32(coefficient) * np.asarray(term, np.float32)
        return field


def simulate_head(spec=None, *, seed=0):
    """Simulate the head phantom.

    Tissues, field and signal live on a grid ``supersampling`` times finer than the voxels; at
    each of its points lies one tissue, and the signal there is

    ``coil A exp(-R2* TE) exp(i (phi0 + 2 pi gammabar B0 field TE))``,

    with A the spoiled steady state of the tissue and ``R2* = R2 + R2'``. It is then averaged over
    the voxel or cut off in k-space, so that voxels beside the air lose signal as they do in a
    scanner. The field is that of the whole head down to below the neck, convolved on the fine
    grid, less the solid harmonics up to second order which a shim on the brain would cancel.
    Fat, flow and what else a living head and its scanner do come with ``spec.scanner``.

    Parameters
    ----------
    spec : HeadSpec, optional
        What to simulate; the default has voxels of 1 mm at 3 T.
    seed : int or sequence of int
        Seed of the noise. Texture and vessels do not depend on it.

    Returns
    -------
    HeadPhantom
        Measured echoes and truth.

    Raises
    ------
    FileNotFoundError
        The template is not installed.
    """
    spec = spec or HeadSpec()
    head = _Head(spec)
    factor = spec.supersampling
    tissue, brain = head.tissue()
    field = head.field(tissue, brain)
    in_x, in_y, in_z = head.view
    x, y = head.x[in_x, None], head.y[None, in_y]
    coil = coil_magnitude(x, y, RADIUS, spec.coil_shading)
    sampling = spec.scanner.sampling(spec.sampling)
    readout = Readout(spec.matrix, factor, len(spec.echo_times), sampling)
    slices = []
    for k in range(0, in_z.stop - in_z.start, factor):
        planes = []
        for i in range(k, k + factor):
            whole = i + in_z.start
            z = head.z[whole]
            material = head.material(tissue[whole], brain[whole], z)
            material = _Material(*(values[in_x, in_y] for values in material))
            planes.append((*material, field[i]))
            on = material.amplitude > 0
            spins = Spins(
                coil * material.amplitude,
                np.broadcast_to(phase_offset(x, y, z, RADIUS, HEIGHT), on.shape),
                field[i],
                material.r2star,
            )
            readout.add(i, plane_signal(spec, on, spins, head.extras(tissue[whole], z)))
        slices.append(_reduce(planes, factor))
    del tissue, brain, field
    signal = acquire(readout.voxels()[:, :, spec.slab], spec)
    del readout
    truth = _Truth(*(np.stack(maps, axis=-1) for maps in zip(*slices[spec.slab], strict=True)))
    magnitude, phase = measure_with(spec, signal, seed)
    names = _names(spec)
    maps = truth._asdict()
    return HeadPhantom(
        spec=spec,
        magnitude=magnitude,
        phase=phase,
        signal=signal,
        affine=scanner_affine(spec),
        echo_times=tuple(spec.echo_times),
        probsegs={name: maps.pop(name.lower()) for name in ('GM', 'WM', 'CSF')},
        **maps,
        label_names=names,
        label_dchi={i: round(TISSUES[i].chi, 6) for i in names},
    )


def _names(spec):
    """Names of the tissues that this head has, by their labels."""
    scanner = spec.scanner
    there = {
        'vein': spec.hard or scanner.flow,
        **dict.fromkeys(LESIONS, spec.hard),
        'fat': scanner.fat,
        'bottle': scanner.two_bodies,
    }
    return {i: t.name for i, t in enumerate(TISSUES) if i > 0 and there.get(t.name, True)}


def _reduce(planes, factor):
    """Voxel means and labels from the fine planes of a slice."""
    tissue, brain, chi, r2star, amplitude, field = (
        points_of_voxels(stack, factor) for stack in zip(*planes, strict=True)
    )
    share = np.stack([mean_of([t == i for t in tissue]) for i in range(len(TISSUES))])
    on = [a > 0 for a in amplitude]
    density = mean_of(on)
    csf = mean_of([b & (t == INDEX['CSF']) for b, t in zip(brain, tissue, strict=True)])
    with np.errstate(invalid='ignore', divide='ignore'):
        rate = np.where(density > 0, mean_of(r2star) / density, 0).astype(np.float32)
    return _Truth(
        chi=mean_of(chi),
        field=mean_of(field),
        r2star=rate,
        density=density,
        labels=share.argmax(0).astype(np.int16),
        brain_mask=mean_of(brain) >= 0.5,
        gm=share[among(GREY)].sum(0),
        wm=share[INDEX['WM']],
        csf=csf,
    )
