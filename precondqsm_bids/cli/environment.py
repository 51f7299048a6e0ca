"""The process that the libraries find: a home, threads, Nipype's settings, where logs go."""

import atexit
import logging
import os
import pwd
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

_BEFORE_END: list[Callable[[], None]] = []

THREAD_VARIABLES = ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS')


def repair_environment() -> None:
    """Make the environment fit for the libraries; to be called before they are imported.

    niworkflows unpacks a catalogue of templates that we do not use into the home folder, and
    fails where there is none: a container run by a user without a passwd entry. Nipype asks a
    server for its newest version, and its batch plugins want a LOGNAME. The linear algebra
    has one thread in each process: its matrices are small, its threads wait by turning in circles
    on the cores of other nodes, and its sums must not depend on their number.
    """
    home = os.environ.get('HOME', '')
    if not home or home == '/' or not os.access(home, os.W_OK | os.X_OK):
        home = os.environ['HOME'] = _temporary_folder()
        # A font cache in a home that is not there would warn, one per process would be slow.
        os.environ['MPLCONFIGDIR'] = home
        for name in ('XDG_CACHE_HOME', 'XDG_CONFIG_HOME', 'XDG_DATA_HOME'):
            os.environ.pop(name, None)
    templates = os.environ.get('TEMPLATEFLOW_HOME')
    if not templates or not os.path.isdir(templates) or not os.listdir(templates):
        stub = Path(_temporary_folder())
        (stub / 'not-used').touch()
        os.environ['TEMPLATEFLOW_HOME'] = str(stub)
    os.environ['NO_ET'] = os.environ['NIPYPE_NO_ET'] = '1'
    os.environ.setdefault('MPLBACKEND', 'agg')
    os.environ.setdefault('LOGNAME', _user_name())
    for name in THREAD_VARIABLES:
        os.environ[name] = '1'


def configure_nipype(
    log_dir: Path, *, stop_on_first_crash: bool, resource_monitor: bool, debug: bool
) -> None:
    """Nipype's global settings, which a workflow copies when it is built.

    ``log_dir`` takes the crash files of nodes that have no folder of their own.
    """
    from nipype import config
    from nipype import logging as nipype_logging

    level = 'DEBUG' if debug else 'INFO'
    config.update_config(
        {
            'execution': {
                'crashdump_dir': str(log_dir).replace('%', '%%'),  # it is interpolated
                'crashfile_format': 'txt',
                # With the default of 2 s a run of twenty nodes spends most of its time waiting.
                'poll_sleep_duration': '0.05',
                'hash_method': 'content',  # see `interfaces.hashed`
                # A work folder that was moved or is mounted elsewhere still holds its results.
                'use_relative_paths': 'true',
                'job_finished_timeout': '60',
                'stop_on_first_crash': str(stop_on_first_crash).lower(),
                # Its files are shared by all participants: parallel jobs would race for them.
                'create_report': 'false',
                'check_version': 'false',
                'remove_unnecessary_outputs': 'false',
            },
            'logging': {
                'workflow_level': level,
                'utils_level': level,
                'interface_level': level,
                'log_to_file': 'false',
            },
            'monitoring': {'enabled': str(resource_monitor).lower()},
        }
    )
    config.resource_monitor = resource_monitor
    nipype_logging.update_logging(config)


@contextmanager
def logging_to(path: Path, verbose: int) -> Iterator[None]:
    """Send what the libraries say to a file, and to the terminal if ``verbose`` is 2 or more."""
    handlers: list[logging.Handler] = [logging.FileHandler(path, encoding='utf-8')]
    if verbose >= 2:
        handlers.append(logging.StreamHandler(sys.stdout))
    for handler in handlers:
        handler.setFormatter(logging.Formatter('%(asctime)s %(name)s %(levelname)s: %(message)s'))
    loggers = [logging.getLogger(name) for name in ('nipype', 'precondqsm_bids', 'py.warnings')]
    before = [(list(logger.handlers), logger.level, logger.propagate) for logger in loggers]
    # A log that cannot be written (a full disk) is no reason for a traceback at every line.
    raising, logging.raiseExceptions = logging.raiseExceptions, False
    logging.captureWarnings(True)
    for logger in loggers:
        # What we say ourselves is on the terminal already.
        logger.handlers = handlers[: 1 if logger.name == 'precondqsm_bids' else None]
        logger.propagate = False
        logger.setLevel(logging.DEBUG if verbose >= 3 else logging.INFO)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        logging.raiseExceptions = raising
        for logger, (old, level, propagate) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = old, propagate
            logger.setLevel(level)
        for handler in handlers:
            with suppress(OSError):
                handler.close()


@contextmanager
def ending_on_sigterm(message: str) -> Iterator[None]:
    """Turn SIGTERM (a batch system's time limit, ``docker stop``) into an immediate exit.

    SIGHUP, which a terminal that is closed sends, does the same, unless it is ignored (``nohup``).

    The process ends in the handler. An exception would be caught by Nipype, which takes it for
    the failure of whatever node it was looking after; and nothing is lost, since outputs are
    renamed into place and finished nodes stay in the work folder. The message is the last line on
    standard error.
    """

    def end(number: int, frame: FrameType | None) -> None:
        from multiprocessing import active_children

        for action in _BEFORE_END:
            with suppress(Exception):
                action()
        for child in active_children():
            child.kill()
        # Not print: the signal may have interrupted one.
        with suppress(OSError):  # the terminal may be gone
            os.write(2, f'{message}\n'.encode())
        os._exit(128 + number)

    numbers = [
        number
        for number in (signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is not signal.SIG_IGN
    ]
    before: list[Any] = [signal.signal(number, end) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


@contextmanager
def before_sigterm_ends(action: Callable[[], None]) -> Iterator[None]:
    """Have something done before SIGTERM ends the process, inside :func:`ending_on_sigterm`.

    Such as to take jobs out of a queue, which would outlive this process.
    """
    _BEFORE_END.append(action)
    try:
        yield
    finally:
        _BEFORE_END.remove(action)


def python_command() -> list[str]:
    """The Python that runs this, for a job: isolated from the user's packages if this one is."""
    return [sys.executable, *(['-I'] if sys.flags.isolated else [])]


def _user_name() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def _temporary_folder() -> str:
    """A folder that goes when this process (not one that it forked) ends."""
    folder, owner = tempfile.mkdtemp(prefix='precondqsm_bids-'), os.getpid()

    def remove() -> None:
        if os.getpid() == owner:
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder
