"""Every command block of the pages: run where it can be, parsed where it takes a container."""

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from precondqsm_bids.cli.parser import build_parser
from precondqsm_bids.phantom.cli import build_parser as build_phantom_parser
from precondqsm_bids.phantom.spec import TubesSpec
from precondqsm_bids.phantom.tubes import simulate_tubes

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]
BLOCK = re.compile(r'^```bash\n(.*?)^```[ \t]*$', re.MULTILINE | re.DOTALL)

BLOCKS = [
    (page.name, number, body)
    for page in PAGES
    for number, body in enumerate(BLOCK.findall(page.read_text(encoding='utf-8')))
]

ONLY_PARSED = {
    'docker': 'a Docker Engine and the image: make test-image',
    'apptainer': 'Apptainer and the image: make test-apptainer',
    'dcm2niix': 'DICOM of a scanner',
    'gzip': 'an image of Docker',
    'make': 'tests of its own: the targets exist',
    'git': 'the source',
    'scripts/digest': 'minutes: tests/scripts',
    'scripts/house': 'part of make check',
    'scripts/public_api': 'tests/test_public_api.py',
    'scripts/version': 'tests/scripts',
}
"""Commands that are not run as a page has them -> what running them takes."""

RUN = {'precondqsm_bids', 'precondqsm_phantom', 'python', 'python3', 'pip', '.', 'mkdir'}
"""Commands that some block runs here."""


def commands(block):
    """Commands of a block of bash as lists of words, without comments and continued lines."""
    text = re.sub(r'\\\n', ' ', block)
    found = []
    for line in text.splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars='&|;><')
        lexer.whitespace_split = True
        words = []
        for word in [*lexer, ';']:
            if set(word) <= set('&|;'):
                if words:
                    found.append(words)
                words = []
            else:
                words.append(word)
    return found


def of_docker():
    """The options of ``docker run`` that the pages use, up to the image."""
    parser = argparse.ArgumentParser(allow_abbrev=False, exit_on_error=False)
    parser.add_argument('command', choices=['run'])
    for flag in ('--rm', '--read-only'):
        parser.add_argument(flag, action='store_true')
    for flag in ('-u', '-v', '--mount', '--network', '--tmpfs', '--entrypoint', '--env'):
        parser.add_argument(flag, action='append')
    parser.add_argument('image')
    parser.add_argument('rest', nargs=argparse.REMAINDER)
    return parser


def of_apptainer():
    """The options of ``apptainer run`` and ``exec`` that the pages use, up to the image."""
    parser = argparse.ArgumentParser(allow_abbrev=False, exit_on_error=False)
    parser.add_argument('command', choices=['run', 'exec'])
    for flag in ('--containall', '--cleanenv'):
        parser.add_argument(flag, action='store_true')
    parser.add_argument('--bind', action='append')
    parser.add_argument('image')
    parser.add_argument('rest', nargs=argparse.REMAINDER)
    return parser


def check_app(arguments):
    """Parse the arguments of the app as it does, but for files that a page only names."""
    parser = build_parser()
    for action in parser._actions:
        if getattr(action.type, '__name__', '') in {'folder', 'file', 'path', 'named_folder'}:
            action.type = str
    given = parser.parse_args(arguments)
    assert {'bids_dir', 'output_dir', 'analysis_level'} <= set(
        vars(given)
    ) or '--version' in arguments


def check_phantom(arguments):
    build_phantom_parser().parse_args(arguments)


def of_the_shell(words):
    """A part of a loop, or an assignment."""
    return words[0] in {'for', 'do', 'done'} or re.match(r'\w+=', words[0])


def check(words):
    """Parse a command that a page shows; an error if it could not be run."""
    if of_the_shell(words):
        return
    name, arguments = Path(words[0]).name or words[0], words[1:]
    if name == 'precondqsm_bids':
        if arguments != ['--version']:
            check_app(arguments)
    elif name == 'precondqsm_phantom':
        check_phantom(arguments)
    elif name == 'docker' and arguments[0] == 'run':
        given = of_docker().parse_args(arguments)
        assert given.image.partition(':')[0] == 'precondqsm_bids'
        inside = given.entrypoint[0] if given.entrypoint else 'precondqsm_bids'
        check([inside, *given.rest])
    elif name == 'apptainer' and arguments[0] in {'run', 'exec'}:
        given = of_apptainer().parse_args(arguments)
        assert given.image == 'precondqsm_bids.sif'
        check(given.rest if given.command == 'exec' else ['precondqsm_bids', *given.rest])
    elif name == 'make':
        targets = re.findall(r'^([a-z-]+):', (ROOT / 'Makefile').read_text(), re.MULTILINE)
        assert {word for word in arguments if re.fullmatch('[a-z-]+', word)} <= set(targets)
    elif words[0].startswith('scripts/'):
        assert os.access(ROOT / words[0], os.X_OK), words[0]
    else:
        assert name in RUN | set(ONLY_PARSED), f'{shlex.join(words)}: neither run nor parsed'


def test_commands_are_taken_apart():
    assert commands('a b \\\n c && d "e f"  # g\nh | i >j\n') == [
        ['a', 'b', 'c'], ['d', 'e f'], ['h'], ['i', '>', 'j'],
    ]  # fmt: skip


@pytest.mark.parametrize(
    'words',
    [
        'precondqsm_bids in out participant --no-such',
        'rm -rf /',
        'make nothing',
        'scripts/nothing',
    ],
)
def test_a_wrong_command_is_found(words, capsys):
    with pytest.raises((SystemExit, AssertionError)):
        check(shlex.split(words))


