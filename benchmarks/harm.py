"""Objects on which contrast misleads: is the default ever worse than the conventional map?

Usage: ``python benchmarks/harm.py [--only NAME ...] [--voxel-size MM]`` writes ``docs/harm.md``
(with ``--only``, the table alone goes to the terminal). Phantoms are simulated and reconstructed
in memory, at 4 mm, which takes half an hour on two cores.

Each object is scored against the conventional map at the lambda that is best in hindsight, in the
same region and with the same normalised error. Fields of susceptibility that contrast does not
show are made with the continuous dipole on a grid twice as long, another kernel than the solver's.
"""

import argparse
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import opponents
from reconstruction import GRID, WORKERS, scan_of
from scipy import fft, ndimage

from precondqsm_bids.method import Arm, Method
from precondqsm_bids.numerics import (
    Geometry,
    PriorInputs,
    b0_direction,
    invert,
    measure_field,
    reconstruct_field,
    region_of_interest,
)
from precondqsm_bids.phantom.head import simulate_head
from precondqsm_bids.phantom.head_spec import HeadSpec, hard_head
from precondqsm_bids.phantom.scanner_spec import SWITCHES, scanner
from precondqsm_bids.phantom.spec import TubesSpec
from precondqsm_bids.phantom.tubes import simulate_tubes

PAGE = Path(__file__).parents[1] / 'docs' / 'harm.md'
ALLOWED = 1.06
"""Error over that of the best conventional map that is no harm: what a rule for lambda costs."""
MOST = 0.3
"""Susceptibility (ppm) of a voxel of a head's region, at most: those beyond are partly air or
bone, and would be two thirds of the error at 4 mm."""
HALVES = 0.5
"""Error over it below which a prior must be kept."""
SEED = 7


class Case(NamedTuple):
    """What a reconstruction starts from after the echo fit, and the truth."""

    images: PriorInputs
    geometry: Geometry
    chi: np.ndarray


class Result(NamedTuple):
    """Errors of one object: normalised, of the region's deviation of the true susceptibility."""

    name: str
    trust: float
    beyond: float | None
    prior_less: float
    """Conventional map at the best lambda."""
    conventional: float
    """Conventional map of the default: the published rule."""
    default: float
    opponents: dict
    """Conventional maps with total variation, as :func:`opponents.assess` has them."""
    ours: dict
    """Errors of the default where each of them is scored."""

    @property
    def ratio(self):
        """Error of the default over that of the best conventional map."""
        return self.default / self.prior_less

    @property
    def verdict(self):
        """Whether the prior was dropped where it harms, and kept where it halves the error."""
        if self.ratio > ALLOWED:
            return 'harm'
        return 'not kept' if self.ratio <= HALVES and self.trust < 1 else 'right'


# --- objects ---------------------------------------------------------------------------------


def measured(phantom, mask=None):
    """Echo fit of a phantom, and what a prior may be made of."""
    voxel_size, b0_dir = phantom.spec.voxel_size, b0_direction(phantom.affine)
    region = region_of_interest(phantom.magnitude[..., 0], voxel_size, mask)
    scan = scan_of(phantom, phase_sign=1)
    found = measure_field(scan, region.roi_mask, region.shape_mask, workers=WORKERS)
    images = PriorInputs(
        found.total_field, found.field_sd, region.shape_chi, region.shape_sd, region.inner,
        found.r2star, found.r2star_sd, found.reliable, phantom.magnitude[..., 0],
        found.magnitude, found.magnitude_sd,
        field_strength=phantom.spec.field_strength,
    )  # fmt: skip
    geometry = Geometry(region.roi_mask, voxel_size, b0_dir, WORKERS)
    return Case(images, geometry, phantom.chi)


def of_contrast(case, change):
    """The case with other contrasts: ``change`` makes one of one, the region being known."""
    images = case.images
    rate, first, combined = (
        change(image) for image in (images.r2star, images.magnitude, images.combined_magnitude)
    )
    images = images._replace(r2star=rate, magnitude=first, combined_magnitude=combined)
    return case._replace(images=images)


def of_susceptibility(case, chi):
    """The case with another susceptibility in the region, which no contrast shows."""
    mask, voxel_size, b0_dir, _ = case.geometry
    change = np.where(mask, chi - case.chi, 0)
    field = case.images.total_field + mask * continuous_field(change, voxel_size, b0_dir)
    images = case.images._replace(total_field=field.astype(np.float32))
    return case._replace(images=images, chi=np.where(mask, chi, case.chi))


