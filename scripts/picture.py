"""Draw docs/figures/head_and_tubes.png: what a user gets, of the head and of the tubes.

Usage: ``python scripts/picture.py``, or ``make picture``. Both phantoms are simulated with voxels
of 2 mm and reconstructed by default, on arrays; it takes some minutes.
"""

import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from precondqsm_bids.numerics import Companions, Scan, b0_direction, reconstruct
from precondqsm_bids.phantom.head import simulate_head
from precondqsm_bids.phantom.head_spec import HeadSpec
from precondqsm_bids.phantom.spec import TubesSpec
from precondqsm_bids.phantom.tubes import simulate_tubes

TARGET = Path(__file__).resolve().parents[1] / 'docs' / 'figures' / 'head_and_tubes.png'
VOXEL = (2.0, 2.0, 2.0)
LIMITS = {'head': (-0.12, 0.2), 'tubes': (-0.2, 1.6)}
"""Values of black and white, ppm."""


def main():
    """Simulate, reconstruct, draw; status 0."""
    head = simulate_head(HeadSpec(voxel_size=VOXEL), seed=0)
    tubes = simulate_tubes(TubesSpec(matrix=(60, 60, 52), voxel_size=VOXEL), seed=0)
    rows = {
        'head': maps_of(head, head.brain_mask),
        'tubes': maps_of(tubes, None),
    }
    draw(rows).savefig(TARGET, dpi=110, pil_kwargs={'optimize': True})
    print(f'{TARGET}: {TARGET.stat().st_size / 1e3:.0f} kB')
    return 0


def maps_of(phantom, mask):
    """True, conventional and preconditioned map, and the NRMSE of each, over the region."""
    scan = Scan(
        phantom.magnitude, phantom.phase, phantom.echo_times, phantom.spec.field_strength, VOXEL,
        b0_direction(phantom.affine),
    )  # fmt: skip
    found = reconstruct(scan, companions=Companions(mask=mask), workers=2)
    roi = found.region.roi_mask
    true = np.where(roi, phantom.chi - phantom.chi[roi].mean(), 0)
    maps = {'conventional': found.maps.conventional.map.chi, 'preconditioned': found.chi}
    rows = {'true': (true, None)}
    for name, chi in maps.items():
        chi = np.where(roi, chi - chi[roi].mean(), 0)
        rows[name] = chi, np.linalg.norm(chi - true) / np.linalg.norm(true)
    box = tuple(slice(max(i.min() - 2, 0), i.max() + 3) for i in np.nonzero(roi))
    return {name: (chi[box], error) for name, (chi, error) in rows.items()}


def planes(kind, volume):
    """A coronal and an axial section: the head's through the deep nuclei, the tubes' middle."""
    _, y, z = volume.shape
    if kind == 'head':
        return volume[:, int(0.52 * y)], volume[:, :, int(0.47 * z)]
    return volume[:, int(0.59 * y)], volume[:, :, z // 2]


def draw(rows):
    """The figure: a row of sections for each phantom, a pair of columns for each map."""
    figure = Figure(figsize=(9.2, 4.0), facecolor='black')
    for top, (kind, maps) in zip((0.5, 0.0), rows.items(), strict=True):
        for column, (name, (volume, error)) in enumerate(maps.items()):
            for half, plane in enumerate(planes(kind, volume)):
                axes = figure.add_axes((column / 3 + half / 6, top, 1 / 6, 0.43))
                low, high = LIMITS[kind]
                axes.imshow(plane.T, origin='lower', cmap='gray', vmin=low, vmax=high)
                axes.set_axis_off()
            title = f'{name}, {low:g} to {high:g} ppm' if error is None else name
            title += '' if error is None else f', error {100 * error:.0f} %'
            figure.text(column / 3 + 1 / 6, top + 0.45, title, color='white', ha='center')
    return figure


if __name__ == '__main__':
    sys.exit(main())
