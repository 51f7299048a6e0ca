"""What is installed and shipped: versions, package data, console scripts, the Dockerfile."""

import configparser
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import entry_points, metadata
from pathlib import Path, PurePosixPath

import pytest
import yaml
from packaging.requirements import Requirement

import precondqsm_bids

ROOT = Path(__file__).parents[1]


SHIPPED = ('CHANGES.md', 'CITATION.cff', 'constraints.txt')
"""What the source archive has beside what builds the wheel."""


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    """A copy of what is built from; a build leaves its traces beside the source."""
    copy = tmp_path_factory.mktemp('source')
    for name in ('setup.cfg', 'pyproject.toml', 'README.md', 'LICENSE', 'MANIFEST.in', *SHIPPED):
        shutil.copy(ROOT / name, copy)
    for name in ('precondqsm_bids', 'tests'):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns('__pycache__'))
    return copy


@pytest.fixture(scope='module')
def wheel(source, tmp_path_factory):
    """Path of a wheel of the source."""
    return build(source, 'wheel', tmp_path_factory.mktemp('wheel'))


def build(source, kind, out_dir):
    """Build a 'wheel' or an 'sdist' with the backend of pyproject.toml, without the network."""
    call = f'import sys; from setuptools import build_meta as b; b.build_{kind}(sys.argv[1])'
    done = subprocess.run(
        [sys.executable, '-c', call, out_dir], cwd=source, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (built,) = out_dir.iterdir()
    return built


def package_files(root):
    """Names of the files of the package, relative to the folder that holds it."""
    return {
        path.relative_to(root).as_posix()
        for path in (root / 'precondqsm_bids').rglob('*')
        if path.is_file() and '__pycache__' not in path.parts
    }


def test_installed_version_is_the_source_version():
    assert metadata('precondqsm_bids')['Version'] == precondqsm_bids.__version__, (
        'the installed metadata are of another version: make venv'
    )


def test_newest_entry_of_the_changes_is_this_version():
    headings = re.findall(
        r'^## \[?([^\]\s]+)', (ROOT / 'CHANGES.md').read_text(encoding='utf-8'), re.M
    )
    released = [heading for heading in headings if heading.lower() != 'unreleased']
    version = precondqsm_bids.__version__
    assert version in released[:1] or headings[0].lower() == 'unreleased', (
        f'CHANGES.md begins with {headings[:1]}, the version is {version}'
    )


@pytest.mark.parametrize('name', ['precondqsm_bids', 'precondqsm_phantom'])
def test_console_script_is_callable(name):
    (script,) = entry_points(group='console_scripts', name=name)
    assert callable(script.load())


def test_wheel_holds_the_whole_package_and_nothing_else(wheel, source):
    names = set(zipfile.ZipFile(wheel).namelist())
    shipped = {name for name in names if '.dist-info/' not in name}
    assert shipped == package_files(source)
    version = precondqsm_bids.__version__
    assert wheel.name == f'precondqsm_bids-{version}-py3-none-any.whl'


def test_sdist_alone_builds_the_same_wheel(wheel, source, tmp_path):
    (tmp_path / 'sdist').mkdir()
    (tmp_path / 'wheel').mkdir()
    archive = build(source, 'sdist', tmp_path / 'sdist')
    with tarfile.open(archive) as tar:
        top = archive.name.removesuffix('.tar.gz')
        assert {f'{top}/{name}' for name in SHIPPED} <= set(tar.getnames())
        # Python 3.11.2, which Debian 12 has, knows no filters yet.
        tar.extractall(tmp_path, **{'filter': 'data'} if hasattr(tarfile, 'data_filter') else {})
    again = build(tmp_path / archive.name.removesuffix('.tar.gz'), 'wheel', tmp_path / 'wheel')
    contents = [
        {name: z.read(name) for name in z.namelist() if '.dist-info/' not in name}
        for z in (zipfile.ZipFile(wheel), zipfile.ZipFile(again))
    ]
    assert contents[0] == contents[1]


def dockerfile_instructions():
    """Instructions of the Dockerfile, as (keyword, rest), continued lines joined."""
    text = (ROOT / 'Dockerfile').read_text(encoding='utf-8')
    lines = [line for line in text.splitlines() if not line.lstrip().startswith('#')]
    joined = re.sub(r'\\\n', ' ', '\n'.join(lines))
    return [tuple(line.split(None, 1)) for line in joined.splitlines() if line.strip()]


def test_dockerfile_needs_no_buildkit():
    # The builder of old and air-gapped hosts knows none of these.
    assert '# syntax' not in (ROOT / 'Dockerfile').read_text(encoding='utf-8')
    for keyword, rest in dockerfile_instructions():
        assert '<<' not in rest, f'a heredoc in {keyword} {rest}'
        assert not (keyword == 'RUN' and rest.startswith('--')), f'{keyword} {rest}'
        assert not (keyword == 'COPY' and re.search(r'--(?!from=|chown=)\w', rest)), rest


def test_dockerfile_keeps_what_the_users_of_the_image_rely_on():
    instructions = dockerfile_instructions()
    assert instructions[0][0] == 'ARG'
    assert instructions[0][1].startswith('BASE_IMAGE=')
    last_stage = instructions[max(i for i, (k, _) in enumerate(instructions) if k == 'FROM') :]
    assert [rest for keyword, rest in last_stage if keyword == 'USER'] == ['app']
    (entry,) = (rest for keyword, rest in last_stage if keyword == 'ENTRYPOINT')
    assert re.fullmatch(r'\["/[^"]+/bin/precondqsm_bids"\]', entry)
    version = precondqsm_bids.__version__
    assert ('ARG', f'VERSION={version}') in last_stage


def test_build_context_holds_what_the_dockerfile_copies():
    lines = (ROOT / '.dockerignore').read_text(encoding='utf-8').split()
    assert lines[0] == '*'
    admitted = {line[1:] for line in lines if line.startswith('!')}
    for keyword, rest in dockerfile_instructions():
        if keyword == 'COPY' and not rest.startswith('--from'):
            for name in rest.split()[:-1]:
                # 'wheelhous[e]' is a wheelhouse that need not be there.
                top = PurePosixPath(name.replace('[e]', 'e')).parts[0]
                assert top in admitted, f'.dockerignore keeps {top} from the build'


def definition_sections():
    """Sections of the definition file of Apptainer: name to lines, without comments."""
    text = (ROOT / 'apptainer.def').read_text(encoding='utf-8')
    parts = re.split(r'^%(\w+)$', text, flags=re.MULTILINE)
    return {
        name: [line.strip() for line in body.splitlines() if line.strip() and line[0] != '#']
        for name, body in zip(parts[1::2], parts[2::2], strict=True)
    }


def test_definition_file_holds_what_the_dockerfile_does():
    sections, instructions = definition_sections(), dockerfile_instructions()
    assert f'VERSION={precondqsm_bids.__version__}' in sections['arguments']
    copied = {
        name
        for keyword, rest in instructions
        if keyword == 'COPY' and not rest.startswith('--from')
        for name in rest.split()[:-1]
    }
    assert {line.split()[0] for line in sections['files']} == copied - {'wheelhous[e]'}
    begin = max(i for i, (keyword, _) in enumerate(instructions) if keyword == 'FROM')
    set_there = {
        pair
        for keyword, rest in instructions[begin:]
        if keyword == 'ENV'
        for pair in rest.split()
        # The home is the caller's, and the image has no tag of Docker's.
        if not pair.startswith(('HOME=', 'PRECONDQSM_BIDS_DOCKER_TAG='))
    }
    set_here = {
        pair
        for line in sections['environment']
        # Each of the two files names its arguments in its own way.
        for pair in re.sub(r'"\{\{ (\w+) \}\}"', r'${\1}', line.removeprefix('export ')).split()
    }
    assert set_here == set_there
    labels = {line.split()[0] for line in sections['labels']}
    (label,) = (rest for keyword, rest in instructions if keyword == 'LABEL')
    assert labels == set(re.findall(r'(\S+)="', label))


def test_constraints_name_a_version_of_every_requirement():
    lines = (ROOT / 'constraints.txt').read_text(encoding='utf-8').splitlines()
    pinned = dict(line.split('==') for line in lines if not line.startswith('#'))
    setup = configparser.ConfigParser()
    setup.read(ROOT / 'setup.cfg')
    requirements = setup['options']['install_requires'].split('\n')[1:]
    assert requirements
    for requirement in map(Requirement, requirements):
        version = pinned.get(requirement.name)
        assert version, f'{requirement.name} has no version: make constraints'
        assert requirement.specifier.contains(version), f'{requirement}: make constraints'
    (install,) = (rest for _, rest in dockerfile_instructions() if '-r /src' in rest)
    assert '-c /src/constraints.txt' in install


def test_scripts_are_executable_and_valid_bash():
    scripts = [
        path
        for path in [ROOT / '.ci' / 'run', *(ROOT / 'scripts').iterdir()]
        if path.read_text(encoding='utf-8').startswith('#!/bin/bash')
    ]
    assert ROOT / '.ci' / 'run' in scripts
    for script in scripts:
        assert os.access(script, os.X_OK), f'chmod +x {script}'
        checked = subprocess.run(['bash', '-n', script], capture_output=True, text=True)
        assert checked.returncode == 0, checked.stderr


def test_citation_file_is_valid_and_of_this_version():
    path = ROOT / 'CITATION.cff'
    call = 'from cffconvert.cli.cli import cli; cli()'
    command = [sys.executable, '-W', 'ignore', '-c', call, '--validate', '-i', path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    citation = yaml.safe_load(path.read_text(encoding='utf-8'))
    assert citation['version'] == precondqsm_bids.__version__
    assert citation['license'] == 'Apache-2.0'


def test_package_index_would_take_wheel_and_sdist(wheel, source, tmp_path):
    archive = build(source, 'sdist', tmp_path)
    command = [sys.executable, '-m', 'twine', 'check', '--strict', wheel, archive]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count('PASSED') == 2


@pytest.mark.slow
def test_wheel_runs_in_an_environment_of_its_own(wheel, tmp_path):
    """Packages that it needs are those of here; `make dist` installs them, too."""
    subprocess.run([sys.executable, '-m', 'venv', tmp_path / 'venv'], check=True)
    python = tmp_path / 'venv' / 'bin' / 'python'
    environment = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}

    def run(*command):
        return subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=True
        ).stdout

    run(python, '-m', 'pip', 'install', '--quiet', '--no-deps', '--no-index', wheel)
    site = Path(
        run(python, '-c', 'import sysconfig; print(sysconfig.get_path("purelib"))').strip()
    )
    needed = [path for path in sys.path if path.endswith('site-packages')]
    (site / 'needed.pth').write_text('\n'.join(needed))
    where = run(python, '-c', 'import precondqsm_bids as p; print(p.__file__)')
    assert Path(where.strip()).is_relative_to(site)
    version = run(python.with_name('precondqsm_bids'), '--version')
    assert version == f'precondqsm_bids {precondqsm_bids.__version__}\n'
    phantom = [
        '--matrix',
        '26',
        '26',
        '24',
        '--voxel-size',
        '3',
        '3',
        '3',
        '--object-scale',
        '0.6',
    ]
    run(python.with_name('precondqsm_phantom'), 'raw', *phantom)
    table = run(python.with_name('precondqsm_bids'), 'raw', 'out', 'participant', '--dry-run')
    assert 'sub-01' in table


def test_demo_needs_no_linter():
    setup = configparser.ConfigParser()
    setup.read(ROOT / 'setup.cfg')
    extras = {
        name: {Requirement(line).name for line in text.split('\n') if line}
        for name, text in setup['options.extras_require'].items()
    }
    assert not extras['demo'] & (extras['style'] | extras['test'] | extras['docs'])
    makefile = (ROOT / 'Makefile').read_text(encoding='utf-8')
    assert re.search(r'^demo/\.phantom:.*\| \$\(usable\)$', makefile, re.MULTILINE)
    assert re.search(r'^\$\(usable\):.*\n\t\$\(call installed,demo\)$', makefile, re.MULTILINE)
