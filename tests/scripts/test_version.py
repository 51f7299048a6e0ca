"""scripts/version sets every place, or refuses before it changes one."""

import importlib.machinery
import importlib.util
import shutil
from pathlib import Path

import pytest

import precondqsm_bids

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope='module')
def script():
    loader = importlib.machinery.SourceFileLoader('version', str(ROOT / 'scripts' / 'version'))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader('version', loader))
    loader.exec_module(module)
    return module


@pytest.fixture
def tree(script, tmp_path):
    """A copy of the files that name the version, with a change to release."""
    for name in script.PLACES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / 'CHANGES.md').write_text('# Changes\n\n## Unreleased\n\n- New.\n\n## 0.0.1\n')
    return tmp_path


def test_every_place_is_of_this_version(script):
    for name, pattern in script.PLACES.items():
        text = (ROOT / name).read_text(encoding='utf-8')
        assert pattern.format(precondqsm_bids.__version__) in text, name


def test_no_other_file_names_the_version_as_its_own(script):
    """Of the files that are installed or built from: pages say what they measured."""
    version = precondqsm_bids.__version__
    files = [*ROOT.glob('*'), *(ROOT / 'scripts').iterdir(), *ROOT.glob('precondqsm_bids/**/*.py')]
    named = {
        path.relative_to(ROOT).as_posix()
        for path in files
        if path.is_file() and version in path.read_text(encoding='utf-8', errors='ignore')
    }
    examples = {'precondqsm_bids/revision.py', 'CHANGES.md', 'constraints.txt'}
    assert named - examples <= set(script.PLACES)


def test_all_places_change(script, tree):
    texts = script.changed(tree, '1.2.3')
    for name, pattern in script.PLACES.items():
        assert pattern.format('1.2.3') in texts[tree / name]
    changes = texts[tree / 'CHANGES.md']
    assert changes == '# Changes\n\n## Unreleased\n\n## 1.2.3\n\n- New.\n\n## 0.0.1\n'


@pytest.mark.parametrize(
    'name, text, message',
    [
        ('Dockerfile', 'FROM x\n', 'Dockerfile has 0 lines'),
        ('CITATION.cff', 'version: 0.1.0\nversion: 0.1.0\n', 'has 2 lines'),
        ('CHANGES.md', '# Changes\n\n## Unreleased\n\n## 0.0.1\n', 'nothing under "Unreleased"'),
        ('CHANGES.md', '## Unreleased\n\n- New.\n\n## 1.2.3\n', 'a section 1.2.3 already'),
    ],
)
def test_what_cannot_be_released_is_refused(script, tree, name, text, message):
    (tree / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        script.changed(tree, '1.2.3')


@pytest.mark.parametrize('arguments', [[], ['v1.2.3'], ['1.2'], ['1.2.3', '4']])
def test_a_version_has_three_numbers(script, arguments):
    assert script.main(arguments) == 2
