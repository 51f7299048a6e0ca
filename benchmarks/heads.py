"""Reconstruct the heads and write their page: ``python benchmarks/heads.py``.

Every head is written as a BIDS dataset with its truth, as ``precondqsm_phantom --kind head`` does,
and reconstructed by the workflow that the app runs for it, with the true brain mask given. What
an arm shares with the one before it (echo fit, conventional map) is taken from the work folder, so
that an interrupted run goes on where it stopped; each arm's record is kept as JSON in the cache.
"""

import argparse
import hashlib
import inspect
import logging
import os
import shutil
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault('NIPYPE_NO_ET', '1')
# Before numpy: on a busy machine OpenBLAS's threads wait for each other in every inner product.
os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')

import coverage
import heads_page
import nibabel as nib
import numpy as np
import opponents
from reconstruction import WORKERS, Arm, Error, assess
from scipy import ndimage
from validation import PACKAGE, ROOT, SEED, case_named, digest, load, save, scaled, versions

from precondqsm_bids.cli.environment import configure_nipype
from precondqsm_bids.config import Settings
from precondqsm_bids.inputs.discovery import find_runs
from precondqsm_bids.inputs.selection import Selection
from precondqsm_bids.interfaces.volumes import load as load_volume
from precondqsm_bids.method import Method
from precondqsm_bids.numerics import Geometry, b0_direction
from precondqsm_bids.numerics.residual_inversion import Residual
from precondqsm_bids.numerics.solver import noise_weights
from precondqsm_bids.phantom.dataset import write_dataset
from precondqsm_bids.phantom.head_spec import HeadSpec, hard_head
from precondqsm_bids.phantom.tissues import INDEX, LESIONS, NUCLEI, of_tissues

TRUTH = Path('derivatives/truth/sub-01/anat')
SMALL = (2.0, 2.0, 2.0)


@dataclass(frozen=True)
class Variant:
    """How one arm departs from the app's defaults."""

    title: str
    prior: tuple[str, ...] = ('contrast',)
    segmentation: str = ''
    """``tissue``: maps of GM, WM and CSF; ``labels``: a label image; else a ``desc`` of maps."""
    r2: float | str = 'median'
    mask: str = 'derivatives'
    contrasts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Case:
    """One head and the arms in which it is reconstructed."""

    title: str
    spec: HeadSpec
    arms: tuple[str, ...]


