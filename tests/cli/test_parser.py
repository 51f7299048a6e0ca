"""The command line as settings, and its errors in one line."""

import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import fields, replace
from pathlib import Path

import pytest

from precondqsm_bids import __version__
from precondqsm_bids.cli import checks
from precondqsm_bids.cli import parser as module
from precondqsm_bids.cli.parser import build_parser, parse_args
from precondqsm_bids.cli.presets import PRESETS
from precondqsm_bids.cli.resources import Limit
from precondqsm_bids.config import Settings
from precondqsm_bids.method import Method


@pytest.fixture
def parse(tmp_path, monkeypatch):
    """Parse options after the positional arguments, on a machine of 12 CPUs and 20 GiB."""
    monkeypatch.setattr(module, 'cpu_limit', lambda: Limit(12, 'test'))
    monkeypatch.setattr(module, 'memory_limit', lambda: Limit(20.0, 'test'))
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'raw').mkdir()

    def call(*options):
        return parse_args(['raw', 'out', 'participant', *map(str, options)])

    return call


@pytest.fixture
def refuse(parse, capsys):
    """The one line that refuses a command line."""

    def call(*options, positional=None):
        with pytest.raises(SystemExit) as end:
            parse_args(positional) if positional else parse(*options)
        assert end.value.code == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        return lines[0]

    return call


def test_defaults(parse, tmp_path):
    assert parse() == Settings(
        bids_dir=tmp_path / 'raw',
        output_dir=tmp_path / 'out',
        nprocs=12,
        omp_nthreads=8,
        mem_gb=18.0,
        work_dir=tmp_path / 'work',
    )


@pytest.mark.parametrize(
    'options, name, value',
    [
        ('--b0-dir 0 -1 .5', 'b0_dir', (0.0, -1.0, 0.5)),
        ('--mask auto', 'mask', 'auto'),
        ('--mask-erosion 1.5', 'mask_erosion', 1.5),
        ('--participant-label sub-01 02 01', 'participant_label', ('01', '02')),
        ('--session-label ses-a', 'session_label', ('a',)),
        ('--session-id b', 'session_label', ('b',)),
        ('--skip-bids-validation', 'skip_bids_validation', True),
        ('--clean-workdir', 'clean_workdir', True),
        ('--nprocs 3', 'nprocs', 3),
        ('--nthreads 3', 'nprocs', 3),
        ('--n-cpus 3', 'nprocs', 3),
        ('--nprocs 3', 'omp_nthreads', 3),
        ('--omp-nthreads 2', 'omp_nthreads', 2),
        ('--mem 2048', 'mem_gb', 2.0),
        ('--mem 1.5G', 'mem_gb', 1.5),
        ('--node-timeout 90', 'node_timeout', 90.0),
        ('--write-graph', 'write_graph', True),
        ('--resource-monitor', 'resource_monitor', True),
        ('--stop-on-first-crash', 'stop_on_first_crash', True),
        ('--boilerplate-only', 'boilerplate_only', True),
        ('--reports-only', 'reports_only', True),
        ('--report-self-contained', 'report_self_contained', True),
        ('--dry-run', 'dry_run', True),
        ('-vv', 'verbose', 2),
        ('-v -v -v', 'verbose', 3),
        ('--field-strength 7', 'field_strength', 7.0),
        ('--r2 12.5', 'r2', 12.5),
        ('--r2 median', 'r2', 'median'),
        ('--r2 literature', 'r2', 'literature'),
        ('--r2 map', 'r2', 'map'),
        ('--prior contrast tissue', 'prior', ('contrast', 'tissue')),
        ('--write-prior-labels', 'write_prior_labels', True),
        ('--contrasts T1w R1map', 'contrasts', ('T1w', 'R1map')),
        ('--phase-sign auto', 'phase_sign', None),
        ('--phase-sign +1', 'phase_sign', 1),
        ('--phase-sign 1', 'phase_sign', 1),
        ('--phase-sign -1', 'phase_sign', -1),
        ('--no-shape', 'shape', False),
        ('--no-conventional', 'conventional', False),
        ('--pdf-iterations 60', 'pdf_iterations', 60),
        ('--inversion tv', 'inversion', 'tv'),
        ('--background vsharp', 'background', 'vsharp'),
        ('--reg-weight 0.1', 'reg_weight', 0.1),
        ('--reg-weight l-curve', 'reg_weight', None),
        ('--reg-weight risk', 'reg_rule', 'risk'),
        ('--reference none', 'reference', 'none'),
    ],
)
def test_options(parse, options, name, value):
    settings = parse(*options.split())
    assert getattr(settings if hasattr(settings, name) else settings.method, name) == value


