"""The options of the command line: one row for each, with its choices, range and help.

The choices and ranges of the method are those of :mod:`precondqsm_bids.method`.
"""

import argparse
from typing import Any

from precondqsm_bids.cli.option_types import (
    TIMEOUT,
    count,
    file,
    folder,
    label,
    map_or_word,
    mask,
    memory,
    name,
    named_folder,
    number,
    path,
    sign,
    suffix,
    time_limit,
)
from precondqsm_bids.cli.presets import PRESETS
from precondqsm_bids.cli.resources import MAX_OMP_NTHREADS, MEMORY_SHARE
from precondqsm_bids.method import (
    BACKGROUNDS,
    FIELD_WORDS,
    INVERSIONS,
    MASK_WORDS,
    PRIOR_FITS,
    R2_WORDS,
    RANGES,
    REFERENCE_WORDS,
    REG_RULES,
    Method,
)
from precondqsm_bids.terms import TERMS
from precondqsm_bids.values import Range

STOPS = ('flattening',)
"""Stages after which a call may stop."""

LEVELS = ('participant', 'group')

GROUP_SETTINGS = frozenset(
    {
        *('bids_dir', 'output_dir', 'analysis_level', 'participant_label', 'session_label'),
        *('skip_bids_validation', 'verbose', 'config_file'),
        # Limits and a place that hold for a level that needs next to nothing.
        *('nprocs', 'omp_nthreads', 'mem_gb', 'work_dir'),
    }
)
"""Settings that may be given at the group level; another would have no effect there."""

RESUME_SETTINGS = GROUP_SETTINGS | {
    *('resume_with', 'reference', 'derivatives', 'report_self_contained'),
    # Refused in other words, and from a settings file too.
    *('stop_after', 'submit', 'dry_run', 'boilerplate_only', 'reports_only'),
}
"""Settings that may be given with ``--resume-with``; another would have no effect there."""

SUBMIT_SETTINGS = frozenset({'submit', 'submit_limit', 'submit_time'})
"""Settings of the submission itself, and not of the jobs."""