BOTH = ('tissue', 'r2prime-by-tissue')
ARMS = {
    'r2prime': Variant("bare R2' prior", ('r2prime',)),
    'r2prime-by-tissue': Variant("R2' by tissue class", ('r2prime-by-tissue',), 'tissue'),
    'contrast': Variant('contrast, no segmentation'),
    'tissue': Variant('tissue maps', ('tissue',), 'tissue'),
    'tissue-r2prime': Variant("tissue maps, R2' by tissue", BOTH, 'tissue'),
    'nuclei': Variant('tissue maps with nuclei', ('tissue',), 'nuclei'),
    'nuclei-r2prime': Variant("tissue maps with nuclei, R2' by tissue", BOTH, 'nuclei'),
    'labels': Variant('tissue and nuclei as labels', ('tissue',), 'labels'),
    'contrast-tissue': Variant('contrast and tissue maps', ('contrast', 'tissue'), 'tissue'),
    'contrast-nuclei': Variant(
        'contrast and tissue maps with nuclei', ('contrast', 'tissue'), 'nuclei'
    ),
    'contrast-t1w': Variant('contrast, with a T1w image', contrasts=('T1w',)),
    'whole-head': Variant('contrast, the whole head', mask='object'),
    'shifted': Variant('shifted by 2 mm', ('tissue',), 'shifted'),
    'eroded': Variant('every class eroded by a voxel', ('tissue',), 'eroded'),
    'swapped': Variant('grey and white matter swapped', ('tissue',), 'swapped'),
    'flipped': Variant('front to back', ('tissue',), 'flipped'),
    'r2prime-zero': Variant("R2\\* used as R2' (R2 missing)", ('r2prime',), r2=0.0),
    'r2prime-known': Variant('R2 known', ('r2prime',), r2='map'),
    'nuclei-zero': Variant("R2\\* used as R2' (R2 missing)", BOTH, 'nuclei', r2=0.0),
    'nuclei-known': Variant('R2 known', BOTH, 'nuclei', r2='map'),
    'nuclei-literature': Variant('R2 of the literature', BOTH, 'nuclei', r2='literature'),
}
FULL = (
    'r2prime', 'r2prime-by-tissue', 'contrast', 'contrast-t1w', 'tissue', 'tissue-r2prime',
    'nuclei', 'nuclei-r2prime', 'labels', 'contrast-tissue', 'contrast-nuclei',
)  # fmt: skip
SHORT = ('r2prime', 'contrast', 'tissue', 'nuclei')
HARD = ('r2prime', 'contrast', 'contrast-t1w', 'tissue', 'nuclei')
RATES = (
    'r2prime-zero', 'r2prime-known', 'nuclei-zero', 'nuclei-known', 'nuclei-literature',
)  # fmt: skip
WRONG = ('shifted', 'eroded', 'swapped', 'flipped')
"""Segmentations that are wrong, and the arms that use them."""
CASES = {
    'head-1mm': Case('1 mm', HeadSpec(), FULL),
    'head-2mm': Case('2 mm, averaged from 1 mm', HeadSpec(voxel_size=SMALL), FULL + WRONG + RATES),
    'whole-2mm': Case('2 mm, the whole head', HeadSpec(voxel_size=SMALL), ('whole-head',)),
    'hard-1mm': Case('the hard head, 1 mm', hard_head(), HARD),
    'hard-2mm': Case('the hard head, 2 mm', hard_head(voxel_size=SMALL), HARD),
    **{
        f'relaxivity-{x}': Case(
            f'{x} Hz/ppm, 2 mm', HeadSpec(voxel_size=SMALL, relaxivity=float(x)), SHORT
        )
        for x in (114, 274, 323)
    },
}


COVERAGE = {
    'coverage-tubes': lambda size, seeds: coverage.tubes(
        scaled(case_named('negative').spec, 0.5 / size), seeds
    ),
    'coverage-head': lambda size, seeds: coverage.head(
        HeadSpec(voxel_size=(3.0 * size,) * 3), seeds
    ),
}
"""Standard errors over noise seeds, by the factor on the size of the voxels."""


# --- phantoms --------------------------------------------------------------------------------


NUCLEUS_LABELS = {'red-nucleus': 'RN', 'substantia-nigra': 'SN'}
"""Labels of file names, which are letters and digits, where they are not the tissue's name."""


def phantom_digest():
    """Digest of the code that makes a phantom."""
    return digest(*(PACKAGE / 'phantom').glob('*.py'))


def dataset(spec, cache, further=True):
    """The phantom as a BIDS dataset, written unless it is there; a head with further maps."""
    added = (inspect.getsource(add_maps), inspect.getsource(t1w)) if further else ()
    parts = repr((spec, SEED, phantom_digest(), *added))
    root = cache / 'phantoms' / hashlib.sha256(parts.encode()).hexdigest()[:12]
    if not root.exists():
        part = root.with_name(f'{root.name}.part')
        shutil.rmtree(part, ignore_errors=True)
        write_dataset(part, spec, seed=SEED)
        if further:
            add_maps(part)
        part.rename(root)
    return root


def add_maps(root):
    """Write what the phantom lacks beside its truth.

    Tissue maps with the nuclei apart, wrong ones, the true R2, and a T1w image.
    """
    anat = root / TRUTH
    image = nib.load(anat / 'sub-01_desc-tissues_dseg.nii.gz')
    labels = np.asanyarray(image.dataobj)

    def write(name, data):
        nib.save(nib.Nifti1Image(data.astype(np.float32), image.affine), anat / f'sub-01_{name}')

    write('desc-truth_R2map.nii.gz', of_tissues('r2')[labels])
    (anat / 'sub-01_desc-truth_R2map.json').write_text('{"Units": "1/s"}', encoding='utf-8')
    tissue = ('GM', 'WM', 'CSF')
    maps = [load_volume(anat / f'sub-01_label-{name}_probseg.nii.gz') for name in tissue]
    grey = maps[0].copy()
    # what of a voxel beside a nucleus is grey matter and no cortex is the nucleus
    other = np.where(np.isin(labels, [INDEX[name] for name in NUCLEI]), labels, 0)
    near = np.where(labels == INDEX['GM'], 0, ndimage.maximum_filter(other, 3))
    near = np.where(other > 0, other, near)
    names = list(tissue)
    for name in NUCLEI:
        share = np.where(near == INDEX[name], grey, 0)
        maps[0] -= share
        maps.append(share)
        names.append(NUCLEUS_LABELS.get(name, name))
    shares = np.stack(maps, axis=-1)
    write('desc-simulated_T1w.nii.gz', t1w(labels, shares, [*tissue, *NUCLEI]))
    step = 2 / image.header.get_zooms()[0]
    finest = shares.argmax(axis=-1)
    whole = ndimage.minimum_filter(finest, 3) == ndimage.maximum_filter(finest, 3)
    inside = np.flatnonzero((labels == INDEX['WM']).any(axis=(0, 2)))
    recentre = inside[0] + inside[-1] - (labels.shape[1] - 1)
    versions = {
        'nuclei': shares,
        'shifted': ndimage.shift(shares, (step, 0, 0, 0), order=1),
        'eroded': shares * whole[..., None],
        'swapped': shares[..., [1, 0, *range(2, len(names))]],
        'flipped': np.roll(shares[:, ::-1], recentre, axis=1),
    }
    for version, data in versions.items():
        for i, name in enumerate(names):
            write(f'desc-{version}_label-{name}_probseg.nii.gz', data[..., i])


def t1w(labels, shares, names, snr=40.0):
    """Magnetisation-prepared image: TI 0.9 s, TR 2.3 s, the noise relative to white matter.

    Each voxel has the mean of its tissues where their shares are known, else its label's value.
    """
    t1, density = of_tissues('t1', float), of_tissues('proton_density', float)
    signal = density * (1 - 2 * np.exp(-0.9 / t1) / (1 + np.exp(-2.3 / t1)))
    known = shares.sum(axis=-1)
    mixed = shares @ signal[[INDEX[name] for name in names]]
    image = np.where(known > 0.5, mixed / np.maximum(known, 0.5), signal[labels])
    noise = np.random.default_rng(SEED + 1).standard_normal(labels.shape)
    return image + noise * signal[INDEX['WM']] / snr


# --- reconstruction --------------------------------------------------------------------------


def run_of(root, variant):
    """Settings and files of one arm, found as the app finds them."""
    settings = Settings(
        bids_dir=root,
        output_dir=root / 'out',
        derivatives={'truth': root / 'derivatives' / 'truth'},
        method=Method(
            mask=variant.mask,
            phase_sign=1,  # within a brain mask the field of the shape does not tell it
            prior=variant.prior,
            r2=variant.r2,
            contrasts=variant.contrasts,
        ),
        omp_nthreads=WORKERS,
    )
    method = settings.method
    chosen = {'suffix': 'probseg', 'description': variant.segmentation}
    if variant.segmentation == 'tissue':
        chosen['description'] = None
    elif variant.segmentation == 'labels':
        chosen = {'suffix': 'dseg', 'description': 'tissues'}
    select = Selection(
        filters={'tissue': chosen, 'dseg': {'description': 'tissues'}},
        derivatives=settings.derivatives,
    )
    runs, problems = find_runs(root, select=select, method=method)
    if not runs:
        raise RuntimeError(f'{root}: {"; ".join(map(str, problems))}')
    return settings, runs[0]


def run_workflow(settings, run, work):
    """Run the app's workflow without its last part, which writes; outputs and seconds by node."""
    from precondqsm_bids.workflows.base import init_run_wf

    workflow = init_run_wf(settings, run)
    workflow.remove_nodes([workflow.get_node('outputs_wf')])
    workflow.base_dir = work
    results = {node.name: node.result for node in workflow.run().nodes}
    outputs = {name: result.outputs for name, result in results.items()}
    seconds = {
        name: result.runtime.duration
        for name, result in results.items()
        if hasattr(result.runtime, 'duration')
    }
    return outputs, seconds


