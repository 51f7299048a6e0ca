"""The pages say what the code does: options, stages, outputs, records, links, examples."""

import ast
import inspect
import re
import sys
from pathlib import Path
from types import ModuleType
from unittest import mock

import nibabel as nib
import numpy as np
import pytest
from records import record_keys

import precondqsm_bids
from precondqsm_bids.cli.parser import build_parser
from precondqsm_bids.numerics.prior.estimate import BASES
from precondqsm_bids.phantom.cli import build_parser as build_phantom_parser
from precondqsm_bids.phantom.scanner_spec import SWITCHES
from precondqsm_bids.phantom.spec import TubesSpec
from precondqsm_bids.phantom.tubes import simulate_tubes
from precondqsm_bids.terms import TERMS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / 'docs'
PAGES = sorted([ROOT / 'README.md', ROOT / 'CHANGES.md', *DOCS.glob('*.md')])
FENCE = re.compile(r'^(```+)(.*?)^\1[ \t]*$', re.MULTILINE | re.DOTALL)

each_page = pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)


def read(name):
    return (ROOT / name).read_text(encoding='utf-8')


def section(text, heading):
    """Text below a heading (given with its number signs), up to the next of the same level."""
    level = heading.split()[0]
    found = re.search(
        rf'^{re.escape(heading)}$(.*?)(?=^#{{1,{len(level)}}} |\Z)', text, re.MULTILINE | re.DOTALL
    )
    assert found, f'no section "{heading}"'
    return found[1]


def slug(heading):
    """The anchor of a heading, as GitHub and MyST make it."""
    return re.sub(r'[^\w\- ]', '', heading.replace('\\', '').lower()).replace(' ', '-')


def python_blocks(page):
    return [block for mark, block in _blocks(page) if mark == 'python']


def _blocks(page):
    for fence in FENCE.finditer(page.read_text(encoding='utf-8')):
        mark, _, body = fence[2].partition('\n')
        yield mark.strip(), body


def first_cells(table_text):
    """First cell of each row of the Markdown tables in a text, without its mark-up."""
    rows = re.findall(r'^\| *([^|]*?) *\|', table_text, re.MULTILINE)
    return [re.sub(r'\[?`([^`]*)`(\]\([^)]*\))?', r'\1', cell) for cell in rows]


def test_readme_begins_with_the_demo_and_then_the_tests():
    lines = read('README.md').splitlines()[:20]
    demo, test = (
        next(i for i, line in enumerate(lines) if line.startswith(command))
        for command in ('make demo', 'make test')
    )
    assert demo < test
    targets = re.findall(r'^([a-z-]+):', read('Makefile'), re.MULTILINE)
    for page in PAGES:
        for target in re.findall(r'(?:^|`)make ([a-z-]+)', page.read_text('utf-8'), re.MULTILINE):
            assert target in targets, f'{page.name}: no such task: make {target}'


# -- options -----------------------------------------------------------------------------------


def options(parser):
    return {option for action in parser._actions for option in action.option_strings}


def documented(text):
    """Options that the terms of the definition lists in a text begin with."""
    terms = re.findall(r'^(`-.*)\n: ', text, re.MULTILINE)
    return [
        option for term in terms for option in re.findall(r'`(-{1,2}[a-z][\w-]*)', term, re.ASCII)
    ]


@pytest.mark.parametrize(
    'heading, parser',
    [('## Options', build_parser()), ('## The phantom', build_phantom_parser())],
    ids=['app', 'phantom'],
)
def test_usage_page_has_every_option_once_and_no_other(heading, parser):
    found = documented(section(read('docs/usage.md'), heading))
    assert sorted(found) == sorted(options(parser))


def test_usage_page_has_the_choices_of_every_option():
    text = section(read('docs/usage.md'), '## Options')
    choices = {
        f'{action.option_strings[0]} {choice}': re.search(rf'\b{re.escape(str(choice))}\b', text)
        for action in build_parser()._actions
        if action.option_strings
        for choice in action.choices or ()
    }
    assert '--inversion tv' in choices
    assert [name for name, found in choices.items() if not found] == []


OF_OTHERS = {'--cleanenv', '--containall', '--fakeroot', '--userns', '--durations'}
"""Options of Apptainer and pytest."""


