"""Checks of settings together, and of the files and folders that they name."""

from importlib.util import find_spec
from pathlib import Path

from precondqsm_bids.cli.option_types import TIMEOUT
from precondqsm_bids.cli.options import LEVELS, STOPS
from precondqsm_bids.config import Settings
from precondqsm_bids.method import MASK_WORDS, REFERENCE_WORDS

ALONE = ('reports_only', 'boilerplate_only', 'dry_run')
"""Settings that each say what a call does, instead of computing."""

LEAST_MEMORY = 0.1
"""Memory with which anything can run, GiB."""


def check(settings: Settings) -> None:
    """Raise ValueError if the settings cannot be met; the message says what is wrong."""
    if settings.analysis_level not in LEVELS:
        raise ValueError(
            f'analysis_level = {settings.analysis_level} should be one of {", ".join(LEVELS)}'
        )
    _check_folders(settings)
    _check_names(settings)
    _check_resources(settings)
    _check_alone(settings)
    _check_submission(settings)
    _check_files(settings)
    _check_inversion(settings)


def _check_folders(settings: Settings) -> None:
    """Raise ValueError if dataset, output and work folder are missing or in each other's way."""
    bids_dir, output_dir = settings.bids_dir.resolve(), settings.output_dir.resolve()
    work_dir = settings.work_dir.resolve() if settings.work_dir else None
    if not bids_dir.is_dir():
        raise ValueError(f'no such folder: {settings.bids_dir}')
    if output_dir == bids_dir:
        raise ValueError(
            f'the output folder is the dataset itself: {settings.output_dir}; give another, '
            f'such as {settings.bids_dir / "derivatives" / "precondqsm_bids"}'
        )
    if output_dir in bids_dir.parents:
        raise ValueError(
            f'the dataset {settings.bids_dir} is inside the output folder; give another'
        )
    if work_dir and (work_dir == bids_dir or bids_dir in work_dir.parents):
        raise ValueError(
            f'the work folder {work_dir} is inside the dataset, where other programs would '
            'find its files; give another with -w'
        )
    if work_dir == output_dir:
        raise ValueError(
            f'the work folder is the output folder {output_dir}; give another with -w'
        )
    if settings.output_dir.exists() and not settings.output_dir.is_dir():
        raise ValueError(f'the output folder is a file: {settings.output_dir}')


def _check_names(settings: Settings) -> None:
    """Raise ValueError if the output is another dataset, or two datasets have one name."""
    from precondqsm_bids.outputs.dataset import dataset_links, whose_dataset

    if other := whose_dataset(settings.output_dir):
        raise ValueError(
            f'the output folder {settings.output_dir} is {other}, whose description would be '
            'written over: give a folder of its own'
        )
    names = {path.resolve(): name for name, path in settings.derivatives.items()}
    for name, path in settings.derivatives.items():
        if names[path.resolve()] != name:
            raise ValueError(
                f'-d/--derivatives: {path} has two names, "{name}" and "{names[path.resolve()]}": '
                'give it once'
            )
    raw = settings.derivatives.get('raw')
    if raw and raw.resolve() != settings.bids_dir.resolve():
        raise ValueError(
            f'-d/--derivatives: "raw" is the name of the dataset itself: give NAME={raw}'
        )
    if settings.analysis_level == 'participant':
        dataset_links(settings.output_dir, settings.bids_dir, settings.derivatives)


def _check_resources(settings: Settings) -> None:
    """Raise ValueError if there are too few resources, or limits that nothing would keep."""
    if settings.omp_nthreads > settings.nprocs:
        raise ValueError(
            f'--omp-nthreads {settings.omp_nthreads} is more than --nprocs {settings.nprocs}'
        )
    if settings.nprocs < 1 or settings.omp_nthreads < 1 or settings.mem_gb <= 0:
        raise ValueError('--nprocs, --omp-nthreads and --mem should be positive')
    if settings.mem_gb < LEAST_MEMORY:
        raise ValueError(
            f'--mem is {1024 * settings.mem_gb:.3g} MB, and nothing runs in less than '
            f'{1024 * LEAST_MEMORY:.0f} MB: give it with a unit, such as 8G'
        )
    if settings.resource_monitor and find_spec('psutil') is None:
        raise ValueError('--resource-monitor needs psutil: pip install psutil')
    if settings.node_timeout is None:
        return
    TIMEOUT.check('--node-timeout', settings.node_timeout)
    if settings.use_plugin:
        raise ValueError(
            '--node-timeout does not go with --use-plugin: give the limit in its plugin_args'
        )


