"""The process that the libraries find, and that a test finds again."""

import json
import logging
import os
import subprocess
import sys
import warnings

import pytest

from precondqsm_bids.cli.environment import configure_nipype, logging_to, repair_environment


@pytest.fixture
def environment(monkeypatch):
    """A copy of the environment without what the machine happens to set."""
    for name in ('TEMPLATEFLOW_HOME', 'LOGNAME', 'MPLBACKEND', 'MPLCONFIGDIR', 'NO_ET'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, 'environ', os.environ.copy())
    return os.environ


@pytest.mark.parametrize('home', [None, '', '/', '/nonexistent'])
def test_home_is_repaired(environment, home):
    environment.pop('HOME', None)
    if home is not None:
        environment['HOME'] = home
    environment['XDG_CACHE_HOME'] = '/nonexistent/cache'
    repair_environment()
    assert os.access(environment['HOME'], os.W_OK)
    assert environment['HOME'] != home
    assert 'XDG_CACHE_HOME' not in environment


def test_a_home_that_works_is_left_alone(environment, tmp_path):
    environment['HOME'] = str(tmp_path)
    repair_environment()
    assert environment['HOME'] == str(tmp_path)
    assert 'MPLCONFIGDIR' not in environment
    assert not list(tmp_path.iterdir())
    assert {environment[f'{lib}_NUM_THREADS'] for lib in ('OMP', 'OPENBLAS', 'MKL')} == {'1'}
    assert environment['NIPYPE_NO_ET'] == '1'
    assert environment['LOGNAME']


def test_templateflow_finds_something(environment, tmp_path):
    repair_environment()
    assert os.listdir(environment['TEMPLATEFLOW_HOME'])
    (tmp_path / 'tpl-x').touch()
    environment['TEMPLATEFLOW_HOME'] = str(tmp_path)
    repair_environment()
    assert environment['TEMPLATEFLOW_HOME'] == str(tmp_path)


def test_niworkflows_imports_without_a_home():
    """It fails at import where HOME is not writable; and it would unpack a catalogue there."""
    code = (
        'import os, sys, json\n'
        'from precondqsm_bids.cli.environment import repair_environment\n'
        'repair_environment()\n'
        'import niworkflows.interfaces.bids\n'
        'found = [f for _, _, files in os.walk(os.environ["HOME"]) for f in files]\n'
        'print(json.dumps([os.environ["HOME"], found]))\n'
    )
    keep = {key: os.environ[key] for key in ('PATH', 'PYTHONPATH') if key in os.environ}
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code],
        env={**keep, 'HOME': '/nonexistent'},
        capture_output=True,
        text=True,
        check=True,
    )
    home, found = json.loads(done.stdout.splitlines()[-1])
    assert not [name for name in found if name.endswith(('.nii.gz', 'template_description.json'))]
    assert not os.path.exists(home)  # it goes with the process


def test_logging_goes_to_the_file_and_is_put_back(tmp_path, capsys):
    logger = logging.getLogger('nipype.interface')
    before = list(logging.getLogger('nipype').handlers)
    with logging_to(tmp_path / 'log', verbose=0):
        logger.warning('to the file')
        with warnings.catch_warnings():
            warnings.simplefilter('always')
            warnings.warn('a warning', UserWarning, stacklevel=1)
    logger.debug('afterwards')
    text = (tmp_path / 'log').read_text()
    assert 'to the file' in text
    assert 'a warning' in text
    assert 'afterwards' not in text
    assert capsys.readouterr().out == ''
    assert logging.getLogger('nipype').handlers == before


def test_verbose_shows_it_too(tmp_path, capsys):
    with logging_to(tmp_path / 'log', verbose=2):
        logging.getLogger('nipype').warning('hello')
        logging.getLogger('precondqsm_bids').info('our own line is printed by say()')
    assert capsys.readouterr().out.count('\n') == 1


@pytest.mark.parametrize('caught', ['finally: pass', 'except BaseException: time.sleep(60)'])
def test_sigterm_ends_even_what_catches_it(caught):
    """Nipype catches SystemExit where it runs an interface in the main process."""
    code = (
        'import os, signal, time\n'
        'from precondqsm_bids.cli.environment import ending_on_sigterm\n'
        "with ending_on_sigterm('ended'):\n"
        '    try: os.kill(os.getpid(), signal.SIGTERM)\n'
        f'    {caught}\n'
    )
    done = subprocess.run(
        [sys.executable, '-c', code], check=False, timeout=30, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (128 + 15, 'ended\n')


@pytest.mark.parametrize(('ignored', 'status'), [(False, 128 + 1), (True, 0)])
def test_a_closed_terminal_ends_it_unless_that_is_ignored(ignored, status):
    code = (
        'import os, signal\n'
        'from precondqsm_bids.cli.environment import before_sigterm_ends, ending_on_sigterm\n'
        "said = lambda: print('cancelled', flush=True)\n"
        + f'signal.signal(signal.SIGHUP, signal.SIG_{"IGN" if ignored else "DFL"})\n'
        + "with ending_on_sigterm('ended'), before_sigterm_ends(said):\n"
        '    os.kill(os.getpid(), signal.SIGHUP)\n'
    )
    done = subprocess.run(
        [sys.executable, '-c', code], check=False, timeout=30, capture_output=True, text=True
    )
    assert done.returncode == status
    assert done.stdout == ('' if ignored else 'cancelled\n')


def test_folder_of_crash_files_may_have_a_percent_sign(tmp_path):
    from nipype import config

    folder = tmp_path / 'out 50%' / 'logs'
    before = config.get('execution', 'crashdump_dir')
    configure_nipype(folder, stop_on_first_crash=False, resource_monitor=False, debug=False)
    assert config.get('execution', 'crashdump_dir') == str(folder)
    config.set('execution', 'crashdump_dir', before)