@pytest.mark.parametrize(
    'page, number, block', BLOCKS, ids=[f'{page}-{number}' for page, number, _ in BLOCKS]
)
def test_command_of_a_page_can_be_parsed(page, number, block):
    found = commands(block)
    assert found
    for words in found:
        check(words)


@pytest.mark.parametrize('page', ['docs/usage.md', 'docs/dicom.md', 'docs/start.md'])
def test_command_in_the_text_can_be_parsed(page):
    """Synopses in blocks without a language, and commands within the text."""
    text = (ROOT / page).read_text(encoding='utf-8')
    found = re.findall(
        r'^precondqsm_bids (?!.*[{[])(.*)$|`precondqsm_bids ((?!--)[^`]+)`', text, re.M
    )
    assert found or page == 'docs/start.md'
    for pair in found:
        check(['precondqsm_bids', *shlex.split(''.join(pair))])


def test_developers_page_lists_what_is_only_parsed():
    text = (ROOT / 'docs' / 'developers.md').read_text(encoding='utf-8')
    used = {words[0] for *_, block in BLOCKS for words in commands(block)}
    assert [name for name in ONLY_PARSED if name in used and f'`{name}`' not in text] == []


# -- run ---------------------------------------------------------------------------------------


def run(block, folder, *, before=''):
    """Run a block of bash in a folder, with this interpreter's commands first."""
    environment = os.environ | {
        'PATH': os.pathsep.join([str(Path(sys.executable).parent), os.environ['PATH']]),
        'PYTHONPATH': str(ROOT),
    }
    done = subprocess.run(
        ['bash', '-eu', '-c', before + block],
        cwd=folder, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def section_block(page, heading):
    """The first block of bash below a heading."""
    text = (ROOT / 'docs' / page).read_text(encoding='utf-8')
    return BLOCK.search(text, text.index(f'\n{heading}\n'))[1]


@pytest.mark.slow
def test_three_commands_lead_to_a_map_of_the_head(tmp_path):
    """The ten-minute start as it stands, but for the installation."""
    lines = section_block('start.md', '## With pip').splitlines()
    assert len(lines) == 3
    assert lines[0].endswith('&& pip install .')
    run('\n'.join(lines[1:]), tmp_path)
    anat = tmp_path / 'try/out/sub-01/anat'
    truth = tmp_path / 'try/raw/derivatives/truth/sub-01/anat'
    chi = nib.load(anat / 'sub-01_desc-precond_Chimap.nii.gz').get_fdata()
    true = nib.load(truth / 'sub-01_desc-truth_Chimap.nii.gz').get_fdata()
    roi = nib.load(anat / 'sub-01_desc-roi_mask.nii.gz').get_fdata() > 0
    brain = nib.load(truth / 'sub-01_desc-brain_mask.nii.gz').get_fdata() > 0
    assert (roi & brain).sum() > 0.9 * brain.sum()
    both = roi & brain
    assert np.corrcoef(chi[both], true[both])[0, 1] > 0.8
    assert (tmp_path / 'try/out/sub-01.html').is_file()
    listed = re.findall(r'^(try/out/\S+)', (ROOT / 'docs/start.md').read_text('utf-8'), re.M)
    assert listed
    assert [name for name in listed if not (tmp_path / name).exists()] == []


@pytest.fixture
def converted(tmp_path):
    """What dcm2niix leaves of a multi-echo scan: names and sidecars as its own are."""
    spec = TubesSpec(
        matrix=(26, 26, 24), voxel_size=(3.0, 3.0, 3.0), object_scale=0.6,
        echo_times=(0.0014, 0.0042, 0.007),
    )  # fmt: skip
    phantom = simulate_tubes(spec, seed=0)
    folder = tmp_path / 'nifti'
    folder.mkdir()
    for echo, time in enumerate(phantom.echo_times):
        for part, series, ending, word in (
            ('magnitude', 5, '', 'M'), ('phase', 6, '_ph', 'P'),
        ):  # fmt: skip
            stem = folder / f'{series}_gre_e{echo + 1}{ending}'
            image = getattr(phantom, part)[..., echo].astype(np.float32)
            nib.save(nib.Nifti1Image(image, phantom.affine), f'{stem}.nii.gz')
            sidecar = {
                'EchoNumber': echo + 1, 'EchoTime': time, 'MagneticFieldStrength': 3,
                'ImageType': ['ORIGINAL', 'PRIMARY', 'M', word, 'ND'],
            }  # fmt: skip
            Path(f'{stem}.json').write_text(json.dumps(sidecar))
    return tmp_path


def renaming():
    text = (ROOT / 'docs' / 'dicom.md').read_text(encoding='utf-8')
    return re.search(r'^```python\n(.*?)^```', text, re.MULTILINE | re.DOTALL)[1]


@pytest.mark.slow
def test_renaming_and_dry_run_of_converted_images(converted, monkeypatch):
    monkeypatch.chdir(converted)
    exec(compile(renaming(), 'dicom.md', 'exec'), {})
    assert len(list(converted.glob('raw/sub-01/anat/*_MEGRE.nii.gz'))) == 6
    block = section_block('dicom.md', '## Before anything is computed')
    printed = run(block, converted)
    assert re.search(r'sub-01\s.*1\.4', printed), printed
    assert 'skipped' not in printed


def test_renaming_refuses_two_images_of_one_name(converted, monkeypatch):
    monkeypatch.chdir(converted)
    for ending in ('.json', '.nii.gz'):
        shutil.copy(f'nifti/6_gre_e1_ph{ending}', f'nifti/7_gre_filtered_e1_ph{ending}')
    with pytest.raises(ValueError, match='are both sub-01_echo-1_part-phase_MEGRE'):
        exec(compile(renaming(), 'dicom.md', 'exec'), {})