def _check_alone(settings: Settings) -> None:
    """Raise ValueError if of two options one would have no effect."""
    asked = [f'--{name.replace("_", "-")}' for name in ALONE if getattr(settings, name)]
    if len(asked) > 1:
        raise ValueError(f'{asked[0]} does not go with {asked[1]}: leave out one of them')
    if settings.reports_only and settings.clean_workdir:
        raise ValueError(
            '--clean-workdir does not go with --reports-only, which has no work folder: leave out '
            'one of them'
        )


def _check_submission(settings: Settings) -> None:
    """Raise ValueError if options do not go with ``--submit``, or not without it."""
    if not settings.submit:
        if settings.submit_limit or settings.submit_time:
            raise ValueError('--submit-limit and --submit-time need --submit')
        return
    for name in ('use_plugin', 'boilerplate_only', 'reports_only'):
        if getattr(settings, name):
            option = f'--{name.replace("_", "-")}'
            raise ValueError(f'--submit does not go with {option}: leave out one of them')


def _check_files(settings: Settings) -> None:
    """Raise ValueError if the method lacks files to read, or has none to write."""
    method = settings.method
    if not method.reference.strip():
        raise ValueError('--reference is empty: give roi-mean, none or the name of a label')
    if method.mask == 'derivatives' and not settings.derivatives:
        raise ValueError(
            '--mask derivatives needs folders to look in: give them with -d/--derivatives'
        )
    if method.field_given:
        if not settings.derivatives:
            raise ValueError(
                '--field derivatives needs folders to look in: give them with -d/--derivatives'
            )
        if settings.output_dir.resolve() in (p.resolve() for p in settings.derivatives.values()):
            raise ValueError(
                f'the output folder {settings.output_dir} is one of -d/--derivatives, and its '
                'fields would be written over while they are read: give another'
            )
    if method.mask not in MASK_WORDS and not Path(method.mask).is_file():
        words = ', '.join(MASK_WORDS)
        raise ValueError(f'--mask: no such file: {method.mask}; give a file or one of {words}')
    if settings.brain_model and method.mask != 'brain':
        raise ValueError(
            f'--brain-model finds the brain, and --mask is {method.mask}: give --mask brain'
        )
    if settings.brain_model and not (find_spec('nipreps') and find_spec('nipreps.synthstrip')):
        raise ValueError(
            '--brain-model needs the package nipreps-synthstrip: pip install '
            '"precondqsm_bids[brain]", or leave it out to find the brain in the magnitude'
        )
    if missing := [str(path) for path in method.prior_maps if not path.is_file()]:
        raise ValueError(f'--prior map:FILE: no such file: {missing[0]}')
    if method.fit is None and settings.write_prior_labels:
        raise ValueError(
            f'--write-prior-labels: {" ".join(method.prior)} without a fit has no parcels; '
            'give --prior-fit global or clusters, or another --prior'
        )


def _check_inversion(settings: Settings) -> None:
    """Raise ValueError if options do not go with an inversion by another program."""
    found, method = settings.resume_with, settings.method
    if settings.stop_after not in (None, *STOPS):
        raise ValueError(f'stop_after = {settings.stop_after} is not one of {", ".join(STOPS)}')
    if found is None:
        if settings.stop_after and settings.reports_only:
            raise ValueError('--stop-after does not go with --reports-only: leave out one of them')
        return
    for name in ('stop_after', 'submit', 'dry_run', 'boilerplate_only', 'reports_only'):
        if getattr(settings, name):
            option = f'--{name.replace("_", "-")}'
            raise ValueError(f'--resume-with does not go with {option}: leave out one of them')
    if not found.exists():
        raise ValueError(f'--resume-with: no such file or folder: {found}')
    if found.is_dir() and found.resolve() == settings.output_dir.resolve():
        raise ValueError(
            f'--resume-with: {found} is the output folder; give the folder of the other '
            "program's maps"
        )
    if method.reference not in REFERENCE_WORDS:
        raise ValueError(
            f'--reference {method.reference} is a label, which --resume-with does not read: give '
            f'{" or ".join(REFERENCE_WORDS)}'
        )
