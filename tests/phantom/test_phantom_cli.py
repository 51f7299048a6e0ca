"""The command precondqsm_phantom."""

import json
import subprocess
import sys

import nibabel as nib
import pytest

from precondqsm_bids.phantom.cli import build_parser, main, spec_of
from precondqsm_bids.phantom.head_spec import HeadSpec, hard_head
from precondqsm_bids.phantom.scanner_spec import Scanner
from precondqsm_bids.phantom.spec import TubesSpec

SMALL = ['--object-scale', '0.5', '--matrix', '28', '28', '26', '--voxel-size', '2', '2', '2']


def spec(*arguments):
    return spec_of(vars(build_parser().parse_args(['out', *arguments])))


def test_defaults_are_those_of_the_spec():
    assert spec() == TubesSpec()
    assert spec('--kind', 'head') == HeadSpec()
    assert spec('--kind', 'head', '--hard') == hard_head()


def test_options_override_what_hard_chooses():
    found = spec('--kind', 'head', '--hard', '--snr', '40', '--voxel-size', '2', '2', '2')
    assert found == hard_head(snr=40.0, voxel_size=(2.0, 2.0, 2.0))
    assert spec('--kind', 'head', '--relaxivity', '114').relaxivity == 114


def test_every_option_is_read_and_every_field_has_one():
    # an option that is neither part of a spec nor of writing would be read by nothing
    options = {action.dest for action in build_parser()._actions} - {'help', 'version'}
    known = set(TubesSpec.__dataclass_fields__) | set(HeadSpec.__dataclass_fields__)
    sizes = {'eddy_currents', 'bipolar', 'first_echo'}
    assert sizes < set(Scanner.__dataclass_fields__)
    assert options - known - sizes == {'out_dir', 'kind', 'participants', 'seed'}
    assert known <= options


def test_help_tells_the_defaults_of_each_kind():
    text = ' '.join(build_parser().format_help().split())
    assert '(default: tubes 80.0; head 100.0)' in text
    assert '(default: 137.0)' in text
    assert '(default: 3.0)' in text


def test_writes_what_was_asked_for(tmp_path, capsys):
    out_dir = tmp_path / 'raw'
    arguments = ['--tubes-dchi', '-0.4', '0.3', '--echo-times', '0.003', '0.007']
    arguments += ['--field-strength', '7', '--participants', '2', '--sampling', 'kspace']
    assert main([str(out_dir), *SMALL, *arguments]) == 0
    assert str(out_dir) in capsys.readouterr().out
    echoes = sorted((out_dir / 'sub-02' / 'anat').glob('*_part-phase_MEGRE.nii.gz'))
    assert [path.name for path in echoes] == [
        f'sub-02_echo-{i}_part-phase_MEGRE.nii.gz' for i in (1, 2)
    ]
    assert nib.load(echoes[0]).shape == (28, 28, 26)
    sidecar = json.loads(
        (echoes[1].parent / echoes[1].name.replace('.nii.gz', '.json')).read_text()
    )
    assert sidecar['EchoTime'] == 0.007
    assert sidecar['MagneticFieldStrength'] == 7
    table = out_dir / 'derivatives/truth/sub-01/anat/sub-01_desc-tubes_dseg.tsv'
    assert table.read_text().splitlines()[1] == '1\ttube1\t-0.4'


@pytest.mark.parametrize(
    'arguments, words',
    [
        (['--matrix', '64', '64', '64'], ['104 x 104 x 95 mm', '64 x 64 x 64 mm']),
        (['--echo-times', '1.38', '4.18'], ['milliseconds', '4.18']),
        ([*SMALL, '--participants', '0'], ['participant', '0']),
        ([*SMALL, '--seed', '-1'], ['seed', '-1']),
        (['--kind', 'head', '--matrix', '9', '9', '9'], ['--matrix', 'tubes', 'head']),
        (['--hard'], ['--hard', 'head', 'tubes']),
        (['--kind', 'head', '--lesion-relaxivity', '1'], ['--lesion-relaxivity', '--hard']),
        (['--kind', 'head', '--voxel-size', '1', '1', '20'], ['--voxel-size', '6 mm', '20']),
        (['--kind', 'brain'], ['--kind', 'brain', 'tubes']),
        (['--b0-tilt', 'nan'], ['--b0-tilt', 'nan']),
        (['--matrix', '4000', '4000', '4000'], ['--matrix', '4000', 'memory']),
        (['--tubes-dchi', *'123456789'], ['--tubes-dchi', '9']),
    ],
)
def test_impossible_requests_exit_2(tmp_path, capsys, arguments, words):
    with pytest.raises(SystemExit) as caught:
        main([str(tmp_path / 'raw'), *arguments])
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert all(word in message for word in words), message
    assert message.startswith('precondqsm_phantom: error: ')
    assert message.count('\n') == 1
    assert not (tmp_path / 'raw').exists()


def test_a_folder_that_cannot_be_written_exits_2(tmp_path, capsys):
    (tmp_path / 'file').write_text('')
    with pytest.raises(SystemExit) as caught:
        main([str(tmp_path / 'file' / 'raw'), *SMALL])
    assert caught.value.code == 2
    assert capsys.readouterr().err.endswith(f'error: {tmp_path}/file/raw: Not a directory\n')


def test_occupied_directory_exits_2(tmp_path, capsys):
    (tmp_path / 'mine.txt').write_text('keep me')
    with pytest.raises(SystemExit) as caught:
        main([str(tmp_path), *SMALL])
    assert caught.value.code == 2
    assert str(tmp_path) in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ['mine.txt']


def test_help_loads_no_numpy():
    program = (
        'import sys\n'
        'from precondqsm_bids.phantom.cli import main\n'
        'try:\n    main(["--help"])\n'
        'except SystemExit as end:\n    assert end.code == 0\n'
        'assert "numpy" not in sys.modules\n'
    )
    result = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert '--b0-tilt' in result.stdout