@each_page
def test_every_option_that_a_page_names_exists(page):
    known = options(build_parser()) | options(build_phantom_parser()) | OF_OTHERS
    # The page that a benchmark writes tells that benchmark's options too.
    benchmark = ROOT / 'benchmarks' / page.with_suffix('.py').name
    if benchmark.exists():
        known |= set(re.findall(r"add_argument\('(--[\w-]+)'", benchmark.read_text('utf-8')))
    text = FENCE.sub('', page.read_text(encoding='utf-8'))
    named = re.findall(r'`(--[a-z][\w-]*)', text)
    assert set(named) <= known


# -- stages ------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def stages():
    """Names of the stages that the workflow can have, without the prefixes of the arms."""
    from nipype.interfaces.utility import Function, IdentityInterface, Merge

    from precondqsm_bids.method import Method
    from precondqsm_bids.workflows.qsm import init_precondqsm_wf

    plumbing = IdentityInterface | Function | Merge
    names = set()
    clusters = {'prior': 'r2prime', 'prior_fit': 'clusters', 'consensus': True}
    for settings in ({}, {'prior': 'r2prime'}, clusters):
        workflow = init_precondqsm_wf(Method(**settings))
        names |= {
            name
            for name in workflow.list_node_names()
            if not isinstance(workflow.get_node(name).interface, plumbing)
        }
    of_arms = re.compile(r'(conventional_risk|conventional|consensus)_')
    stages = {name for name in names if not of_arms.match(name)} | {'quality_mask'}
    assert {of_arms.sub('', name) for name in names} == stages
    return stages


@pytest.mark.parametrize('name', ['README.md', 'docs/methods.md'])
def test_stage_table_has_every_node(name, stages):
    table = next(
        part for part in re.split(r'\n\n', read(name)) if part.startswith('| stage | ')
    ).splitlines()[2:]
    assert sorted(first_cells('\n'.join(table))) == sorted(stages)


def test_methods_have_a_section_per_stage_in_the_order_of_the_table(stages):
    text = read('docs/methods.md')
    headings = re.findall(r'^## (.*)$', text, re.MULTILINE)
    in_table = [cell for cell in first_cells(text) if cell in stages]
    assert [heading for heading in headings if heading in stages] == in_table
    assert set(in_table) == stages


def test_functions_and_interfaces_of_the_stage_table_exist(stages):
    import precondqsm_bids.interfaces as interfaces
    import precondqsm_bids.numerics as numerics

    rows = re.findall(
        r'^\| \[`(\w+)`\]\(#\w+\) \| ([^|]*) \| `(\w+)` \|', read('docs/methods.md'), re.MULTILINE
    )
    assert {stage for stage, *_ in rows} == stages
    for stage, functions, interface in rows:
        found = re.findall(r'\w+', functions)
        assert found, stage
        for function in found:
            assert callable(getattr(numerics, function)), function
        assert inspect.isclass(getattr(interfaces, interface)), interface


def test_methods_state_the_defaults_of_the_code():
    from precondqsm_bids.numerics import (
        background_removal,
        echo_phase,
        field_quality,
        phase,
        phase_offset,
        prior,
        solver,
    )
    from precondqsm_bids.numerics.echo_fit import LEAST_SNR
    from precondqsm_bids.numerics.shape_mask import WHOLE

    def default(function, name):
        return inspect.signature(function).parameters[name].default

    text = re.sub(r'\s+', ' ', read('docs/methods.md'))
    for statement in (
        f'{default(background_removal.pdf, "iterations")} is the default',
        rf'({solver.MODEL_ERROR}\ \mathrm{{ppm}})^2',
        f'plus {default(solver.solver_grid, "margin")} voxels on every side',
        f'less than {100 * WHOLE:g} % filled',
        'The {} iterations are split into {} rounds'.format(*prior.fit.FitOptions()),
        f'{prior.fit.MODEL_ERROR} times the root mean square',
        f'its size is {prior.fit.OUTER_SIZE:g} ppm, less than the 9 of tissue against air',
        *(' x '.join(map(str, scale.bins)) for scale in prior.contrast.SCALES),
        f'if it has {phase.scale.LEAST_CODES} steps or more',
        f'of what it leaves exceed {phase_offset.MOST_MISFIT} rad (root mean square)',
        f'Less than {echo_phase.LEAST_SIZE} rad or ten standard errors',
        f'below {"eight" if LEAST_SNR == 8 else LEAST_SNR} times the noise',
        f'exceeds {field_quality.REFUSED_FIELD_SD} ppm',
        f'R2\\* is zero in {100 * field_quality.MOST_ZERO_RATE:g} % of it',
        f'the sign is decided from {phase.sign.LEAST_CORRELATION} on, if the outermost layer',
        f'from a correlation of {phase.sign.CONTRADICTION} on the run is refused',
        'balls of radii of {:g} and {:g} of its largest extent'.format(*phase.outline.OUTLINES),
        f'no axis has more than {phase.outline.MOST_VOXELS} voxels',
        f'at least {phase.sign.FAR:g} degrees from',
        f'leaves {phase.sign.BETTER} times less variance',
        f'and has {phase.sign.CERTAIN[0]} or more',
        rf'({phase.sign.MODEL_ERROR}\ \mathrm{{ppm}})^2',
    ):
        assert statement in text, statement