def continuous_field(chi, voxel_size, b0_dir):
    """Field of the continuous dipole, ``1/3 - (k . b)^2 / k^2``, on a grid twice as long."""
    shape = [2 * n for n in chi.shape]
    k = np.meshgrid(*(fft.fftfreq(n, d) for n, d in zip(shape, voxel_size, strict=True)),
                    indexing='ij')  # fmt: skip
    squared = sum(axis**2 for axis in k)
    squared[0, 0, 0] = 1
    kernel = 1 / 3 - sum(a * b for a, b in zip(k, b0_dir, strict=True)) ** 2 / squared
    kernel[0, 0, 0] = 0
    field = fft.ifftn(fft.fftn(chi, shape, workers=WORKERS) * kernel, workers=WORKERS).real
    return field[tuple(slice(n) for n in chi.shape)]


def smoothed(mask, mm, voxel_size, rng):
    """Noise smoothed in space, of deviation one over the region."""
    noise = rng.standard_normal(mask.shape)
    noise = ndimage.gaussian_filter(noise, [mm / h for h in voxel_size])
    return (noise - noise[mask].mean()) / noise[mask].std()


def contrasts(case):
    """Changes of the contrast, by name; most of them leave it knowing nothing."""
    mask, voxel_size, _, _ = case.geometry
    box = ndimage.find_objects(mask.astype(int))[0]
    rng = np.random.default_rng(SEED)
    order = rng.permutation(np.count_nonzero(mask))
    noise = smoothed(mask, 2 * voxel_size[0], voxel_size, rng)
    gradient = np.sqrt(sum(g**2 for g in np.gradient(case.images.total_field)))
    half = np.indices(mask.shape)[0] < np.median(np.nonzero(mask)[0])

    def within(op):
        def change(image):
            out = np.full(mask.shape, np.nan, np.float32)
            out[box] = op(np.where(mask, image, np.nan)[box])
            nearest = ndimage.distance_transform_edt(
                np.isnan(out), return_distances=False, return_indices=True
            )
            return np.where(mask, out[tuple(nearest)], 0)

        return change

    def permuted(image):
        out = image.copy()
        out[mask] = image[mask][order]
        return out

    def inverted(image):
        middle = np.median(image[mask])
        return np.where(half & mask, 2 * middle - image, image).astype(np.float32)

    def like(values):
        """Values of any distribution with that of the image."""

        def change(image):
            out = image.copy()
            out[mask] = np.sort(image[mask])[np.argsort(np.argsort(values[mask]))]
            return out

        return change

    return {
        'as it is': lambda image: image,
        'permuted': permuted,
        'random': like(rng.standard_normal(mask.shape)),
        'random, smooth': like(noise),
        'flat': lambda image: np.where(
            mask, np.median(image[mask]) * (1 + 0.01 * rng.standard_normal(mask.shape)), 0
        ).astype(np.float32),
        'mirrored left to right': within(lambda v: v[::-1]),
        'mirrored front to back': within(lambda v: v[:, ::-1]),
        'mirrored top to bottom': within(lambda v: v[:, :, ::-1]),
        'shifted by 1 voxel': lambda image: np.roll(image, 1, 0),
        'shifted by 3 voxels': lambda image: np.roll(image, 3, 0),
        "of the field's gradient": like(gradient),
        'inverted in one half': inverted,
    }


def sources(case):
    """Susceptibilities that contrast does not show, by name."""
    mask, voxel_size, _, _ = case.geometry
    rng = np.random.default_rng(SEED)
    x = [
        (i - n / 2) * h
        for i, n, h in zip(np.indices(mask.shape), mask.shape, voxel_size, strict=True)
    ]

    def waves(mm):
        return sum(np.sin(2 * np.pi * axis / mm) for axis in x)

    return {
        'smooth susceptibility': 0.03 * smoothed(mask, 15, voxel_size, rng),
        'rough susceptibility': 0.03 * smoothed(mask, 4, voxel_size, rng),
        'waves of 10 mm beside it': case.chi + 0.02 * waves(10),
        'waves of 20 mm beside it': case.chi + 0.02 * waves(20),
        'uniform but for one sphere': np.where(sum(a**2 for a in x) < 12**2, 0.1, 0.0),
    }


