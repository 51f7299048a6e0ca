"""The tubes phantom: fields in closed form, a supersampled multi-echo signal, and the truth."""

from functools import reduce
from typing import NamedTuple

import numpy as np

from precondqsm_bids.numerics.constants import GAMMA, WATER_IN_AIR
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
from precondqsm_bids.phantom.fields import (
    CylinderOnGrid,
    CylinderTable,
    cylinder_field,
    sphere_field,
)
from precondqsm_bids.phantom.scanner import (
    Extras,
    Phantom,
    acquire,
    measure_with,
    plane_signal,
    relaxivity_factor,
)
from precondqsm_bids.phantom.spec import (
    BOTTLE_DCHI,
    BOTTLE_R2,
    FLOW_RADIUS,
    OIL_R2,
    OIL_THICKNESS,
    TubesSpec,
)


class TubesPhantom(Phantom):
    """The tubes as they are measured, and what is true.

    Labels are 1 ... n for the tubes, n + 1 for the agar, n + 2 for the bottle, n + 3 for the flow
    tube and n + 4 for the oil of the scanner's switches, in voxels that lie in it with all their
    points; 0 elsewhere, in voxels on an edge too.
    """


class _Truth(NamedTuple):
    """Voxel means of one slice, and the share of each material in it."""

    chi: np.ndarray
    field: np.ndarray
    r2star: np.ndarray
    density: np.ndarray
    labels: np.ndarray


def r2prime(dchi, field_strength, scale=1.0):
    """R2' of randomly placed small magnetised spheres, in the static dephasing regime.

    ``R2' = scale 2 pi gamma B0 |dchi| / (9 sqrt(3))``

    Parameters
    ----------
    dchi : array_like
        Bulk susceptibility relative to the medium, ppm.
    field_strength : float
        B0, T.
    scale : float
        Relative to theory.

    Returns
    -------
    ndarray
        R2', 1/s.

    References
    ----------
    Yablonskiy DA, Haacke EM. MRM 1994;32:749.

    Examples
    --------
    >>> print(f'{r2prime(1.0, 3.0):.1f}')
    323.5
    """
    rate = 2 * np.pi * GAMMA * field_strength * np.abs(dchi) * 1e-6
    return scale * rate / (9 * np.sqrt(3))


def total_field(points, spec):
    """Relative field before the shim, closed form at any points (exact, but slow).

    Parameters
    ----------
    points : (..., 3) array_like
        Relative to the container's centre, mm, in voxel axes.
    spec : TubesSpec
        The phantom.

    Returns
    -------
    (...) ndarray
        Field, ppm.
    """
    points = np.asarray(points, float)
    field = WATER_IN_AIR * cylinder_field(
        points, spec.container_radius, spec.container_height, spec.b0_dir
    )
    for centre, dchi in zip(spec.tube_centres, spec.tubes_dchi, strict=True):
        field += dchi * cylinder_field(
            points - centre, spec.tube_radius, spec.tube_height, spec.b0_dir
        )
    if spec.scanner.two_bodies:
        field += (BOTTLE_DCHI + WATER_IN_AIR) * cylinder_field(
            points - spec.bottle_centre, spec.bottle_radius, spec.bottle_height, spec.b0_dir
        )
    return field + _bubble_field(points, spec)


def _bubble_field(points, spec):
    if spec.air_bubble == 0:
        return 0.0
    relative = points - np.asarray(spec.bubble_centre)
    return -WATER_IN_AIR * sphere_field(relative, spec.air_bubble, spec.b0_dir)


def shim(spec):
    """Fit what a scanner's shim would cancel: the harmonics of the field inside the agar.

    Returns
    -------
    (9,) ndarray
        Coefficients of `solid_harmonics` (length: the container's radius), ppm.
    """
    step = spec.container_radius / 16
    across = np.arange(-15.5, 16) * step
    half = int(spec.container_height / 2 / step)
    along = np.arange(-half + 0.5, half) * step
    points = np.stack(np.meshgrid(across, across, along, indexing='ij'), axis=-1).reshape(-1, 3)
    points = points[np.hypot(points[:, 0], points[:, 1]) < spec.container_radius]
    for centre in spec.tube_centres:
        across_tube = np.hypot(points[:, 0] - centre[0], points[:, 1] - centre[1])
        tube = (across_tube <= spec.tube_radius) & (np.abs(points[:, 2]) <= spec.tube_height / 2)
        points = points[~tube]
    bubble = np.linalg.norm(points - np.asarray(spec.bubble_centre), axis=1) <= spec.air_bubble
    points = points[~bubble]
    return fit_shim(points, total_field(points, spec), spec.container_radius)


