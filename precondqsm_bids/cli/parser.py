"""The command line as :class:`~precondqsm_bids.config.Settings`.

Only the standard library, so that ``--help`` and ``--version`` answer at once.
"""

import argparse
import os
import re
import shutil
import tempfile
from collections.abc import Sequence, Set
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

from precondqsm_bids import __version__
from precondqsm_bids.cli.resources import cpu_limit, memory_limit, parse_memory
from precondqsm_bids.config import Settings, parse_toml
from precondqsm_bids.method import (
    LONGER,
    MASK_WORDS,
    PRIOR_FITS,
    R2_WORDS,
    RANGES,
    REG_RULES,
    TERMS,
    Range,
    is_suffix,
)

MAX_OMP_NTHREADS = 8
"""Fourier transforms of these sizes gain little from more threads."""

LEVELS = ('participant', 'group')

GROUP_SETTINGS = frozenset(
    {
        *('bids_dir', 'output_dir', 'analysis_level', 'participant_label', 'session_label'),
        *('skip_bids_validation', 'verbose', 'config_file'),
        # Limits and a place that hold for a level that needs next to nothing.
        *('nprocs', 'omp_nthreads', 'mem_gb', 'work_dir'),
    }
)
"""What may be given at the group level; another option would have no effect there."""

SUBMIT_SETTINGS = frozenset({'submit', 'submit_limit', 'submit_time'})
"""What is for the submission itself, and not for the jobs."""

TIMEOUT = Range(0.01, 1e5, 'minutes')

MEMORY_SHARE = 0.9
"""Part of the memory limit that the nodes may have; the rest is the main process's."""


