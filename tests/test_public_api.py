"""A public signature does not change without a word in CHANGES.md."""

import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / 'scripts' / 'public_api'


@pytest.fixture
def script(monkeypatch):
    """The script as a module, which leaves the search path as it was."""
    monkeypatch.setattr(sys, 'path', list(sys.path))
    monkeypatch.setattr(sys, 'dont_write_bytecode', True)
    loader = SourceFileLoader('public_api', str(SCRIPT))
    module = module_from_spec(spec_from_loader('public_api', loader))
    loader.exec_module(module)
    return module


def test_listing_is_that_of_the_code_and_changes_are_told(script, capsys):
    assert script.main([]) == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    'line, text, told',
    [
        ('pdf(field, mask)', 'the function `pdf` takes', True),
        ('pdf(field, mask)', 'pdfs of a mask', False),
        ('EchoFit < phase_sign = 1 mandatory', 'the port `phase_sign`', True),
        ('EchoFit < phase_sign = 1 mandatory', 'it is mandatory', False),
        ('precondqsm_bids -w, --work-dir PATH', '`--work-dir` is', True),
        ('precondqsm_bids --prior + {map:FILE}', '`--prior-fit` is', False),
    ],
)
def test_what_names_a_line(script, line, text, told):
    assert script.named(line, text) is told


def test_change_that_is_not_told_is_found(script, tmp_path, monkeypatch, capsys):
    lines = [line for line in script.LISTING.read_text().splitlines() if ' pdf(' not in line]
    changed = tmp_path / 'public_api.txt'
    changed.write_text('\n'.join(lines) + '\n')
    monkeypatch.setattr(script, 'LISTING', changed)
    assert script.main([]) == 1
    assert 'scripts/public_api --write' in capsys.readouterr().err
    script.main(['--write'])
    assert '+ pdf(' in changed.read_text()
    script.main(['--release'])
    assert '  pdf(' in changed.read_text()
