"""Types of options: each takes the text of one and returns its value, or says what is wrong."""

import re
from argparse import ArgumentTypeError
from collections.abc import Callable, Sequence
from pathlib import Path

from precondqsm_bids.cli.resources import parse_memory
from precondqsm_bids.method import MASK_WORDS, is_suffix
from precondqsm_bids.terms import MAP
from precondqsm_bids.values import Range

URI_NAME = '[0-9a-zA-Z._-]+'
TIMEOUT = Range(0.01, 1e5, 'minutes')


def path(text: str) -> Path:
    """An absolute path."""
    if not text:
        raise ArgumentTypeError('an empty path')
    return Path(text).expanduser().absolute()


def folder(text: str) -> Path:
    """A folder that is there."""
    if not (found := path(text)).is_dir():
        raise ArgumentTypeError(f'no such folder: {text}')
    return found


def file(text: str) -> Path:
    """A file that is there."""
    if not (found := path(text)).is_file():
        wrong = 'a folder or pipe, not a file' if found.exists() else 'no such file'
        raise ArgumentTypeError(f'{wrong}: {text}')
    return found


def name(text: str) -> str:
    """A name of at least one letter."""
    if not text.strip():
        raise ArgumentTypeError('an empty name')
    return text


def named_folder(text: str) -> tuple[str, Path]:
    """``NAME=PATH``, or a path that is named after its last folder.

    The name is that of BIDS URIs, which have neither spaces nor letters beyond ASCII.
    """
    given, equals, rest = text.partition('=')
    if equals and given and '/' not in given:
        if not re.fullmatch(URI_NAME, given):
            raise ArgumentTypeError(
                f'"{given}" is no name for BIDS URIs: letters, digits, ".", "_" and "-" only'
            )
        return given, folder(rest)
    found = folder(text)
    return re.sub('[^0-9a-zA-Z._-]+', '_', found.resolve().name), found


def mask(text: str) -> str:
    """A word of :data:`~precondqsm_bids.method.MASK_WORDS`, or a path."""
    return text if text in MASK_WORDS else str(path(text))


def map_or_word(text: str) -> str:
    """A word of the prior; the path of a map becomes absolute."""
    return f'{MAP}{path(text.removeprefix(MAP))}' if text.startswith(MAP) else text


def suffix(text: str) -> str:
    """Suffix of a BIDS name."""
    if not is_suffix(text):
        raise ArgumentTypeError(f'"{text}" is not a suffix such as T1w or R1map')
    return text


def label(key: str) -> Callable[[str], str]:
    """Type of a label, with or without its key."""

    def convert(text: str) -> str:
        name = text.removeprefix(f'{key}-')
        if not re.fullmatch(r'[0-9a-zA-Z+]+', name):
            raise ArgumentTypeError(f'"{text}" is not a label: letters and digits only')
        return name

    return convert


def count(text: str) -> int:
    """A whole number of 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f'"{text}" is not a whole number of 1 or more')
    return int(text)


def number(allowed: Range, words: Sequence[str] = ()) -> Callable[[str], float | str]:
    """Type of a number in a range, or one of some words."""

    def convert(text: str) -> float | str:
        if text in words:
            return text
        try:
            value = float(text)
        except ValueError:
            value = float('nan')
        if not allowed.low <= value <= allowed.high:
            raise ArgumentTypeError(
                f'"{text}" is not a number between {allowed.low:g} and {allowed.high:g} '
                f'({allowed.unit})'
            )
        return value

    return convert


def sign(text: str) -> int | None:
    """Sign of the phase; None for ``auto``."""
    if text not in ('auto', '+1', '1', '-1'):
        raise ArgumentTypeError(f'"{text}" is none of auto, +1 and -1')
    return None if text == 'auto' else int(text)


def memory(text: str) -> float:
    """An amount of memory, GiB."""
    try:
        return parse_memory(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from error


def time_limit(text: str) -> str:
    """A time limit as SLURM takes it."""
    if not re.fullmatch(r'\d+|(\d+-)?\d{1,2}:\d\d:\d\d', text, re.ASCII):
        raise ArgumentTypeError(
            f'"{text}" is not a time: write minutes or [DAYS-]HH:MM:SS, such as 2:00:00'
        )
    return text