# -- outputs -----------------------------------------------------------------------------------


def test_outputs_page_has_every_map_with_its_unit():
    from precondqsm_bids.outputs.maps import WRITTEN

    text = section(read('docs/outputs.md'), '## Maps')
    rows = re.findall(r'^\| `(.*?)` \| *(.*?) *\| `(\w+)` \|', text, re.MULTILINE)
    expected = [
        (
            f'{output.datatype}/<run>_{output.ending}.nii.gz',
            output.file_unit or '',
            port,
        )
        for port, output in WRITTEN.items()
    ]
    assert rows == expected


def test_outputs_page_has_every_port_of_the_workflow():
    from precondqsm_bids.workflows.qsm import OUTPUTS

    text = section(read('docs/outputs.md'), '## Maps')
    assert [port for port in OUTPUTS if f'`{port}`' not in text] == []


def test_outputs_page_has_every_sidecar_key():
    from precondqsm_bids.outputs.maps import WRITTEN
    from precondqsm_bids.outputs.sidecars import ACQUISITION_KEYS, Facts, compose_sidecar

    priors = {'contrast': {'parcels': 9, 'explained': 0.5}}
    chosen = {'reg_weight': 0.1, 'reference': 'roi-mean', 'priors': priors, 'r2_source': 'given'}
    chosen |= {'fit': 'global', 'b0_dir': [0, 0, 1]}
    measured = dict.fromkeys(('reference_value', 'reference_sd', 'roi_mean', 'roi_sd'), 0.0)
    record = {stage: chosen | measured for output in WRITTEN.values() for stage in output.stages}
    facts = Facts(
        ['bids:raw:x'], [0.01, 0.02], 3.0, dict.fromkeys(ACQUISITION_KEYS, 'x'),
        matrix=[9, 9, 9], voxel_size=[1.0, 1.0, 1.0],
    )  # fmt: skip
    record['shape_mask'] = record.get('shape_mask', {}) | {'roi_voxels': 9}
    keys = set()
    for output in WRITTEN.values():
        sidecar = compose_sidecar(output, record, facts)
        keys |= sidecar.keys()
        if isinstance(sidecar.get('Reference'), dict):
            keys |= sidecar['Reference'].keys()
    text = section(read('docs/outputs.md'), '## Sidecars')
    assert sorted(key for key in keys if f'`{key}`' not in text) == []


def test_outputs_page_has_the_records_of_every_stage(stages):
    """Most keys are read from the source, since a record takes a reconstruction."""
    text = section(read('docs/outputs.md'), '### Parameters')
    described, current = {}, ''
    for stage, keys in re.findall(r'^\| (`\w+`)? *\| ([^|]*) \|', text, re.MULTILINE):
        current = stage.strip('`') or current
        described.setdefault(current, set()).update(re.findall(r'`(\w+)`', keys))
    written = {stage: record_keys(stage) for stage in stages}
    assert described == written


