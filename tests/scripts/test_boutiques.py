"""The Boutiques descriptor: made from the options, valid, and a command of the app."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from precondqsm_bids.cli.parser import build_parser

ROOT = Path(__file__).parents[2]
FILE = ROOT / 'docs' / 'boutiques.json'
CALL = 'import sys; from boutiques.bosh import bosh; sys.argv[0] = "bosh"; sys.exit(bosh())'
BOSH = [sys.executable, '-W', 'ignore', '-c', CALL]
"""The command ``bosh`` of this interpreter."""


@pytest.fixture(scope='module')
def descriptor():
    return json.loads(FILE.read_text(encoding='utf-8'))


def run(*command, **options):
    return subprocess.run([*map(str, command)], capture_output=True, text=True, **options)


def test_descriptor_is_that_of_the_options():
    done = run(sys.executable, ROOT / 'scripts' / 'boutiques')
    assert done.returncode == 0, f'scripts/boutiques --write\n{done.stdout}{done.stderr}'


def test_descriptor_is_valid():
    done = run(*BOSH, 'validate', FILE)
    assert (done.returncode, done.stdout.strip()) == (0, 'OK'), done.stdout + done.stderr


def test_an_invalid_descriptor_is_found(descriptor, tmp_path):
    broken = tmp_path / 'broken.json'
    broken.write_text(json.dumps(descriptor | {'inputs': []}))
    done = run(*BOSH, 'validate', broken)
    assert done.returncode
    assert 'value-key' in done.stdout + done.stderr  # those of the command line have no input


def test_every_option_is_there_once(descriptor):
    flags = [entry.get('command-line-flag') for entry in descriptor['inputs'][3:]]
    assert len(flags) == len(set(flags))
    actions = [
        a for a in build_parser()._actions if (a.option_strings and a.nargs != 0) or a.const
    ]
    options = {o for a in build_parser()._actions for o in a.option_strings}
    assert set(flags) <= options
    missing = [a.option_strings for a in actions if not set(a.option_strings) & set(flags)]
    assert missing == []


def test_simulated_command_is_what_the_app_takes(tmp_path):
    given = {
        'bids_dir': str(tmp_path), 'output_dir_name': '/out', 'analysis_level': 'participant',
        'participant_label': ['01', '02'], 'prior': ['contrast', 'tissue'],
        'b0_dir': ['0', '0', '1'], 'no_shape': True, 'nprocs': 2, 'phase_sign': '+1',
        'reg_weight': '0.05', 'inversion': 'tv', 'dry_run': True,
    }  # fmt: skip
    invocation = tmp_path / 'invocation.json'
    invocation.write_text(json.dumps(given))
    done = run(*BOSH, 'exec', 'simulate', FILE, '-i', invocation)
    assert done.returncode == 0, done.stdout + done.stderr
    program, *words = shlex.split(done.stdout.strip().splitlines()[-1])
    assert program == 'precondqsm_bids'
    settings = vars(build_parser().parse_args(words))
    expected = {
        'analysis_level': 'participant', 'participant_label': ['01', '02'],
        'prior': ['contrast', 'tissue'], 'b0_dir': [0, 0, 1], 'shape': False, 'nprocs': 2,
        'phase_sign': 1, 'reg_weight': 0.05, 'inversion': 'tv', 'dry_run': True,
    }  # fmt: skip
    assert {name: settings[name] for name in expected} == expected
    assert set(settings) == {*expected, 'bids_dir', 'output_dir'}