class Parser(argparse.ArgumentParser):
    """Usage errors in one line; the whole list of options would hide the message."""

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        self.exit(2, f'{self.prog}: error: {" ".join(message.split())}\n')

    def __init__(self, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.words: list[tuple[argparse.Action, list[str]]] = []

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        """Also keep the words of each option as they were given."""
        self.words.append((action, list(arg_strings)))
        return super()._get_values(action, arg_strings)  # type: ignore[misc]


def build_parser() -> Parser:
    """The parser. What is not on the command line is not in the namespace.

    This tells an option that was given from one that has its default, so that a settings file lies
    between the two.
    """
    parser = Parser(
        prog='precondqsm_bids',
        description='Preconditioned quantitative susceptibility mapping of the multi-echo '
        'gradient-echo images (_MEGRE, multi-echo _T2starw) in a BIDS dataset.',
        epilog='Exit status: 0 done; 1 a participant or its report failed (the last lines say '
        'which, and where its crash file is); 2 usage; 70 nothing to do.',
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument('bids_dir', type=_folder, help='root folder of the BIDS dataset')
    parser.add_argument('output_dir', type=_path, help='folder of the derivatives')
    parser.add_argument(
        'analysis_level',
        choices=LEVELS,
        help='participant: reconstruct the runs; group: gather what the participant level left '
        'in the output folder in group_*.tsv and group_report.html',
    )
    parser.add_argument('--version', action='version', version=f'%(prog)s {__version__}')
    _add_selection(parser.add_argument_group('What is processed'))
    _add_method(parser.add_argument_group('Method'))
    _add_resources(parser.add_argument_group('Resources'))
    _add_modes(parser.add_argument_group('Running'))
    return parser


def _add_selection(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        '--participant-label',
        '--participant_label',
        nargs='+',
        type=_label('sub'),
        metavar='LABEL',
        help='participants, with or without sub- (default: all)',
    )
    group.add_argument(
        '--session-label',
        '--session-id',
        nargs='+',
        type=_label('ses'),
        metavar='LABEL',
        help='sessions, with or without ses- (default: all)',
    )
    group.add_argument(
        '--bids-filter-file',
        type=_file,
        metavar='FILE.json',
        help='{"megre": {"acquisition": "highres", "run": null}, "dseg": {"description": "*"}}: '
        'a label, a list of labels, null (the entity is absent) or "*" (any) for each entity',
    )
    group.add_argument(
        '-d',
        '--derivatives',
        nargs='+',
        type=_named_folder,
        metavar='[NAME=]PATH',
        help='derivative datasets with labels (_dseg and its TSV), or masks for --mask '
        'derivatives, on the grid of the images',
    )
    group.add_argument(
        '--bids-database-dir',
        type=_path,
        metavar='PATH',
        help='keep the index of the dataset here; remove it when the dataset changes',
    )
    group.add_argument(
        '--skip-bids-validation',
        action='store_true',
        help='do without a valid dataset_description.json, and do not run bids-validator-deno '
        '(which is run where it is installed; its errors go to the log)',
    )


def _add_method(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        '--field-strength',
        type=_number(*RANGES['field_strength']),
        metavar='TESLA',
        help='field strength (T) of images whose metadata lack MagneticFieldStrength or have one '
        'that cannot be',
    )
    group.add_argument(
        '--b0-dir',
        nargs=3,
        type=_number(-1e6, 1e6, 'a component of a direction'),
        metavar=('X', 'Y', 'Z'),
        help='direction of B0 along the voxel axes; comes before that of the header, and is '
        'needed for images with neither qform nor sform',
    )
    group.add_argument(
        '--mask',
        type=_mask,
        metavar='{auto,derivatives,FILE}',
        help='region of interest: auto (default) is the object, derivatives takes the _mask of '
        'each run in the folders of --derivatives (desc-brain first), FILE is one for all runs',
    )
    group.add_argument(
        '--mask-erosion',
        type=_number(*RANGES['mask_erosion']),
        metavar='MM',
        help='depth (mm) that is taken off the region of interest (default: 0, nothing)',
    )
    group.add_argument(
        '--phase-sign',
        type=_sign,
        metavar='{auto,+1,-1}',
        help='sign of the stored phase: +1 if it grows with echo time where the field is '
        'stronger, -1 if it falls; auto (default) tells it by the field of the shape of the '
        'object, and assumes what is usual, with a warning, where that does not decide',
    )
    group.add_argument(
        '--prior',
        nargs='+',
        type=_prior,
        metavar=f'{{{",".join(TERMS)}}}',
        help='the first estimate is the sum of: '
        + '; '.join(f'{word}, {item.help}' for word, item in TERMS.items())
        + ' (default: contrast)',
    )
    group.add_argument(
        '--prior-fit',
        choices=PRIOR_FITS,
        help='how the field chooses the coefficients of r2prime and map:FILE: none (alone only), '
        'one for the whole, or one for each connected cluster; auto (default) is none for '
        'r2prime alone and global otherwise',
    )
    group.add_argument(
        '--contrasts',
        nargs='+',
        type=_suffix,
        metavar='SUFFIX',
        help='further images on the grid of the run, by the end of their names (T1w, R1map), '
        'which the prior contrast reads beside R2* and magnitude; from the folders of '
        '--derivatives or the dataset',
    )
    group.add_argument(
        '--write-prior-labels',
        action='store_true',
        help='write the finest parcels of the prior (desc-prior_dseg)',
    )
    group.add_argument(
        '--r2',
        type=_number_or(R2_WORDS, *RANGES['r2']),
        metavar='{median,map,literature,NUMBER}',
        help="R2 (1/s) that is taken from R2* to give R2': median (default), the median R2* of "
        'the region itself; map, the R2map or T2map of the run; literature, by tissue class at '
        "3 T; 0 takes R2* as R2'",
    )
    group.add_argument(
        '--shape',
        action=argparse.BooleanOptionalAction,
        help='include the shape of the object, against air, in the first estimate (default: yes)',
    )
    group.add_argument(
        '--conventional',
        action=argparse.BooleanOptionalAction,
        help='also compute the maps without preconditioning, to compare (default: yes)',
    )
    group.add_argument(
        '--pdf-iterations',
        type=_count,
        metavar='N',
        help=f'iterations of the background removal (default: 30), times {LONGER} after a prior '
        f'of {" or ".join(word for word, item in TERMS.items() if item.describes_interior)}',
    )
    group.add_argument(
        '--reg-weight',
        type=_number_or(REG_RULES, *RANGES['reg_weight']),
        metavar='{auto,l-curve,risk,NUMBER}',
        help='weight lambda (mm, of the gradient in 1/mm) of the regularisation in '
        '||D chi - f||^2 + lambda^2 ||grad chi||^2; l-curve takes the corner of the curve, risk '
        'the least expected error, auto (default) the first in the conventional and the second '
        'in the preconditioned arm',
    )
    group.add_argument(
        '--reference',
        metavar='{roi-mean,none,NAME}',
        help='what is 0 ppm: the mean of the region (default), nothing, or the mean of a label',
    )


def _add_resources(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        '--nprocs',
        '--nthreads',
        '--n-cpus',
        type=_count,
        metavar='N',
        help='CPUs to use (default: those of the affinity mask, the control group and SLURM)',
    )
    group.add_argument(
        '--omp-nthreads',
        type=_count,
        metavar='N',
        help=f'threads of one node (default: --nprocs, at most {MAX_OMP_NTHREADS})',
    )
    group.add_argument(
        '--mem',
        dest='mem_gb',
        type=_memory,
        metavar='SIZE',
        help='memory to use: a number of MB, or with K, M, G or T, such as 1.5G (default: '
        f'{MEMORY_SHARE:.0%} of what host, control group and SLURM allow)'.replace('%', '%%'),
    )
    group.add_argument(
        '--node-timeout',
        type=_number(*TIMEOUT),
        metavar='MINUTES',
        help='end a node that runs longer than this; it has failed (default: no limit)',
    )
    group.add_argument(
        '--use-plugin',
        type=_file,
        metavar='FILE.yml',
        help='a Nipype plugin and its plugin_args; not those that submit a graph and return',
    )
    group.add_argument(
        '--submit',
        choices=('slurm',),
        help='submit one job a participant, as one array, and then the group level, instead of '
        'computing here; with --dry-run, only write the scripts and print where they are',
    )
    group.add_argument(
        '--submit-limit',
        type=_count,
        metavar='N',
        help='of --submit: jobs that may run at once (default: no limit)',
    )
    group.add_argument(
        '--submit-time',
        type=_time_limit,
        metavar='TIME',
        help='of --submit: time limit of a job, in minutes or as [DAYS-]HH:MM:SS (default: '
        "the cluster's)",
    )
    group.add_argument(
        '--resource-monitor',
        action='store_true',
        help='record memory and CPU of each node beside the log (needs psutil)',
    )


def _add_modes(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        '-w',
        '--work-dir',
        type=_path,
        metavar='PATH',
        help='intermediate results; a run that was stopped goes on from them (default: ./work, or '
        'below TMPDIR where the current folder is not writable)',
    )
    group.add_argument(
        '--clean-workdir',
        action='store_true',
        help="remove this program's intermediate results from the work folder before the start",
    )
    group.add_argument(
        '--config-file',
        type=_file,
        metavar='FILE.toml',
        help='settings as in the config.toml beside each log; the command line comes first',
    )
    group.add_argument(
        '--write-graph',
        action='store_true',
        help='write the graph of the workflow beside the log (as SVG where dot is installed)',
    )
    group.add_argument(
        '--stop-on-first-crash',
        action='store_true',
        help='stop everything at the first failure instead of finishing the other participants',
    )
    group.add_argument(
        '--boilerplate-only',
        action='store_true',
        help='write the methods text (CITATION.md) and compute nothing',
    )
    group.add_argument(
        '--reports-only',
        action='store_true',
        help='assemble the reports from what is in the output folder and compute nothing',
    )
    group.add_argument(
        '--dry-run',
        action='store_true',
        help='print what would be run on which files, and what is wrong with them',
    )
    group.add_argument(
        '-v',
        '--verbose',
        action='count',
        help='-v: every node, at the group level every incomplete run; -vv: what Nipype says; '
        '-vvv: debugging',
    )


def parse_args(argv: Sequence[str] | None = None) -> Settings:
    """The settings of a command line.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments without the program's name.

    Raises
    ------
    SystemExit
        With status 2 and a message of one line if the command line cannot be met.
    """
    parser = build_parser()
    given = vars(parser.parse_args(argv))
    if given['analysis_level'] == 'group' and (useless := set(given) - GROUP_SETTINGS):
        actions = {action.dest: action.option_strings for action in parser._actions}
        options = ', '.join(sorted(max(actions[name], key=len) for name in useless))
        parser.error(
            f'the group level reads what the participant level left in the output folder; '
            f'{options} would have no effect there: leave it out'
        )
    values: dict[str, Any] = {}
    if path := given.pop('config_file', None):
        try:
            values = parse_toml(path.read_text(encoding='utf-8'))
        except (OSError, ValueError) as error:
            parser.error(f'{path}: {error}')
        if fixed := sorted(SUBMIT_SETTINGS & set(values)):  # the jobs read this file, too
            parser.error(f'{path}: {", ".join(fixed)} goes on the command line only')
    if path := given.pop('bids_filter_file', None):
        from precondqsm_bids.bids import InputError, read_filters

        try:
            given['bids_filters'] = read_filters(path)
        except InputError as error:
            parser.error(str(error))
    if pairs := given.get('derivatives'):
        if len({name for name, _ in pairs}) < len(pairs):
            parser.error('-d/--derivatives: two folders of the same name; use NAME=PATH')
        given['derivatives'] = dict(pairs)
    for name in ('participant_label', 'session_label'):
        if name in given:
            given[name] = tuple(dict.fromkeys(given[name]))
    if 'b0_dir' in given:
        given['b0_dir'] = tuple(given['b0_dir'])
    if 'contrasts' in given:
        given['contrasts'] = tuple(dict.fromkeys(given['contrasts']))
    if 'prior' in given:
        given['prior'] = tuple(given['prior'])
    if given.get('phase_sign') == 'auto':
        given['phase_sign'] = None
    if given.get('reg_weight') in REG_RULES:
        given['reg_rule'], given['reg_weight'] = given['reg_weight'], None
    values |= given
    values.setdefault('nprocs', int(cpu_limit().value))
    values.setdefault('omp_nthreads', min(values['nprocs'], MAX_OMP_NTHREADS))
    values.setdefault('mem_gb', round(memory_limit().value * MEMORY_SHARE, 2))
    values.setdefault('work_dir', _default_work_dir())
    try:
        settings = Settings.from_values(values)
    except ValueError as error:  # of the method, whose message opens with the name of the field
        name, *rest = str(error).split(maxsplit=1)
        parser.error(' '.join([f'--{name.replace("_", "-")}', *rest]))
    if message := check(settings):
        parser.error(message)
    return settings


def option_words(
    argv: Sequence[str], only: Set[str] | None = None, without: Set[str] = frozenset()
) -> list[str]:
    """The options of a command line that are to be passed on, as they were given.

    Parameters
    ----------
    argv : sequence of str
        Arguments without the program's name, which can be parsed.
    only : set of str, optional
        Names of settings: no other option is taken.
    without : set of str
        Names of settings whose options are left out.
    """
    parser = build_parser()
    given = vars(parser.parse_args(argv))
    words: list[str] = []
    # Of an option that was given twice the last one holds; -v counts.
    last = {action.dest: i for i, (action, _) in enumerate(parser.words)}
    for i, (action, values) in enumerate(parser.words):
        name = action.dest
        if not action.option_strings or name in without or (only is not None and name not in only):
            continue
        if i < last[name] and name != 'verbose':
            continue
        option = next(text for text in action.option_strings if text.startswith('--'))
        if isinstance(action, argparse.BooleanOptionalAction):
            option = next(
                text
                for text in action.option_strings
                if text.startswith('--no-') is not given[name]
            )
        words += [f'{option}={values[0]}'] if action.nargs is None else [option, *values]
    return words


def stated_settings(argv: Sequence[str]) -> frozenset[str]:
    """Names of the settings that a command line and its settings file give."""
    given = vars(build_parser().parse_args(argv))
    path = given.get('config_file')
    return frozenset({*given, *(parse_toml(path.read_text(encoding='utf-8')) if path else ())})


def check(settings: Settings) -> str:
    """What makes the settings impossible, or an empty string."""
    bids_dir, output_dir = settings.bids_dir.resolve(), settings.output_dir.resolve()
    work_dir = settings.work_dir.resolve() if settings.work_dir else None
    if settings.analysis_level not in LEVELS:
        return f'analysis_level = {settings.analysis_level} should be one of {", ".join(LEVELS)}'
    if not bids_dir.is_dir():
        return f'no such folder: {settings.bids_dir}'
    if output_dir == bids_dir:
        return (
            f'the output folder is the dataset itself: {settings.output_dir}; give another, '
            f'such as {settings.bids_dir / "derivatives" / "precondqsm_bids"}'
        )
    if output_dir in bids_dir.parents:
        return f'the dataset {settings.bids_dir} is inside the output folder; give another'
    if work_dir and (work_dir == bids_dir or bids_dir in work_dir.parents):
        return (
            f'the work folder {work_dir} is inside the dataset, where other programs would '
            'find its files; give another with -w'
        )
    if work_dir == output_dir:
        return f'the work folder is the output folder {output_dir}; give another with -w'
    if settings.output_dir.exists() and not settings.output_dir.is_dir():
        return f'the output folder is a file: {settings.output_dir}'
    if settings.omp_nthreads > settings.nprocs:
        return f'--omp-nthreads {settings.omp_nthreads} is more than --nprocs {settings.nprocs}'
    if settings.nprocs < 1 or settings.omp_nthreads < 1 or settings.mem_gb <= 0:
        return 'nprocs, omp_nthreads and the memory should be positive'
    if settings.resource_monitor and find_spec('psutil') is None:
        return '--resource-monitor needs psutil: pip install psutil'
    if settings.node_timeout and settings.use_plugin:
        return '--node-timeout does not go with --use-plugin: give the limit in its plugin_args'
    return _check_submit(settings) or _check_method(settings)


def _check_submit(settings: Settings) -> str:
    """As :func:`check`, of the submission."""
    if not settings.submit:
        if settings.submit_limit or settings.submit_time:
            return '--submit-limit and --submit-time need --submit'
        return ''
    for name in ('use_plugin', 'boilerplate_only', 'reports_only'):
        if getattr(settings, name):
            return f'--submit does not go with --{name.replace("_", "-")}: leave out one of them'
    return ''


def _check_method(settings: Settings) -> str:
    """As :func:`check`, of what the method does not know: files and folders."""
    method, timeout = settings.method, settings.node_timeout
    if timeout is not None and not TIMEOUT.low <= timeout <= TIMEOUT.high:
        return f'node_timeout = {timeout:g} should be between {TIMEOUT.low} and {TIMEOUT.high:g}'
    if method.mask == 'derivatives' and not settings.derivatives:
        return '--mask derivatives needs folders to look in: give them with -d/--derivatives'
    if method.mask not in MASK_WORDS and not Path(method.mask).is_file():
        return f'--mask: no such file: {method.mask}; give a file, auto or derivatives'
    if missing := [str(path) for path in method.prior_maps if not path.is_file()]:
        return f'--prior map:FILE: no such file: {missing[0]}'
    if method.fit is None and settings.write_prior_labels:
        return (
            f'--write-prior-labels: {" ".join(method.prior)} without a fit has no parcels; '
            'give --prior-fit global or clusters, or another --prior'
        )
    return ''


def graph_renderer() -> str | None:
    """Path of Graphviz's ``dot``, without which a graph stays a text file."""
    return shutil.which('dot')


# -- types of options ---------------------------------------------------------------------------


def _path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError('an empty path')
    return Path(text).expanduser().absolute()


def _folder(text: str) -> Path:
    if not (path := _path(text)).is_dir():
        raise argparse.ArgumentTypeError(f'no such folder: {text}')
    return path


def _file(text: str) -> Path:
    if not (path := _path(text)).is_file():
        raise argparse.ArgumentTypeError(f'no such file: {text}')
    return path


def _mask(text: str) -> str:
    return text if text in MASK_WORDS else str(_path(text))


def _prior(text: str) -> str:
    return f'map:{_path(text[4:])}' if text.startswith('map:') else text


def _suffix(text: str) -> str:
    if not is_suffix(text):
        raise argparse.ArgumentTypeError(f'"{text}" is not a suffix such as T1w or R1map')
    return text


def _named_folder(text: str) -> tuple[str, Path]:
    """``NAME=PATH``, or a path that is named after its last folder."""
    name, equals, rest = text.partition('=')
    if equals and name and '/' not in name:
        return name, _folder(rest)
    path = _folder(text)
    return path.resolve().name, path


def _label(key: str) -> Any:
    def convert(text: str) -> str:
        label = text.removeprefix(f'{key}-')
        if not re.fullmatch(r'[0-9a-zA-Z+]+', label):
            raise argparse.ArgumentTypeError(f'"{text}" is no label: letters and digits only')
        return label

    return convert


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'"{text}" is no whole number of 1 or more')
    return int(text)


def _time_limit(text: str) -> str:
    if not re.fullmatch(r'\d+|(\d+-)?\d{1,2}:\d\d:\d\d', text, re.ASCII):
        raise argparse.ArgumentTypeError(
            f'"{text}" is no time: write minutes or [DAYS-]HH:MM:SS, such as 2:00:00'
        )
    return text


def _memory(text: str) -> float:
    try:
        return parse_memory(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _number(low: float, high: float, unit: str) -> Any:
    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float('nan')
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(
                f'"{text}" is no number between {low:g} and {high:g} ({unit})'
            )
        return value

    return convert


def _number_or(words: Sequence[str], low: float, high: float, unit: str) -> Any:
    number = _number(low, high, unit)

    def convert(text: str) -> float | str:
        return text if text in words else number(text)

    return convert


def _sign(text: str) -> int | str:
    if text not in ('auto', '+1', '1', '-1'):
        raise argparse.ArgumentTypeError(f'"{text}" is none of auto, +1 and -1')
    return text if text == 'auto' else int(text)


def _default_work_dir() -> Path:
    """``./work``; a container may start in a folder that nobody can write to."""
    here = Path.cwd() / 'work'
    if os.access(here if here.is_dir() else here.parent, os.W_OK):
        return here
    return Path(tempfile.gettempdir()) / f'precondqsm_bids-{os.getuid()}'