class _Object:
    """The phantom on the planes of the fine grid."""

    def __init__(self, spec):
        self.spec = spec
        self.x, self.y, self.z = (
            (np.arange(n * spec.supersampling) - (n * spec.supersampling - 1) / 2)
            * (size / spec.supersampling)
            for n, size in zip(spec.matrix, spec.voxel_size, strict=True)
        )
        extent = 2 * np.hypot(self.x[-1], self.y[-1])
        table = CylinderTable(self.z, spec.container_radius, spec.container_height, extent)
        self.container = CylinderOnGrid(table, self.x, self.y, spec.b0_dir)
        table = CylinderTable(self.z, spec.tube_radius, spec.tube_height, extent)
        self.tubes = [
            CylinderOnGrid(table, self.x - cx, self.y - cy, spec.b0_dir)
            for cx, cy, _ in spec.tube_centres
        ]
        self._bottle = None
        if spec.scanner.two_bodies:
            table = CylinderTable(self.z, spec.bottle_radius, spec.bottle_height, extent)
            cx, cy, _ = spec.bottle_centre
            self._bottle = CylinderOnGrid(table, self.x - cx, self.y - cy, spec.b0_dir)
        self._shim = shim(spec)
        self._coil = coil_magnitude(
            self.x[:, None], self.y[None], spec.container_radius, spec.coil_shading
        )
        self._r2prime = r2prime(spec.tubes_dchi, spec.field_strength, spec.relaxivity_scale)

    def plane(self, k):
        """Materials, chi, field and R2*.

        Materials: -1 air outside, 0 agar, 1 ... n tubes, n + 1 bubble, n + 2 bottle, n + 3 flow
        tube, n + 4 oil.
        """
        spec = self.spec
        n_tubes = len(self.tubes)
        material = np.where(self.container.inside(k), 0, -1).astype(np.int16)
        self._add_flow_and_oil(material, k)
        field = WATER_IN_AIR * self.container.field(k)
        for i, (tube, dchi) in enumerate(zip(self.tubes, spec.tubes_dchi, strict=True), start=1):
            material[tube.inside(k)] = i
            if dchi:
                field += dchi * tube.field(k)
        if self._bottle:
            material[self._bottle.inside(k)] = n_tubes + 2
            field += (BOTTLE_DCHI + WATER_IN_AIR) * self._bottle.field(k)
        terms = solid_harmonics(self.x[:, None], self.y[None], self.z[k], spec.container_radius)
        for coefficient, term in zip(self._shim, terms, strict=True):
            field -= coefficient * term
        if spec.air_bubble:
            points = self.points(k)
            field += _bubble_field(points, spec)
            distance = np.linalg.norm(points - np.asarray(spec.bubble_centre), axis=-1)
            material[distance <= spec.air_bubble] = n_tubes + 1
        # the last entry of each table serves material -1, the air outside
        added = BOTTLE_DCHI, 0.0, 0.0
        chi = np.array([0.0, *spec.tubes_dchi, -WATER_IN_AIR, *added, 0.0])[material]
        added = BOTTLE_R2, spec.r2, OIL_R2
        r2star = np.array([spec.r2, *(spec.r2 + self._r2prime), 0.0, *added, 0.0])[material]
        if spec.scanner.relaxivity:
            here = material > 0
            here &= material <= n_tubes
            factor = relaxivity_factor(spec, self.x[:, None], self.y, self.z[k])
            r2star[here] += ((factor - 1) * (r2star - spec.r2))[here]
        return material, chi, field, r2star

    def _add_flow_and_oil(self, material, k):
        """A tube of flowing water along the axis, and a layer of oil under the lid."""
        spec, z = self.spec, self.z[k]
        scale, first = spec.object_scale, len(self.tubes) + 3
        if spec.scanner.flow and abs(z) <= spec.tube_height / 2:
            inside = np.hypot(self.x[:, None], self.y) <= FLOW_RADIUS * scale
            material[inside] = first
        lid = spec.container_height / 2
        if spec.scanner.fat and lid - OIL_THICKNESS * scale <= z <= lid:
            material[material == 0] = first + 1

    def extras(self, material):
        """What the spins of a plane do beside, `Extras`."""
        spec, n_tubes = self.spec, len(self.tubes)
        scanner = spec.scanner
        frequency = velocity = None
        if scanner.white_matter_shift:
            weakest = 1 + int(np.argmin(np.abs(spec.tubes_dchi)))
            frequency = np.where(material == weakest, scanner.white_matter_shift, 0)
        if scanner.flow:
            velocity = np.zeros((3, *material.shape))
            velocity[2] = np.where(material == n_tubes + 3, scanner.flow, 0)
        fat = material == n_tubes + 4 if scanner.fat else None
        return Extras(frequency, fat, velocity)

    def points(self, k):
        """Coordinates of plane ``k``, (X, Y, 3), mm."""
        grid = np.broadcast_arrays(self.x[:, None], self.y[None], self.z[k])
        return np.stack(grid, axis=-1)

    def signal(self, k, material, field, r2star):
        """Complex signal of plane ``k`` at each echo, (X, Y) complex64 each."""
        spec = self.spec
        on = gives_signal(material, len(self.tubes))
        size = spec.container_radius, spec.container_height
        offset = phase_offset(self.x[:, None], self.y[None], self.z[k], *size)
        extras = self.extras(material)
        return plane_signal(spec, on, Spins(self._coil, offset, field, r2star), extras)