def arm_of(outputs, arm):
    """What the workflow left of one arm, as :mod:`reconstruction` takes it."""
    path = outputs['shape_mask'].roi_mask
    affine = nib.load(path).affine
    geometry = Geometry(
        load_volume(path, bool), nib.affines.voxel_sizes(affine), b0_direction(affine), WORKERS
    )
    prefix = 'conventional_' if arm == 'conventional' else ''
    inversion = outputs[f'{prefix}dipole_inversion']
    curve = dict(inversion.l_curve)
    for name in ('reg_weights', 'consistency', 'regularization', 'curvature'):
        curve[name] = np.asarray(curve[name])
    weight, curve['reg_weight'] = curve['reg_weight'], curve.pop('corner')
    field_sd = load_volume(outputs['echo_fit'].field_sd)
    prior_chi = weights = residual = None
    if not prefix:
        if inversion.record['outliers_clipped']:
            size = outputs['prior_fit'].expected_size
            weights = noise_weights(field_sd, geometry.mask, size)
        stage = 'prior_fit' if 'prior_fit' in outputs else 'r2prime_prior'
        prior_chi = load_volume(outputs[stage].prior_chi)
        if inversion.record.get('weighted'):
            residual = Residual(field_sd, prior_chi)
    return Arm(
        name=arm,
        geometry=geometry,
        field_sd=field_sd,
        prior_chi=prior_chi,
        local_field=load_volume(outputs[f'{prefix}background_removal'].local_field),
        weights=weights,
        inversion=SimpleNamespace(
            chi=load_volume(inversion.chi), reg_weight=weight, curve=SimpleNamespace(**curve)
        ),
        residual=residual,
        trust=outputs['prior_fit'].trust if residual else 1.0,
    )


# --- scores ----------------------------------------------------------------------------------


class Truth:
    """What is true of one head."""

    def __init__(self, root):
        anat = root / TRUTH
        self.chi = load_volume(anat / 'sub-01_desc-truth_Chimap.nii.gz')
        self.labels = load_volume(anat / 'sub-01_desc-tissues_dseg.nii.gz', np.int16)
        self.brain = load_volume(anat / 'sub-01_desc-brain_mask.nii.gz', bool)
        self.voxel_size = nib.load(anat / 'sub-01_desc-tissues_dseg.nii.gz').header.get_zooms()

    def planes(self):
        """Axial sections through the nuclei and the lesions (or dentate), one coronal."""

        def most(names, axis):
            inside = np.isin(self.labels, [INDEX[name] for name in names])
            return int(inside.sum(axis=tuple(i for i in range(3) if i != axis)).argmax())

        lesions = np.isin(self.labels, [INDEX[name] for name in LESIONS]).any()
        low = most(LESIONS, 2) if lesions else most(('dentate',), 2)
        return {
            'axial': np.s_[:, :, most(('putamen', 'pallidum', 'caudate'), 2)],
            'low': np.s_[:, :, low],
            'coronal': np.s_[:, most(('red-nucleus', 'substantia-nigra'), 1), :],
        }


class HeadScore(Error):
    """Compares maps with the truth of one head, over the whole brain."""

    def __init__(self, truth, roi):
        super().__init__(truth.chi, truth.brain & roi)
        self.chi = truth.chi
        self.coverage = float(np.mean(roi[truth.brain]))
        self.regions = {
            name: self.roi & (truth.labels == INDEX[name])
            for name in ('GM', 'WM', 'CSF', *NUCLEI, 'vein', *LESIONS)
            if np.any(truth.labels[self.roi] == INDEX[name])
        }

    def values(self, chi):
        """Mean of each region, ppm, relative to the mean of the brain."""
        mean = chi[self.roi].mean(dtype=float)
        return {
            name: float(chi[inside].mean(dtype=float) - mean)
            for name, inside in self.regions.items()
        }

    def __call__(self, chi):
        """NRMSE over the brain and the value of each region."""
        return {'nrmse': self.nrmse(chi), 'values': self.values(chi)}