def tissue(phantom):
    """The brain without voxels that are partly air or bone."""
    return phantom.brain_mask & (np.abs(phantom.chi) < MOST)


def spheres(phantom):
    """Small balls inside the brain as regions."""
    mask = tissue(phantom)
    middle = [np.median(axis) for axis in np.nonzero(mask)]
    index = np.indices(mask.shape)
    distance = np.sqrt(
        sum(
            ((i - m) * h) ** 2
            for i, m, h in zip(index, middle, phantom.spec.voxel_size, strict=True)
        )
    )
    return {f'ball of {radius} mm': mask & (distance < radius) for radius in (24, 36)}


def objects(mm):
    """Name -> function that makes the case; simulations are shared where they can be."""
    kept: dict[object, object] = {}

    def head(**changes):
        key = repr(sorted(changes.items(), key=str))
        if key not in kept:
            kept.clear()
            make = hard_head if changes.pop('hard', False) else HeadSpec
            kept[key] = simulate_head(make(voxel_size=(mm,) * 3, **changes), seed=SEED)
        return kept[key]

    def brain(phantom):
        return measured(phantom, tissue(phantom))

    def tubes(**changes):
        matrix = tuple(round(n / mm * 2) for n in (64, 64, 53))
        spec = TubesSpec(matrix=matrix, voxel_size=(mm,) * 3, **changes)
        phantom = simulate_tubes(spec, seed=SEED)
        return measured(phantom)

    table: dict[str, Callable[[], Case]] = {}
    plain = brain(head())
    for name, change in contrasts(plain).items():
        table[f'head, contrast {name}'] = lambda change=change: of_contrast(plain, change)
    for name, chi in sources(plain).items():
        table[f'head, {name}'] = lambda chi=chi: of_susceptibility(plain, chi)
    for name, mask in spheres(head()).items():
        table[f'head, {name}'] = lambda mask=mask: measured(head(), mask)
    for slices in (8, 12, 16):
        table[f'head, {slices} slices'] = lambda n=slices: brain(head(slices=n))
    for snr in (20, 50, 300):
        table[f'head, SNR {snr}'] = lambda snr=snr: brain(head(snr=float(snr)))
    table['hard head'] = lambda: brain(head(hard=True))
    for name in (*SWITCHES, 'all'):
        table[f'head, {name}'] = lambda name=name: brain(head(scanner=scanner(name)))
    table['tubes'] = tubes
    table['tubes, two diamagnetic'] = lambda: tubes(tubes_dchi=(-0.4, 0.4, -0.8, 0.8, 1.2))
    table['tubes, SNR 20'] = lambda: tubes(snr=20.0)
    return table


# --- scores ----------------------------------------------------------------------------------


def score(name, case):
    """Errors of one object."""
    mask = case.geometry.mask
    truth = case.chi[mask].astype(float)
    truth -= truth.mean()
    size = np.linalg.norm(truth)

    def error(chi):
        values = chi[mask].astype(float)
        return float(np.linalg.norm(values - values.mean() - truth) / size)

    found = reconstruct_field(case.images, case.geometry, Method(), mask)
    local = found.conventional.local.local_field
    best = min(
        error(invert(local, case.geometry, Arm(reg_weight=weight)).chi) for weight in GRID[::2]
    )
    record = found.prior.record
    field, field_sd = case.images.total_field, case.images.field_sd
    return Result(
        name, record['trust'], record['beyond_null'], best, error(found.conventional.map.chi),
        error(found.chi),
        opponents.assess(field, local, field_sd, case.geometry, case.chi),
        opponents.of_default(found.chi, case.geometry, case.chi),
    )  # fmt: skip


HEADINGS = (
    'object', 'conventional, best λ', 'conventional, published λ', 'default', 'default over best',
    'beyond null', 'prior counts for', 'verdict', 'total variation, best weight',
    'V-SHARP and total variation (default there)',
)  # fmt: skip


def against(result):
    """Errors of the opponents, in bold where the default has more."""
    cells = []
    for name in opponents.NAMES:
        if name not in result.opponents:
            cells.append('-')
            continue
        theirs, ours = result.opponents[name]['nrmse'], result.ours[name]
        text = f'**{theirs:.3f}**' if theirs < ours else f'{theirs:.3f}'
        cells.append(text if name == 'tv' else f'{text} ({ours:.3f})')
    return cells