def _row(*flags: str, **keywords: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Arguments of ``add_argument``."""
    return flags, keywords


def _switch(flag: str, help: str) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Row of an option that takes no value."""
    return _row(flag, action='store_true', help=help)


def _one_of(*words: str) -> str:
    """Choices as argparse prints them."""
    return f'{{{",".join(words)}}}'


# fmt: off
POSITIONAL = [
    _row('bids_dir', type=folder, help='root folder of the BIDS dataset'),
    _row('output_dir', type=path, help='folder of the derivatives'),
    _row('analysis_level', choices=LEVELS,
         help='participant: reconstruct the runs; group: gather what the participant level left '
         'in the output folder in group_*.tsv and group_report.html'),
]

OPTIONS = {
    'What is processed': [
        _row('--participant-label', '--participant_label', nargs='+', action='extend',
             type=label('sub'), metavar='LABEL',
             help='participants, with or without sub- (default: all)'),
        _row('--session-label', '--session-id', nargs='+', action='extend', type=label('ses'),
             metavar='LABEL', help='sessions, with or without ses- (default: all)'),
        _row('--bids-filter-file', type=file, metavar='FILE.json',
             help='{"megre": {"acquisition": "highres", "run": null}, "dseg": {"description": '
             '"*"}}: a label, a list of labels, null (the entity is absent) or "*" (any) for each '
             'entity'),
        _row('-d', '--derivatives', nargs='+', action='extend', type=named_folder,
             metavar='[NAME=]PATH',
             help='derivative datasets with labels (_dseg and its TSV), masks or tissue; labels '
             'on the grid of the images, the others on any grid in the same scanner space'),
        _row('--bids-database-dir', type=path, metavar='PATH',
             help='keep the index of the dataset here; remove it when the dataset changes'),
        _switch('--skip-bids-validation',
                'do without a valid dataset_description.json, and do not run bids-validator-deno '
                '(which is run where it is installed; its errors go to the log)'),
    ],
    'Method': [
        _row('--preset', nargs='+', action='extend', choices=tuple(PRESETS),
             help='settings by a word, over which other options take precedence: '
             + '; '.join(f'{word}, {preset.help}' for word, preset in PRESETS.items())
             + ' (default: none)'),
        _row('--field-strength', type=number(RANGES['field_strength']), metavar='TESLA',
             help='field strength (T) of images whose metadata lack MagneticFieldStrength, or '
             'have one that cannot be or that ImagingFrequency contradicts'),
        _row('--b0-dir', nargs=3, type=number(Range(-1e6, 1e6, 'a component of a direction')),
             metavar=('X', 'Y', 'Z'),
             help='direction of B0 along the voxel axes; takes precedence over that of the '
             'header, and is needed for images with neither qform nor sform'),
        _row('--field', choices=FIELD_WORDS,
             help='where the total field is from: fitted to the echoes (default), or the '
             '_fieldmap of derivatives (Hz, rad/s, ppm or T by its sidecar; positive where the '
             'frequency is higher) with a _magnitude and, if there is one, an _R2starmap, all in '
             'the folders of --derivatives'),
        _row('--mask', type=mask, metavar=_one_of(*MASK_WORDS, 'FILE'),
             help='region of interest: auto (default) is the brain mask of each run in the '
             'folders of --derivatives, or else the brain of a head and the whole of any other '
             'object, by the magnitude; derivatives takes a _mask of those folders, and is an '
             'error without one; brain and object are what they say, by the magnitude; FILE is '
             'one for all runs'),
        _row('--brain-model', type=file, metavar='FILE.pt',
             help='of --mask brain: weights of SynthStrip (synthstrip.1.pt), which then finds the '
             'brain; needs nipreps-synthstrip'),
        _row('--mask-erosion', type=number(RANGES['mask_erosion']), metavar='MM',
             help='depth (mm) that is taken off the region of interest (default: 0, nothing)'),
        _row('--phase-sign', type=sign, metavar='{auto,+1,-1}',
             help='sign of the stored phase: +1 if it grows with echo time where the field is '
             'stronger, -1 if it falls; auto (default) finds it by the field of the shape of the '
             'object, and assumes what is usual, with a warning, where that does not decide'),
        _row('--prior', nargs='+', action='extend', type=map_or_word, metavar=_one_of(*TERMS),
             help='the first estimate is the sum of: '
             + '; '.join(f'{word}, {term.help}' for word, term in TERMS.items())
             + f' (default: {" ".join(Method.prior)})'),
        _row('--prior-fit', choices=PRIOR_FITS,
             help='how the field chooses the coefficients of r2prime and map:FILE: none (alone '
             'only), one for the whole, or one for each connected cluster; auto (default) is none '
             'for r2prime alone and global otherwise'),
        _row('--contrasts', nargs='+', action='extend', type=suffix, metavar='SUFFIX',
             help='further images on the grid of the run, by the end of their names (T1w, R1map), '
             'which the prior contrast reads beside R2* and magnitude; from the folders of '
             '--derivatives or the dataset'),
        _switch('--write-prior-labels',
                'write the finest parcels of the prior (desc-prior_dseg)'),
        _row('--r2', type=number(RANGES['r2'], R2_WORDS), metavar=_one_of(*R2_WORDS, 'NUMBER'),
             help="R2 (1/s) that is taken from R2* to give R2': median (default), the median R2* "
             'of the region itself; map, the R2map or T2map of the run; literature, by tissue '
             "class at 3 T; 0 takes R2* as R2'"),
        _row('--shape', action=argparse.BooleanOptionalAction,
             help='include the shape of the object, against air, in the first estimate (default: '
             'yes)'),
        _row('--conventional', action=argparse.BooleanOptionalAction,
             help='also compute the maps without preconditioning, to compare (default: yes)'),
        _row('--background', choices=tuple(BACKGROUNDS),
             help='removal of the field of sources outside the region, in both arms: '
             + '; '.join(f'{word}, {words}' for word, words in BACKGROUNDS.items())
             + f' (default: {Method.background})'),
        _row('--pdf-iterations', type=count, metavar='N',
             help=f'iterations of the background removal (default: {Method.pdf_iterations}) by '
             'pdf; they go on from the sources that the fit has found after a prior of '
             + ' or '.join(word for word, term in TERMS.items() if term.describes_interior)),
        _row('--inversion', choices=tuple(INVERSIONS),
             help='inversion of the local field in both arms: '
             + '; '.join(f'{word}, {words}' for word, words in INVERSIONS.items())
             + f' (default: {Method.inversion})'),
        _row('--reg-weight', type=number(RANGES['reg_weight'], REG_RULES),
             metavar=_one_of(*REG_RULES, 'NUMBER'),
             help='weight lambda (mm, of the gradient in 1/mm) of the regularisation in '
             '||D chi - f||^2 + lambda^2 ||grad chi||^2; l-curve takes the corner of the curve, '
             'risk the least expected error, auto (default) the first in the conventional arm '
             'with l2 and the second otherwise'),
        _row('--reference', type=name, metavar=_one_of(*REFERENCE_WORDS, 'NAME'),
             help='what is 0 ppm: the mean of the region (default), nothing, or the mean of a '
             'label'),
    ],
    'Resources': [
        _row('--nprocs', '--nthreads', '--n-cpus', type=count, metavar='N',
             help='CPUs to use (default: those of the affinity mask, the control group and the '
             'batch system: SLURM, PBS, SGE or LSF)'),
        _row('--omp-nthreads', type=count, metavar='N',
             help='threads of one node (default: --nprocs over the participants that are in '
             f'progress at a time, at most {MAX_OMP_NTHREADS})'),
        _row('--mem', dest='mem_gb', type=memory, metavar='SIZE',
             help='memory to use: a number of MB, or with K, M, G or T, such as 1.5G (default: '
             f'{100 * MEMORY_SHARE:g}%% of what host, control group and SLURM allow)'),
        _row('--node-timeout', type=number(TIMEOUT), metavar='MINUTES',
             help='end a node that runs longer than this; it has failed (default: no limit)'),
        _row('--use-plugin', type=file, metavar='FILE.yml',
             help='a Nipype plugin and its plugin_args; not those that submit a graph and return'),
        _row('--submit', choices=('slurm',),
             help='submit one job a participant, as one array, and then the group level, instead '
             'of computing here; with --dry-run, only write the scripts and print where they are'),
        _row('--submit-limit', type=count, metavar='N',
             help='of --submit: jobs that may run at once (default: no limit)'),
        _row('--submit-time', type=time_limit, metavar='TIME',
             help="of --submit: time limit of a participant's job, in minutes or as "
             '[DAYS-]HH:MM:SS (default: estimated from the images)'),
        _switch('--resource-monitor',
                'record memory and CPU of each node beside the log (needs psutil)'),
    ],
    'Running': [
        _row('-w', '--work-dir', type=path, metavar='PATH',
             help='intermediate results; a run that was stopped goes on from them (default: '
             './work, or below TMPDIR where the current folder is not writable)'),
        _switch('--clean-workdir',
                "remove this program's intermediate results from the work folder before the "
                'start'),
        _row('--config-file', type=file, metavar='FILE.toml',
             help='settings as in the config.toml beside each log; the command line takes '
             'precedence'),
        _switch('--write-graph',
                'write the graph of the workflow beside the log (as SVG where dot is installed)'),
        _switch('--stop-on-first-crash',
                'stop everything at the first failure instead of finishing the other '
                'participants'),
        _row('--stop-after', choices=STOPS,
             help='write the flattened field, the prior and what comes before them, for an '
             'inversion by another program'),
        _row('--resume-with', type=path, metavar='PATH',
             help='a susceptibility map (ppm) that another program made of the flattened field '
             'in the output folder, or the folder of such maps, named <run>_..._Chimap: add the '
             'prior again and write desc-precond_Chimap'),
        _switch('--boilerplate-only', 'write the methods text (CITATION.md) and compute nothing'),
        _switch('--reports-only',
                'assemble the reports from what is in the output folder and compute nothing'),
        _switch('--report-self-contained',
                'put the figures into the pages of the participants, each of which then is one '
                'file that needs no other'),
        _switch('--dry-run',
                'print what would be run on which files, and what is wrong with them'),
        _row('-v', '--verbose', action='count',
             help='-v: every node, at the group level every incomplete run; -vv: what Nipype '
             'says; -vvv: debugging'),
    ],
}
# fmt: on
"""Rows of each group of options, in the order of the help."""