def record_of(root, case, name, outputs, seconds, truth):
    """Record of one arm (or of the conventional one beside it), and sections of its map."""
    arm = arm_of(outputs, name)
    roi = arm.geometry.mask
    score = HeadScore(truth, roi)
    record = assess(arm, score)
    del record['seconds']
    record |= {
        'spec': asdict(case.spec),
        'true': score.values(truth.chi),
        'brain_voxels': int(truth.brain.sum()),
        'roi_voxels': int(roi.sum()),
        'coverage': score.coverage,
        'node_seconds': seconds,
        'stages': {
            node: outputs[node].record
            for node in ('shape_mask', 'echo_fit', 'r2prime_prior', 'prior_fit', 'comparison')
            if node in outputs
        },
    }
    chi = arm.inversion.chi + (arm.prior_chi if arm.prior_chi is not None else 0)
    if name == 'conventional':
        total = load_volume(outputs['echo_fit'].total_field)
        given = (total, arm.local_field, arm.field_sd, arm.geometry, truth.chi, score.roi)
        record['opponents'] = opponents.assess(*given)
    else:
        errors = opponents.of_default(chi, arm.geometry, truth.chi, score.roi)
        record['opponents_ours'] = errors
    maps = {'voxel_size': np.array(truth.voxel_size)}
    shown = {name: chi - chi[score.roi].mean(), 'true': truth.chi - truth.chi[score.roi].mean()}
    for what, volume in shown.items():
        volume = np.where(score.roi, volume, np.nan).astype(np.float16)
        maps |= {f'{what}-{plane}': volume[at] for plane, at in truth.planes().items()}
    return record, maps


# --- cache -----------------------------------------------------------------------------------


def code_digest():
    """Digest of everything that a result depends on but the set itself."""
    return digest(
        *(PACKAGE / name for name in ('config.py', 'method.py')),
        *PACKAGE.glob('inputs/*.py'),
        *PACKAGE.glob('numerics/**/*.py'),
        *PACKAGE.glob('interfaces/*.py'),
        *PACKAGE.glob('workflows/*.py'),
        *PACKAGE.glob('phantom/*.py'),
        *(ROOT / 'benchmarks' / f'{name}.py' for name in ('reconstruction', 'opponents')),
    )


def key_of(case, name, code):
    """What a cached result must have been made from to be used again."""
    parts = repr((case.spec, ARMS.get(name, name), SEED, code))
    return hashlib.sha256(parts.encode()).hexdigest()[:16]


def run_case(name, case, cache, code, reuse):
    """Compute what the cache lacks of one head."""

    def fresh(arm):
        known = load(cache / f'{name}--{arm}.json')
        return known is not None and (reuse or known['key'] == key_of(case, arm, code))

    def keep(arm, start, outputs, seconds):
        record, maps = record_of(root, case, arm, outputs, seconds, truth)
        record |= {'key': key_of(case, arm, code), 'elapsed': time.perf_counter() - start}
        np.savez_compressed(cache / f'{name}--{arm}.npz', **maps)
        save(cache / f'{name}--{arm}.json', record)
        best = record['rules']['best']['nrmse']
        print(
            f'{name:15s} {arm:18s} {record["elapsed"]:5.0f} s  NRMSE '
            f'{100 * record["rules"]["default"]["nrmse"]:5.1f} %, best lambda {100 * best:5.1f} %',
            flush=True,
        )

    wanted = [arm for arm in case.arms if not fresh(arm)]
    if not wanted and not fresh('conventional'):
        wanted = [case.arms[0]]
    if not wanted:
        return
    start = time.perf_counter()
    root = dataset(case.spec, cache)
    truth = Truth(root)
    print(f'{name:15s} {"simulated":18s} {time.perf_counter() - start:5.0f} s', flush=True)
    work = cache / 'work' / f'{name}-{key_of(case, "work", code)}'
    for arm in wanted:
        start = time.perf_counter()
        outputs, seconds = run_workflow(*run_of(root, ARMS[arm]), work)
        keep(arm, start, outputs, seconds)
        if not fresh('conventional'):
            keep('conventional', time.perf_counter(), outputs, seconds)
    shutil.rmtree(work, ignore_errors=True)