def test_further_contrasts_are_for_the_contrast_prior(parse, capsys):
    for options, told in (
        (('--contrasts', 'T1w', '--prior', 'tissue'), 'add contrast'),
        (('--contrasts', 'T1w.nii'), 'not a suffix'),
    ):
        with pytest.raises(SystemExit):
            parse(*options)
        assert told in capsys.readouterr().err


def test_mask_file_may_be_relative(parse, tmp_path):
    (tmp_path / 'auto.nii').touch()
    assert parse('--mask', 'auto.nii').method.mask == str(tmp_path / 'auto.nii')
    (tmp_path / 'seg').mkdir()
    assert parse('--mask', 'derivatives', '-d', 'seg').method.mask == 'derivatives'


def test_paths(parse, tmp_path):
    for name in ('x', 'y'):
        (tmp_path / name / 'truth').mkdir(parents=True)
    plugin = tmp_path / 'plugin.yml'
    plugin.write_text('plugin: Linear\n')
    filters = tmp_path / 'filters.json'
    filters.write_text('{"megre": {"run": null}}')
    settings = parse(
        '-d', 'x/truth', 'other=y/truth', '-w', 'w', '--bids-database-dir', 'db',
        '--use-plugin', plugin, '--bids-filter-file', filters,
    )  # fmt: skip
    assert settings.derivatives == {'truth': tmp_path / 'x/truth', 'other': tmp_path / 'y/truth'}
    assert settings.work_dir == tmp_path / 'w'
    assert settings.bids_database_dir == tmp_path / 'db'
    assert settings.use_plugin == plugin
    assert settings.bids_filters == {'megre': {'run': None}}


def test_every_option_has_a_setting_and_every_setting_an_option():
    made_of_others = {'config_file', 'bids_filter_file', 'preset'}
    options = {action.dest for action in build_parser()._actions} - {'help', 'version'}
    settings = {field.name for field in (*fields(Settings), *fields(Method))} - {'method'}
    # --reg-weight takes a number or the name of a rule
    assert options - made_of_others == settings - {'bids_filters', 'reg_rule', 'consensus'}


def test_settings_file_lies_between_defaults_and_command_line(parse, tmp_path):
    path = tmp_path / 'config.toml'
    path.write_text('r2 = 5.0\nconventional = false\npdf_iterations = 7\nnprocs = 2\n')
    settings = parse('--config-file', path, '--pdf-iterations', 9, '--conventional')
    method = settings.method
    assert (method.r2, method.conventional, method.pdf_iterations) == (5.0, True, 9)
    assert (settings.nprocs, settings.omp_nthreads) == (2, 2)
    assert parse('--config-file', path, '--r2', 'median').method.r2 == 'median'


def test_presets_lie_between_the_settings_file_and_the_other_options(parse, tmp_path):
    assert parse('--preset', 'consensus').method == Method(consensus=True)
    published = Method(prior='r2prime', reg_rule='l-curve')
    assert parse('--preset', 'abstract').method == published
    both = parse('--preset', 'consensus', 'abstract', '--r2', 9).method
    assert both == replace(published, consensus=True, r2=9.0)
    assert both.arms[0] == both.arms[1]._replace(prefix='')
    path = tmp_path / 'config.toml'
    path.write_text('prior = "tissue"\npdf_iterations = 7\nreference = "none"\n')
    mixed = parse('--config-file', path, '--preset', 'abstract', '--prior', 'contrast').method
    assert (mixed.prior, mixed.pdf_iterations, mixed.reference) == (('contrast',), 30, 'none')
    given = parse('--preset', 'abstract', '--reg-weight', 0.2).method
    assert {arm.reg_weight for arm in given.arms} == {0.2}
    assert {
        arm.rule for arm in parse('--preset', 'abstract', '--reg-weight', 'risk').method.arms
    } == {'risk'}
    words = ['raw', 'out', 'participant', '--preset', 'consensus', '--r2', '3']
    assert module.stated_settings(words) >= {'consensus', 'r2'}
    assert module.option_words(words) == ['--preset', 'consensus', '--r2=3']


