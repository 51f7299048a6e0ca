"""The command line as :class:`~precondqsm_bids.config.Settings`.

Only the standard library, so that ``--help`` and ``--version`` answer at once.
"""

import argparse
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any

from precondqsm_bids import __version__
from precondqsm_bids.cli.checks import check
from precondqsm_bids.cli.option_types import map_or_word, mask
from precondqsm_bids.cli.option_types import path as path_of
from precondqsm_bids.cli.options import (
    GROUP_SETTINGS,
    OPTIONS,
    POSITIONAL,
    RESUME_SETTINGS,
    SUBMIT_SETTINGS,
)
from precondqsm_bids.cli.presets import preset_values
from precondqsm_bids.cli.resources import MAX_OMP_NTHREADS, MEMORY_SHARE, cpu_limit, memory_limit
from precondqsm_bids.cli.work_folder import default_work_dir
from precondqsm_bids.config import Settings, parse_toml
from precondqsm_bids.method import REG_RULES
from precondqsm_bids.usage import OneLineParser


class Parser(OneLineParser):
    """The parser of the app, which also keeps the words of each option as they were given."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.words: list[tuple[argparse.Action, list[str]]] = []

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        """Also keep the words of each option as they were given."""
        self.words.append((action, list(arg_strings)))
        return super()._get_values(action, arg_strings)  # type: ignore[misc]


def build_parser() -> Parser:
    """The parser. An option that is not on the command line is not in the namespace.

    This distinguishes an option that was given from one that has its default, so that a settings
    file lies between the two.
    """
    parser = Parser(
        prog='precondqsm_bids',
        description='Preconditioned quantitative susceptibility mapping of the multi-echo '
        'gradient-echo images (_MEGRE, multi-echo _T2starw) in a BIDS dataset.',
        epilog='Exit status: 0 done; 1 a participant or its report failed (the last lines say '
        'which, and where its crash file is); 2 usage; 70 nothing to do; 129, 130, 143 terminal '
        'closed, interrupted, terminated.',
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    for flags, keywords in POSITIONAL:
        parser.add_argument(*flags, **keywords)
    parser.add_argument('--version', action='version', version=f'%(prog)s {__version__}')
    for title, rows in OPTIONS.items():
        group = parser.add_argument_group(title)
        for flags, keywords in rows:
            group.add_argument(*flags, **keywords)
    return parser


def parse_args(argv: Sequence[str] | None = None) -> Settings:
    """The settings of a command line (without the program's name).

    Raises SystemExit, with status 2 and a message of one line, if it cannot be met.
    """
    parser = build_parser()
    given = vars(parser.parse_args(argv))
    try:
        if given['analysis_level'] == 'group':
            _refuse(
                parser, set(given) - GROUP_SETTINGS, 'the group level', 'the participant level'
            )
        elif 'resume_with' in given:
            useless = set(given) - RESUME_SETTINGS
            _refuse(parser, useless, '--resume-with', '--stop-after flattening')
        of_file = _of_file(parser, given.pop('config_file', None))
        preset = preset_values(given.pop('preset', ()))
        values = {**of_file, **preset, **_as_settings(given)}
        values.setdefault('nprocs', int(cpu_limit().value))
        values.setdefault('omp_nthreads', min(values['nprocs'], MAX_OMP_NTHREADS))
        values.setdefault('mem_gb', round(memory_limit().value * MEMORY_SHARE, 2))
        values.setdefault('work_dir', default_work_dir())
        settings = Settings.from_values(values)
        check(settings)
    except ValueError as error:
        # Outside the command line a message opens with the name of a field, and may name others.
        parser.error(parser.in_options(str(error)))
    return settings


def _of_file(parser: Parser, path: Path | None) -> dict[str, Any]:
    """The settings of a file, if there is one; its errors keep the names that are in the file."""
    try:
        return read_settings(path) if path else {}
    except ValueError as error:
        parser.error(str(error))


def _refuse(parser: Parser, useless: Set[str], reader: str, writer: str) -> None:
    """Raise ValueError if settings were given that have no effect."""
    if useless:
        raise ValueError(
            f'{reader} reads what {writer} left in the output folder; '
            f'{", ".join(sorted(map(parser.option, useless)))} would have no effect there: '
            'leave it out'
        )


def read_settings(path: Path) -> dict[str, Any]:
    """The settings of a file.

    Raises ValueError if it cannot be read, or has what goes on the command line only.
    """
    try:
        values = parse_toml(path.read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise ValueError(f'{path}: {error}') from error
    if fixed := sorted(SUBMIT_SETTINGS & set(values)):  # the jobs read this file, too
        raise ValueError(f'{path}: {", ".join(fixed)} goes on the command line only')
    return {name: _absolute(name, value) for name, value in values.items()}


def _absolute(name: str, value: Any) -> Any:
    """The value of a setting with its paths as those of an option: of the current folder."""
    if isinstance(value, Path):
        return path_of(str(value))
    if name == 'derivatives':
        return {key: path_of(str(folder)) for key, folder in value.items()}
    if name == 'mask':
        return mask(value)
    if name == 'prior':
        return tuple(map_or_word(word) for word in value)
    return value


def _as_settings(given: dict[str, Any]) -> dict[str, Any]:
    """Options that were given as values of settings.

    Raises ValueError if two folders have one name, or the file of filters cannot be used.
    """
    values = dict(given)
    if path := values.pop('bids_filter_file', None):
        from precondqsm_bids.inputs.selection import read_filters

        values['bids_filters'] = read_filters(path)
    if pairs := values.get('derivatives'):
        values['derivatives'] = dict(pairs)
        if len(values['derivatives']) < len(pairs):
            raise ValueError('-d/--derivatives: two folders of the same name; use NAME=PATH')
    for name in {'participant_label', 'session_label', 'contrasts'} & set(values):
        values[name] = tuple(dict.fromkeys(values[name]))
    for name in {'b0_dir', 'prior'} & set(values):
        values[name] = tuple(values[name])
    if values.get('reg_weight') in REG_RULES:
        values['reg_rule'], values['reg_weight'] = values['reg_weight'], None
    return values


def option_words(
    argv: Sequence[str], only: Set[str] | None = None, without: Set[str] = frozenset()
) -> list[str]:
    """The options of a valid command line that are to be passed on, as they were given.

    ``only`` and ``without`` are names of settings: no others are taken, or these are left out.
    """
    parser = build_parser()
    given = vars(parser.parse_args(argv))
    words: list[str] = []
    # Of an option that was given twice the last one holds; lists grow, and -v counts.
    last = {action.dest: i for i, (action, _) in enumerate(parser.words)}
    for i, (action, values) in enumerate(parser.words):
        name = action.dest
        if not action.option_strings or name in without or (only is not None and name not in only):
            continue
        if i < last[name] and action.nargs != '+' and name != 'verbose':
            continue
        option = next(text for text in action.option_strings if text.startswith('--'))
        if isinstance(action, argparse.BooleanOptionalAction) and not given[name]:
            option = f'--no-{option.removeprefix("--")}'
        words += [f'{option}={values[0]}'] if action.nargs is None else [option, *values]
    return words


def stated_settings(argv: Sequence[str]) -> frozenset[str]:
    """Names of the settings that a command line and its settings file give."""
    given = vars(build_parser().parse_args(argv))
    path = given.get('config_file')
    of_file = parse_toml(path.read_text(encoding='utf-8')) if path else {}
    return frozenset({*given, *of_file, *preset_values(given.pop('preset', ()))})