def test_outputs_page_has_every_column_of_the_table_of_values():
    from precondqsm_bids.outputs.maps import WITH_VALUES
    from precondqsm_bids.outputs.tables import Segmentation, roi_rows

    text = section(read('docs/outputs.md'), '## Values in labelled regions')
    labels = np.ones((6, 6, 6), int)
    labels[2:4, 2:4, 2:4] = 2
    maps = dict.fromkeys(WITH_VALUES, np.zeros(labels.shape))
    rows = roi_rows(Segmentation(labels, {}, np.eye(4)), labels > 0, maps)
    prefixed = re.compile(rf'({"|".join(WITH_VALUES)})_')
    columns = {prefixed.sub('<map>_', column) for column in rows[0]}
    assert sorted(name for name in [*columns, *WITH_VALUES] if f'`{name}`' not in text) == []


def test_outputs_page_has_every_figure():
    from precondqsm_bids.outputs.figures import FIGURES

    text = section(read('docs/outputs.md'), '## Figures and report')
    shown = [cell.removeprefix('<run>_') for cell in first_cells(text) if '<run>' in cell]
    assert sorted(shown) == sorted(figure.name for figure in FIGURES)


def test_outputs_page_has_every_column_of_the_group():
    from precondqsm_bids.outputs.group.outliers import LEAST_VALUES, LIMIT
    from precondqsm_bids.outputs.group.reading import STATUS
    from precondqsm_bids.outputs.group.tables import COEFFICIENT, COMPARED, QUALITY

    text = section(read('docs/outputs.md'), '## The group')
    names = {*QUALITY, *COEFFICIENT, *STATUS, *(c.removesuffix('_mean') for c in COMPARED)}
    assert sorted(name for name in names if f'`{name}`' not in text) == []
    named = re.findall(
        r'`(\w+)`', ' '.join(re.findall(r'^\| (`\w+`[^|]*) \|', text, re.MULTILINE))
    )
    assert set(named) == {*QUALITY, *COEFFICIENT}
    assert f'beyond {LIMIT}:' in text
    assert f'fewer than {LEAST_VALUES} values' in text


def test_usage_page_has_the_options_of_the_group_level():
    from precondqsm_bids.cli.options import GROUP_SETTINGS

    named = re.findall(r'`(-[\w-]+)', section(read('docs/usage.md'), '## The group level'))
    parser = build_parser()
    destinations = {o: action.dest for action in parser._actions for o in action.option_strings}
    positional = {'bids_dir', 'output_dir', 'analysis_level'}
    assert {destinations[option] for option in named} == GROUP_SETTINGS - positional


# -- inputs -------------------------------------------------------------------------------------


def fault_cases():
    """Names of the fault suite's cases, and of its tests, read from the source.

    A case is the first argument of ``case(...)`` or of another maker of one, or the ``id`` of a
    parameter that is written out.
    """
    cases, tests = set(), set()
    for path in (ROOT / 'tests' / 'faults').glob('test_*.py'):
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith('test_'):
                tests.add(node.name)
            if not isinstance(node, ast.Call):
                continue
            makers = ('case', 'masked', 'look_alike', 'channels')
            if ast.unparse(node.func) in makers and isinstance(node.args[0], ast.Constant):
                assert node.args[0].value not in cases, node.args[0].value
                cases.add(node.args[0].value)
            cases |= {
                keyword.value.value
                for keyword in node.keywords
                if keyword.arg == 'id' and isinstance(keyword.value, ast.Constant)
            }
    return cases, tests


def test_inputs_page_has_every_case_of_the_fault_suite_and_no_row_without():
    cases, tests = fault_cases()
    assert len(cases) >= 60
    rows = [
        row.strip('| ').split(' | ')
        for row in re.findall(r'^\| .* \|$', read('docs/inputs.md'), re.MULTILINE)
    ]
    rows = [row for row in rows if row[-1] != 'case']
    named = []
    for row in rows:
        names = re.findall(r'`([\w-]+)`', row[-1])
        assert names, f'a row without a case: {row[0]}'
        assert set(names) <= cases | tests, set(names) - cases - tests
        named += names
    assert len(named) == len(set(named))
    assert sorted(cases - set(named)) == []


def test_containers_page_has_every_test_of_the_image():
    source = read('tests/container/test_image.py')
    tests = re.findall(r'^def (test_\w+)', source, re.MULTILINE)
    rows = re.findall(
        r'^\| .* \| `(test_\w+)` \| .* \|$', read('docs/containers.md'), re.MULTILINE
    )
    assert sorted(rows) == sorted(tests)