def test_lists_that_are_given_twice_grow(parse, tmp_path):
    for name in ('a', 'b', 'mes masques é'):
        (tmp_path / name).mkdir()
    words = ('-d', 'a', 'B=b', '-d', 'mes masques é', '--participant-label', '01', '02')
    words += ('--participant-label', 'sub-03', '--contrasts', 'T1w', '--contrasts', 'R1map')
    found = parse(*words)
    assert found.participant_label == ('01', '02', '03')
    assert found.method.contrasts == ('T1w', 'R1map')
    # The names are those of BIDS URIs.
    assert list(found.derivatives) == ['a', 'B', 'mes_masques_']
    again = parse(*module.option_words(['raw', 'out', 'participant', *words]))
    assert again == found


def test_names_of_derivatives(refuse, tmp_path):
    (tmp_path / 'a').mkdir()
    assert 'is no name for BIDS URIs' in refuse('-d', 'x y=a')
    assert 'has two names, "a" and "x"' in refuse('-d', 'a', 'x=a')


@pytest.mark.parametrize(
    'words',
    [
        ('--reports-only', '--dry-run'),
        ('--reports-only', '--boilerplate-only'),
        ('--boilerplate-only', '--dry-run'),
        ('--clean-workdir', '--reports-only'),
    ],
)
def test_options_that_exclude_each_other(refuse, words):
    assert f'{words[0]} does not go with {words[1]}' in refuse(*words)


def test_an_empty_reference_is_refused(refuse, tmp_path):
    assert '--reference: an empty name' in refuse('--reference', '')
    (tmp_path / 'config.toml').write_text('reference = ""')
    assert '--reference is empty' in refuse('--config-file', tmp_path / 'config.toml')


def test_settings_of_a_file_are_called_as_they_are_there(refuse, tmp_path):
    path = tmp_path / 'config.toml'
    path.write_text('pdf_iteration = 3')
    line = refuse('--config-file', path)
    assert 'unknown setting pdf_iteration; the settings are' in line
    assert ', pdf_iterations, ' in line
    path.write_text('mask_erosion = "3"')
    assert "setting mask_erosion = '3' should be" in refuse('--config-file', path)


def test_a_preset_is_one_of_the_words_and_has_fields_of_the_method(refuse):
    assert "invalid choice: 'paper'" in refuse('--preset', 'paper')
    assert '--preset would have no effect' in refuse(
        positional=['raw', 'out', 'group', '--preset', 'consensus']
    )
    names = {field.name for field in fields(Method)}
    for preset in PRESETS.values():
        assert set(preset.values) <= names
        Method(**preset.values)


@pytest.mark.parametrize(
    'options', ['--r2 3 --no-shape --participant-label 01', '--preset consensus abstract --r2 3']
)
def test_the_file_beside_a_log_repeats_its_run(parse, tmp_path, options):
    settings = parse(*options.split())
    (tmp_path / 'config.toml').write_text(settings.to_toml())
    assert parse('--config-file', 'config.toml') == settings