def run_coverage(name, cache, code, reuse, quick):
    """Standard errors over noise seeds, those that the cache lacks."""
    path, key = cache / f'{name}.json', key_of_coverage(name, code)
    record = load(path)
    if record is None or not (reuse or record['key'] == key):
        record = {'key': key, 'elapsed': 0.0, 'rows': []}
    seeds = range(len(record['rows']), coverage.SEEDS)
    start = time.perf_counter()
    for row in COVERAGE[name](2 if quick else 1, seeds) if seeds else ():
        record['rows'].append(row)
        record['elapsed'] += time.perf_counter() - start
        start = time.perf_counter()
        save(path, record)
    print(f'{name:15s} {len(record["rows"])} seeds {record["elapsed"]:5.0f} s', flush=True)


def key_of_coverage(name, code):
    """As :func:`key_of`."""
    own = digest(ROOT / 'benchmarks' / 'coverage.py')
    return hashlib.sha256(repr((name, own, code)).encode()).hexdigest()[:16]


def quiet(cache, level=logging.ERROR):
    """Let Nipype stop at the first crash, keep its crash files in a folder and say little."""
    configure_nipype(cache, stop_on_first_crash=True, resource_monitor=False, debug=False)
    for name in ('nipype', 'nipype.workflow', 'nipype.utils', 'nipype.interface'):
        logging.getLogger(name).setLevel(level)


def main(argv=None):
    """Command line; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    names = [*CASES, *COVERAGE]
    parser.add_argument('--only', nargs='+', metavar='NAME', choices=names, default=names)
    parser.add_argument('--arms', nargs='+', metavar='ARM', choices=list(ARMS), help='only these')
    parser.add_argument('--quick', action='store_true', help='twice the voxel size, other page')
    parser.add_argument('--cache', type=Path, default=ROOT / 'build' / 'heads')
    parser.add_argument('--output', type=Path, help='folder of the page (docs)')
    parser.add_argument('--reuse', action='store_true', help='take results of other code too')
    parser.add_argument('--no-page', action='store_true', help='fill the cache only')
    args = parser.parse_args(argv)
    cache = (args.cache / 'quick' if args.quick else args.cache).resolve()
    cache.mkdir(parents=True, exist_ok=True)
    output = args.output or (cache / 'page' if args.quick else ROOT / 'docs')
    cases = {name: coarser(case) if args.quick else case for name, case in CASES.items()}
    quiet(cache)
    code = code_digest()
    for name in args.only:
        if name in COVERAGE:
            run_coverage(name, cache, code, args.reuse, args.quick)
            continue
        case = cases[name]
        if args.arms:
            case = replace(case, arms=tuple(a for a in case.arms if a in args.arms))
        run_case(name, case, cache, code, args.reuse)
    if not args.no_page:
        records = {}
        for name, case in cases.items():
            found = {arm: load(cache / f'{name}--{arm}.json') for arm in arms_of(case)}
            records[name] = {arm: record for arm, record in found.items() if record}
        stale = [
            f'{name} {arm}'
            for name, found in records.items()
            for arm, record in found.items()
            if record['key'] != key_of(cases[name], arm, code)
        ]
        covered = {name: load(cache / f'{name}.json') for name in COVERAGE}
        covered = {name: record for name, record in covered.items() if record}
        stale += [n for n, r in covered.items() if r['key'] != key_of_coverage(n, code)]
        heads_page.write(
            output, cache, cases, ARMS, records, covered, versions(), stale, args.quick
        )
        print(f'wrote {output / "heads.md"}')
    return 0


def arms_of(case):
    """The arms that a head is scored in."""
    return ('conventional', *case.arms)


def coarser(case):
    """The same head with voxels of twice the size."""
    size = tuple(2 * x for x in case.spec.voxel_size)
    return replace(case, spec=replace(case.spec, voxel_size=size))


if __name__ == '__main__':
    sys.exit(main())