def simulate_tubes(spec=None, *, seed=0):
    """Simulate the tubes phantom.

    At every point of a grid ``supersampling`` times finer than the voxels the signal is

    ``coil exp(-R2* TE) exp(i (phi0 + 2 pi gammabar B0 field TE))``,

    which is then averaged over the voxel or cut off in k-space. The field is that of container,
    tubes and bubble in air, less the solid harmonics up to second order which a shim would
    cancel. T1 is left out: the flip angle and TR of the protocol have no effect.

    Parameters
    ----------
    spec : TubesSpec, optional
        What to simulate; the default is the published phantom.
    seed : int or sequence of int
        Seed of the noise.

    Returns
    -------
    TubesPhantom
        Measured echoes and truth.
    """
    spec = spec or TubesSpec()
    body = _Object(spec)
    factor = spec.supersampling
    n_tubes = len(spec.tubes_dchi)
    sampling = spec.scanner.sampling(spec.sampling)
    readout = Readout(spec.matrix, factor, len(spec.echo_times), sampling)
    slices = []
    for k in range(spec.matrix[2]):
        fine = [body.plane(i) for i in range(k * factor, (k + 1) * factor)]
        slices.append(_reduce(fine, factor, n_tubes))
        for i, (material, _, field, r2star) in enumerate(fine, start=k * factor):
            if (material >= 0).any():
                readout.add(i, body.signal(i, material, field, r2star))
    signal = acquire(readout.voxels()[:, :, spec.slab], spec)
    truth = _Truth(*(np.stack(maps, axis=-1) for maps in zip(*slices[spec.slab], strict=True)))
    magnitude, phase = measure_with(spec, signal, seed)
    names = {i: f'tube{i}' for i in range(1, n_tubes + 1)} | {n_tubes + 1: 'agar'}
    dchi = dict(enumerate((*spec.tubes_dchi, 0.0), start=1))
    for i, (name, value, there) in enumerate(_added(spec), start=n_tubes + 2):
        if there:
            names[i], dchi[i] = name, value
    return TubesPhantom(
        spec=spec,
        magnitude=magnitude,
        phase=phase,
        signal=signal,
        affine=scanner_affine(spec),
        echo_times=tuple(spec.echo_times),
        **truth._asdict(),
        label_names=names,
        label_dchi=dchi,
    )


def _added(spec):
    """Name, susceptibility (ppm) and presence of what follows the agar in the labels."""
    scanner = spec.scanner
    return (
        ('bottle', BOTTLE_DCHI, scanner.two_bodies),
        ('flow', 0.0, scanner.flow),
        ('oil', 0.0, scanner.fat),
    )


def gives_signal(material, n_tubes):
    """Whether a material is neither the air outside nor the bubble."""
    return (material >= 0) & (material != n_tubes + 1)


def _reduce(planes, factor, n_tubes):
    """Voxel means, and labels of the voxels of one material, from the fine planes of a slice."""
    material, chi, field, r2star = (
        points_of_voxels(stack, factor) for stack in zip(*planes, strict=True)
    )
    lowest, highest = reduce(np.minimum, material), reduce(np.maximum, material)
    pure = (lowest == highest) & gives_signal(lowest, n_tubes)
    label = np.where(lowest == 0, n_tubes + 1, lowest)
    return _Truth(
        chi=mean_of(chi),
        field=mean_of(field),
        r2star=mean_of(r2star),
        density=mean_of([gives_signal(m, n_tubes) for m in material]),
        labels=np.where(pure, label, 0).astype(np.int16),
    )