@pytest.mark.parametrize('heading, tables', [('## Head', 3), ('## Tubes', 2)])
def test_scanner_page_has_every_switch_in_every_table(heading, tables):
    cells = first_cells(section(read('docs/scanner.md'), heading))
    counts = {name: cells.count(name) for name in (*SWITCHES, 'all')}
    assert counts == dict.fromkeys(counts, tables)


# -- links, examples, build --------------------------------------------------------------------


@each_page
def test_relative_links_resolve(page):
    text = FENCE.sub('', page.read_text(encoding='utf-8'))
    targets = re.findall(r'\]\(([^)\s]+)\)', text)
    targets += re.findall(r'^```\{figure\} (\S+)', page.read_text(encoding='utf-8'), re.MULTILINE)
    assert targets or page.name in {'changes.md', 'citing.md', 'performance.md'}
    for target in targets:
        if target.startswith('https://'):
            continue
        name, _, anchor = target.partition('#')
        file = page.parent / name if name else page
        assert file.is_file(), f'{page.name}: {target}'
        if anchor:
            headings = re.findall(r'^#+ (.*)$', FENCE.sub('', file.read_text('utf-8')), re.M)
            assert anchor in map(slug, headings), f'{page.name}: {target}'


def test_index_leads_to_every_page():
    trees = re.findall(
        r'```\{toctree\}\n(?::[^\n]*\n)*\n(.*?)```', read('docs/index.md'), re.DOTALL
    )
    pages = sorted({page.stem for page in DOCS.glob('*.md')} - {'index'})
    assert sorted(' '.join(trees).split()) == pages


def test_each_of_seventeen_questions_has_an_answer_that_leads_further():
    parts = re.split(r'^## (.*)$', read('docs/faq.md'), flags=re.MULTILINE)[1:]
    answers = dict(zip(parts[::2], parts[1::2], strict=True))
    assert len(answers) == 17
    for question, answer in answers.items():
        assert re.search(r'\]\([\w.#-]+\)', answer), question


@pytest.fixture(scope='module')
def tiny_run(tmp_path_factory):
    """Names that the examples use: files of a phantom of 3 mm voxels, and its echo times."""
    folder = tmp_path_factory.mktemp('run')
    phantom = simulate_tubes(
        TubesSpec(
            matrix=(26, 26, 24),
            voxel_size=(3.0, 3.0, 3.0),
            object_scale=0.6,
            echo_times=(0.0014, 0.0042, 0.007),
        ),
        seed=0,
    )
    files = {}
    for name in ('magnitude', 'phase'):
        files[f'{name}_files'] = [str(folder / f'{name}{i}.nii.gz') for i in range(3)]
        for i, path in enumerate(files[f'{name}_files']):
            echo = getattr(phantom, name)[..., i]
            nib.save(nib.Nifti1Image(echo.astype(np.float32), phantom.affine), path)
    program = str(DOCS / 'embedding' / 'division.py')
    return files | {'echo_times': list(phantom.echo_times), 'program': program}


@pytest.mark.slow
@pytest.mark.parametrize(
    'page, number',
    [(page, i) for page in PAGES for i in range(len(python_blocks(page)))],
    ids=lambda value: getattr(value, 'name', value),
)
def test_python_examples_run(page, number, tiny_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = tmp_path / 'example.py'  # Nipype reads the source of functions and pickles classes
    source.write_text(python_blocks(page)[number], encoding='utf-8')
    example = ModuleType('example')
    vars(example).update(tiny_run)
    monkeypatch.setitem(sys.modules, 'example', example)
    with mock.patch.dict(TERMS), mock.patch.dict(BASES):  # what an example adds
        exec(compile(source.read_text(encoding='utf-8'), source, 'exec'), vars(example))
    if hasattr(example, 'workflow'):
        maps = [nib.load(path) for path in tmp_path.glob('work/mine/**/recombination/chi.nii')]
        assert [image.shape for image in maps] == [(26, 26, 24)]


def test_version_of_the_pages_is_that_of_the_code():
    assert f'## {precondqsm_bids.__version__}\n' in read('CHANGES.md')