@pytest.mark.parametrize(
    'options, message',
    [
        ('--mem 5X', '"5X" is not an amount of memory'),
        ('--mem 8', 'give it with a unit, such as 8G'),
        ('--config-file b0.toml', 'three finite numbers, not all 0'),
        ('--config-file none.toml', 'three finite numbers, not all 0'),
        ('--config-file stop.toml', '--stop-after = never is not one of flattening'),
        ('--config-file empty.toml', "setting work_dir = '' should be of type"),
        ('--nprocs 0', '"0" is not a whole number of 1 or more'),
        ('--nprocs 2 --omp-nthreads 3', '--omp-nthreads 3 is more than --nprocs 2'),
        ('--field-strength 30', '"30" is not a number between 0.1 and 25 (T)'),
        ('--r2 nan', '"nan" is not a number between 0 and 10000 (1/s)'),
        ('--r2 mean', '"mean" is not a number'),
        ('--phase-sign -2', '"-2" is none of auto, +1 and -1'),
        ('--config-file sign.toml', '--phase-sign = 0 should be 1 or -1'),
        ('--reg-weight -1', '"-1" is not a number'),
        ('--reg-weight 0', '"0" is not a number between 1e-06 and 1e+06 (mm)'),
        ('--config-file rule.toml', 'reg_rule = best is not one of auto, l-curve and risk'),
        ('--prior-fit global', '--prior contrast does not go with --prior-fit global: that is'),
        ('--pdf-iterations 20000', '--pdf-iterations = 20000 should be between 1 and 10000'),
        ('--config-file slow.toml', '--node-timeout = 0 minutes should be between 0.01 and'),
        ('--participant-label a_b', '"a_b" is not a label'),
        ('--bids-filter-file none.json', 'no such file: none.json'),
        ('--use-plugin none.yml', 'no such file: none.yml'),
        ('-d nowhere', 'no such folder: nowhere'),
        ('-d raw raw', 'two folders of the same name'),
        ('-d raw=.', '"raw" is the name of the dataset itself'),
        ('-w raw/work', 'is inside the dataset'),
        ('-w raw', 'is inside the dataset'),
        ('-w out', 'is the output folder'),
        ('--config-file bad.toml', 'unknown setting n_procs'),
        ('--config-file range.toml', '--r2 = -1 1/s should be between 0 and 10000'),
        ('--bids-filter-file bad.json', 'unknown query "bold"'),
        ('--low-mem', 'unrecognized arguments: --low-mem'),
        ('--dry', 'unrecognized arguments: --dry'),
    ],
)
def test_usage_errors(refuse, tmp_path, options, message):
    (tmp_path / 'bad.toml').write_text('n_procs = 3\n')
    (tmp_path / 'range.toml').write_text('r2 = -1\n')
    (tmp_path / 'rule.toml').write_text('reg_rule = "best"\n')
    (tmp_path / 'slow.toml').write_text('node_timeout = 0\n')
    (tmp_path / 'sign.toml').write_text('phase_sign = 0\n')
    (tmp_path / 'b0.toml').write_text('b0_dir = [nan, 0, 1]\n')
    (tmp_path / 'none.toml').write_text('b0_dir = []\n')
    (tmp_path / 'stop.toml').write_text('stop_after = "never"\n')
    (tmp_path / 'empty.toml').write_text('work_dir = ""\n')
    (tmp_path / 'bad.json').write_text('{"bold": {}}')
    assert message in refuse(*options.split())


@pytest.mark.parametrize(
    'positional, message',
    [
        (['raw', 'raw', 'participant'], 'is the dataset itself'),
        (['raw', './raw/../raw', 'participant'], 'is the dataset itself'),
        (['raw', '.', 'participant'], 'is inside the output folder'),
        (['nowhere', 'out', 'participant'], 'no such folder: nowhere'),
        (['raw', 'out', 'session'], "invalid choice: 'session'"),
        (['raw', 'out'], 'analysis_level'),
        (['raw', 'file', 'participant'], 'the output folder is a file'),
    ],
)
def test_positional_errors(refuse, tmp_path, positional, message):
    (tmp_path / 'file').touch()
    assert message in refuse(positional=positional)


@pytest.mark.parametrize(
    'made_by, words',
    [
        ({'GeneratedBy': [{'Name': 'fMRIPrep'}]}, 'is the dataset "theirs" of fMRIPrep'),
        ({'DatasetType': 'raw'}, 'is the dataset "theirs", whose description would be written'),
        ({'GeneratedBy': [{'Name': 'precondqsm_bids'}, {'Name': 'Manual'}]}, ''),
    ],
)
def test_output_folder_of_another_program(refuse, parse, tmp_path, made_by, words):
    description = tmp_path / 'out' / 'dataset_description.json'
    description.parent.mkdir()
    description.write_text(json.dumps({'Name': 'theirs', 'BIDSVersion': '1.9.0'} | made_by))
    if words:
        assert words in refuse()
    else:
        parse()


def test_resume_refuses_what_has_no_effect_with_it(refuse, tmp_path, parse):
    line = refuse('--resume-with', tmp_path, '--inversion', 'tv', '--preset', 'consensus', '-v')
    assert '--inversion, --preset would have no effect there: leave it out' in line
    given = ('--resume-with', tmp_path, '--reference', 'none', '--report-self-contained')
    assert parse(*given).method.reference == 'none'