def row(result):
    """One row of the table."""
    beyond = '-' if result.beyond is None else f'{result.beyond:.3f}'
    return (
        result.name, f'{result.prior_less:.3f}', f'{result.conventional:.3f}',
        f'{result.default:.3f}', f'{result.ratio:.2f}', beyond,
        f'{result.trust:.0%}', result.verdict, *against(result),
    )  # fmt: skip


TEXT = """# Objects on which contrast misleads

`python benchmarks/harm.py` simulates {number} objects at {mm:g} mm and reconstructs each by
default. The first four columns of numbers are errors: root mean square over the region, relative
to the deviation of the true susceptibility, each map less its mean. The conventional map has the
lambda that is best in hindsight; the default may not have {allowed:.0%} more than its error (what
a rule for lambda may cost). "Beyond null" is what the prior explains of the field beyond the same
prior turned ([verdict](methods.md#verdict)); from 0.03 to 0.12 of it the prior counts from nothing
to in full. The last columns are the strongest opponents: total variation after PDF, and after
V-SHARP in the region without the rim that spheres do not know (the default's error there in
brackets), each at the weight that is best in hindsight. {wins}

**{right} of {number} are right**: the prior does no harm, and counts in full where it halves the
error.{worst}

{table}

{machine}, {seconds:.0f} s.

## Real scans

`python benchmarks/real.py FOLDER` reconstructs public scans by default and draws them: axial,
coronal and sagittal planes of the conventional map (published rule), of the map by the choice of
the QSM consensus (black in the rim that it does not know), of the preconditioned map and of its
prior, from -0.1 to 0.1 ppm.

A head at 3 x 3 x 3.6 mm, one echo of 2.5 ms. The prior is a function of the magnitude alone, freed
of its shading: ventricles and sinuses, which count for 41 %. The map has the levels and the
anatomy of the conventional one, a little less noise beside strong sources and none of the tiles
that were there before there were windows; to our eyes it is the better of the two, by little.
When the shading was left in, it was the prior: the centre was brighter than any brain's, and it
counted in full.

![Head at 3 T](figures/real_head_siemens_3t.png)

A crop of a brain at 7 T, three echoes, no air in the field of view: its contrast explains no more
than chance, the prior is dropped, and the map is the field's alone, with the lambda of the
corner: by least expected error it would be 2.5 times that, and the veins, which all three maps
show, half as strong. What the field decided stands out in veins and nuclei.

![Crop of a brain at 7 T](figures/real_crop_brain_7t.png)
"""


def wins(results):
    """Where an opponent has less error than the default, in words."""
    lost = []
    for result in results:
        least = min(result.opponents[name]['nrmse'] / e for name, e in result.ours.items())
        if least < 1:
            lost.append(f'{result.name} ({least:.2f})')
    if not lost:
        return 'They have less error than the default nowhere.'
    return (
        f'One of them has less error than the default in {len(lost)} of {len(results)} (its error '
        f'over that of the default): {"; ".join(lost)}.'
    )


def page(results, mm, seconds):
    """The page."""
    wrong = [result for result in results if result.verdict != 'right']
    worst = ' Not so: ' + '; '.join(f'{r.name} ({r.verdict}, {r.ratio:.2f})' for r in wrong) + '.'
    lines = [HEADINGS, tuple('---' for _ in HEADINGS), *map(row, results)]
    return TEXT.format(
        number=len(results), mm=mm, allowed=ALLOWED - 1, right=len(results) - len(wrong),
        worst=worst if wrong else '', wins=wins(results),
        table='\n'.join(f'| {" | ".join(cells)} |' for cells in lines),
        machine=f'{platform.machine()}, {WORKERS} threads, Python {platform.python_version()}',
        seconds=seconds,
    )  # fmt: skip


def main(argv=None):
    """Run the benchmark; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--only', nargs='+', metavar='TEXT', help='objects whose names have it')
    parser.add_argument('--voxel-size', type=float, default=4.0, metavar='MM')
    options = parser.parse_args(argv)
    start = time.monotonic()
    results = []
    for name, make in objects(options.voxel_size).items():
        if options.only and not any(text in name for text in options.only):
            continue
        results.append(score(name, make()))
        print(' | '.join(row(results[-1])), file=sys.stderr, flush=True)
    text = page(results, options.voxel_size, time.monotonic() - start)
    if options.only:
        print(text)
    else:
        PAGE.write_text(text, encoding='utf-8')
    return 0


if __name__ == '__main__':
    sys.exit(main())
