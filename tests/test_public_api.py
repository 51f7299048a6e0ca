"""A public signature does not change without a word in CHANGES.md."""

import ast
import re
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import pytest

import precondqsm_bids

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
    monkeypatch.setattr(script, 'PROMISE', tmp_path / 'promise.txt')
    assert script.main([]) == 1
    assert 'scripts/public_api --write' in capsys.readouterr().err
    script.main(['--write'])
    assert '+ pdf(' in changed.read_text()
    script.main(['--release'])
    assert '  pdf(' in changed.read_text()


def test_promise_is_kept(script, capsys):
    assert script.check_promise(renew=False) == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    'old, new, found',
    [
        ('f(a: int) -> int', 'f(a: int, b: int=1) -> int', []),
        ('f(a: int) -> int', 'f(b: int, a: int) -> int', ['f(a: int) -> int']),
        ('f(a: int) -> int', 'f(a: float) -> int', ['f(a: int) -> int']),
        ('M.prior: str', 'M.priors: str', ['M.prior: str']),
    ],
)
def test_what_breaks_the_promise(script, old, new, found):
    assert script.broken([old], [new]) == found


def test_promise_may_grow_and_what_goes_needs_another_version(
    script, tmp_path, monkeypatch, capsys
):
    lines = script.PROMISE.read_text().splitlines()
    changed = tmp_path / 'promise.txt'
    monkeypatch.setattr(script, 'PROMISE', changed)
    changed.write_text('\n'.join([*lines[:2], *lines[3:]]) + '\n')
    assert script.check_promise(renew=True) == 0
    assert set(lines) <= set(changed.read_text().splitlines())
    changed.write_text('\n'.join([*lines, 'taken_away(x)']) + '\n')
    assert script.check_promise(renew=False) == script.check_promise(renew=True) == 1
    assert 'taken_away(x)' in capsys.readouterr().err
    changed.write_text('\n'.join(['0.0.1', *lines[1:], 'taken_away(x)']) + '\n')
    assert script.check_promise(renew=True) == 0
    assert 'taken_away(x)' not in changed.read_text()


def test_promise_is_on_its_page_and_in_reach():
    text = (SCRIPT.parents[1] / 'docs' / 'api.md').read_text(encoding='utf-8')
    section = text.partition('## The promise\n')[2].partition('\n## ')[0]
    assert sorted(set(re.findall(r'^\| `(\w+)`', section, re.M))) == sorted(
        precondqsm_bids.__all__
    )
    assert set(precondqsm_bids.__all__) <= set(dir(precondqsm_bids))
    for name in precondqsm_bids.__all__:
        assert getattr(precondqsm_bids, name).__doc__, name
    with pytest.raises(AttributeError, match='has no attribute'):
        _ = precondqsm_bids.anything_else


def test_package_and_its_functions_on_arrays_import_no_workflow_engine():
    call = (
        'import sys, precondqsm_bids\n'
        'assert "numpy" not in sys.modules\n'
        'precondqsm_bids.reconstruct\n'
        'assert "nipype" not in sys.modules'
    )
    subprocess.run([sys.executable, '-c', call], check=True)


def test_errors_of_the_library_name_no_option():
    """Only the command line speaks of options; parameters and fields are called by their names."""
    package = Path(precondqsm_bids.__file__).parent
    files = [package / 'method.py']
    for folder in ('numerics', 'interfaces', 'workflows'):
        files += (package / folder).rglob('*.py')
    assert len(files) > 50
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(node, ast.Raise):
                found = re.findall(r'(?<![\w-])--[a-z][\w-]*', ast.unparse(node))
                assert not found, f'{path}:{node.lineno}: {found}'