def test_group_level_refuses_what_has_no_effect_there(refuse, tmp_path):
    line = refuse(positional=['raw', 'out', 'group', '--no-shape', '-d', 'raw', '--nprocs', '2'])
    assert '--derivatives, --no-shape would have no effect there' in line
    settings = parse_args(
        [
            'raw',
            'out',
            'group',
            '--participant-label',
            'sub-01',
            '--session-id',
            'a',
            '--nprocs',
            '1',
        ]
    )
    assert (settings.analysis_level, settings.participant_label) == ('group', ('01',))


def test_a_settings_file_of_the_participant_level_serves_the_group_level(parse, tmp_path):
    (tmp_path / 'settings.toml').write_text('analysis_level = "participant"\nr2 = 3.0\n')
    settings = parse_args(['raw', 'out', 'group', '--config-file', 'settings.toml'])
    assert (settings.analysis_level, settings.method.r2) == ('group', 3.0)


def test_resource_monitor_needs_psutil(refuse, monkeypatch):
    monkeypatch.setattr(checks, 'find_spec', lambda name: None)
    assert 'pip install psutil' in refuse('--resource-monitor')


def test_brain_model_needs_synthstrip_and_the_brain(refuse, monkeypatch, tmp_path):
    (tmp_path / 'weights.pt').touch()
    given = ('--brain-model', str(tmp_path / 'weights.pt'))
    assert '--mask is auto: give --mask brain' in refuse(*given)
    monkeypatch.setattr(checks, 'find_spec', lambda name: None)
    assert 'pip install "precondqsm_bids[brain]"' in refuse(*given, '--mask', 'brain')
    missing = refuse('--brain-model', 'nowhere.pt', '--mask', 'brain')
    assert 'no such file: nowhere.pt' in missing


def test_work_folder_where_the_current_one_is_read_only(parse, tmp_path, monkeypatch):
    monkeypatch.setattr(os, 'access', lambda path, mode: Path(path) != tmp_path)
    monkeypatch.setenv('TMPDIR', '/elsewhere')
    monkeypatch.setattr(tempfile, 'gettempdir', lambda: '/elsewhere')
    assert parse().work_dir.parent == Path('/elsewhere')


def test_help_tells_defaults_as_they_are():
    """The help is text; the defaults are in Method."""
    text = re.sub(r'\s+', ' ', build_parser().format_help())
    plain = Method()
    assert f'background removal (default: {plain.pdf_iterations})' in text
    assert plain.reference == 'roi-mean'
    assert 'the mean of the region (default)' in text
    assert (plain.shape, plain.conventional, plain.r2, plain.reg_weight) == (
        True,
        True,
        'median',
        None,
    )
    assert plain.prior == ('contrast',)
    assert '(default: contrast)' in text


@pytest.mark.parametrize('option', ['--version', '--help'])
def test_nothing_heavy_is_imported(option):
    """Not a measure of time, which depends on the machine, but of what costs it."""
    code = (
        'import sys\n'
        'from precondqsm_bids.cli.run import main\n'
        f'status = main(["{option}"])\n'
        'roots = {name.partition(".")[0] for name in sys.modules}\n'
        'print(sorted(roots & {"numpy", "scipy", "nibabel", "bids", "nipype", "niworkflows", '
        '"matplotlib", "pandas", "yaml", "multiprocessing"}))\n'
        'raise SystemExit(status)\n'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == '[]'
    assert ('precondqsm_bids ' + __version__ in done.stdout) == (option == '--version')


def test_relative_paths_of_a_settings_file_are_those_of_the_current_folder(parse, tmp_path):
    for name in ('mask.nii', 'chi.nii'):
        (tmp_path / name).touch()
    (tmp_path / 'seg' / 'sub-01').mkdir(parents=True)
    text = 'mask = "mask.nii"\nprior = ["map:chi.nii", "contrast"]\nwork_dir = "w"\n'
    (tmp_path / 'set.toml').write_text(f'{text}[derivatives]\nseg = "seg"\n')
    settings = parse('--config-file', 'set.toml')
    assert settings.method.mask == str(tmp_path / 'mask.nii')
    assert settings.method.prior == (f'map:{tmp_path}/chi.nii', 'contrast')
    assert settings.work_dir == tmp_path / 'w'
    assert settings.derivatives == {'seg': tmp_path / 'seg'}
