"""The settings survive the way through TOML, and every one of them is read somewhere."""

import ast
import tomllib
from dataclasses import FrozenInstanceError, asdict, fields, replace
from pathlib import Path

import pytest

import precondqsm_bids
from precondqsm_bids.config import Settings, parse_toml
from precondqsm_bids.method import Method

PLAIN = Settings(Path('/data/in'), Path('/data/out'))
ODD = Settings(
    bids_dir=Path('/data/with "quotes" and \\back\\slashes'),
    output_dir=Path('/data/tab\there/ümlaut/new\nline/\x7f'),
    analysis_level='group',
    participant_label=('01', 'a+b'),
    session_label=('pre',),
    bids_filters={'megre': {'run': None, 'acquisition': ['hi', '*']}},
    derivatives={'a.b "c"': Path("/it's here"), 'plain': Path('x')},
    bids_database_dir=Path('db'),
    skip_bids_validation=True,
    work_dir=Path('/w'),
    clean_workdir=True,
    nprocs=7,
    omp_nthreads=3,
    mem_gb=1e-5,
    node_timeout=30.5,
    use_plugin=Path('p.yml'),
    submit='slurm',
    submit_limit=3,
    submit_time='1-00:00:00',
    write_graph=True,
    resource_monitor=True,
    stop_on_first_crash=True,
    boilerplate_only=True,
    reports_only=True,
    report_self_contained=True,
    dry_run=True,
    stop_after='flattening',
    resume_with=Path('/their/maps'),
    verbose=3,
    method=Method(
        field_strength=2.89362,
        phase_sign=-1,
        b0_dir=(0.0, 0.6, 0.8),
        field='derivatives',
        mask='/m/"a" mask.nii.gz',
        mask_erosion=2.5,
        prior=('contrast', 'map:/m/"a" map.nii.gz'),
        prior_fit='clusters',
        contrasts=('T1w', 'R1map'),
        r2=1e3,
        shape=False,
        conventional=False,
        consensus=True,
        pdf_iterations=12,
        reg_weight=0.1,
        inversion='tv',
        background='vsharp',
        reg_rule='risk',
        reference='none',
    ),
    write_prior_labels=True,
    brain_model=Path('/m/w.pt'),
)


@pytest.mark.parametrize('settings', [PLAIN, ODD], ids=['plain', 'odd'])
def test_round_trip(settings):
    assert Settings.from_toml(settings.to_toml()) == settings


def test_odd_differs_from_the_defaults_everywhere():
    """Otherwise the round trip could lose a field and not be noticed."""
    for odd, plain in ((ODD, PLAIN), (ODD.method, PLAIN.method)):
        same = [f.name for f in fields(odd) if getattr(odd, f.name) == getattr(plain, f.name)]
        assert same == []


def test_another_reader_sees_the_same():
    document = tomllib.loads(ODD.to_toml())
    assert document['derivatives'] == {'a.b "c"': "/it's here", 'plain': 'x'}
    assert document['output_dir'] == '/data/tab\there/ümlaut/new\nline/\x7f'
    assert document['r2'] == 1e3


def test_none_is_left_out():
    assert 'reg_weight' not in tomllib.loads(PLAIN.to_toml())


def test_method_has_the_settings_of_the_method_only():
    assert asdict(PLAIN.method) == {
        'field_strength': None,
        'phase_sign': None,
        'b0_dir': None,
        'field': 'echoes',
        'mask': 'auto',
        'mask_erosion': 0.0,
        'prior': ('contrast',),
        'prior_fit': 'auto',
        'contrasts': (),
        'r2': 'median',
        'shape': True,
        'conventional': True,
        'consensus': False,
        'background': 'pdf',
        'pdf_iterations': 30,
        'reg_weight': None,
        'reg_rule': 'auto',
        'inversion': 'l2',
        'reference': 'roi-mean',
    }


@pytest.mark.parametrize(
    'text, message',
    [
        ('n_procs = 4', 'unknown setting n_procs'),
        ('nprocs = "4"', "nprocs = '4' should be of type int"),
        ('nprocs = true', 'nprocs = True should be of type int'),
        ('phase_sign = true', 'phase_sign = True should be of type int | None'),
        ('phase_sign = "+1"', 'phase_sign'),
        ('dry_run = 1', 'dry_run = 1 should be of type bool'),
        ('participant_label = "01"', 'participant_label'),
        ('participant_label = [1]', 'participant_label'),
        ('r2 = true', 'r2 = True should be of type float | str'),
        ('b0_dir = ["x", "y", "z"]', 'b0_dir'),
        ('work_dir = 3', 'work_dir'),
        ('nprocs = ', 'Invalid value'),
        ('[nprocs]', 'nprocs'),
    ],
)
def test_what_is_wrong_is_named(text, message):
    with pytest.raises(ValueError, match=message):
        parse_toml(text)


def test_one_prior_may_be_a_word():
    assert parse_toml('prior = "r2prime"') == {'prior': ('r2prime',)}
    assert parse_toml('prior = ["contrast", "tissue"]') == {'prior': ('contrast', 'tissue')}


def test_an_integer_may_stand_for_a_float():
    assert parse_toml('field_strength = 3') == {'field_strength': 3.0}


def test_both_folders_are_needed():
    with pytest.raises(ValueError, match='lack output_dir'):
        Settings.from_toml('bids_dir = "x"')


def test_frozen():
    with pytest.raises(FrozenInstanceError):
        PLAIN.nprocs = 3
    assert replace(PLAIN, nprocs=3).nprocs == 3


def read(paths, value):
    """Attributes of the name ``value`` (``settings``, ``settings.method`` and so on) in files."""
    return {
        node.attr
        for path in paths
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Load)
        and ast.unparse(node.value) in value
    }


def test_every_setting_is_read():
    """A setting that the program never reads is a promise that it breaks in silence."""
    package = Path(precondqsm_bids.__file__).parent
    sources = [package / 'workflows' / 'base.py', *sorted((package / 'cli').glob('*.py'))]
    assert {f.name for f in fields(Settings)} - read(sources, {'settings'}) == set()
    names = {'method', 'self', 'settings.method', 'self.method'}
    assert {f.name for f in fields(Method)} - read(package.rglob('*.py'), names) == set()


def test_labels_of_a_file_may_have_their_prefix():
    text = 'participant_label = ["sub-01", "02"]\nsession_label = ["ses-a"]'
    assert parse_toml(text) == {'participant_label': ('01', '02'), 'session_label': ('a',)}
