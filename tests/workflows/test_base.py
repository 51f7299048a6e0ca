"""One workflow from the runs, with every port fed."""

from dataclasses import fields
from pathlib import Path

import pytest
from nipype.interfaces.base import isdefined
from nipype.interfaces.utility import IdentityInterface

from precondqsm_bids.config import Settings
from precondqsm_bids.inputs.discovery import find_runs
from precondqsm_bids.method import Method
from precondqsm_bids.workflows.base import crash_folder, init_base_wf, node_name


@pytest.fixture
def build(dataset, tmp_path):
    """The workflow of a dataset with two participants, one of them with two runs and labels."""
    for stem in ('sub-01_ses-a_run-1', 'sub-01_ses-a_run-2', 'sub-02'):
        dataset.add_run(stem)
    dataset.add_labels('sub-02/anat/sub-02_dseg.nii.gz', {1: 'agar'})
    runs, problems = find_runs(dataset.root)
    assert not problems

    def make(runs=runs, **values):
        folders = {'bids_dir': dataset.root, 'output_dir': tmp_path / 'out'}
        settings = Settings.from_values(folders | {'work_dir': tmp_path / 'w'} | values)
        return init_base_wf(settings, runs, 'LOG')

    make.runs = runs
    return make


COMBINATIONS = [
    {},
    {'conventional': False},
    {'shape': False, 'r2': 10.0, 'reg_weight': 0.1, 'reference': 'none'},
    {'omp_nthreads': 2, 'nprocs': 2, 'pdf_iterations': 3},
]


@pytest.mark.parametrize('values', COMBINATIONS)
def test_names_follow_participants_and_runs(build, values):
    names = {tuple(name.split('.')[:3]) for name in build(**values).list_node_names()}
    parts = ('precondqsm_wf', 'outputs_wf')
    assert names == {
        (participant, run, part)
        for participant, run in (
            ('participant_01_wf', 'sub_01_ses_a_run_1_wf'),
            ('participant_01_wf', 'sub_01_ses_a_run_2_wf'),
            ('participant_02_wf', 'sub_02_wf'),
        )
        for part in parts
    }


@pytest.mark.parametrize('values', COMBINATIONS)
def test_every_port_is_declared_and_every_mandatory_input_is_fed(build, values):
    """Nipype takes a connection to a port that an IdentityInterface lacks without a word."""
    graph = build(**values)._create_flat_graph()
    fed = {node: set() for node in graph}
    for source, target, data in graph.edges(data=True):
        for out, into in data['connect']:
            port = out[0] if isinstance(out, tuple) else out
            assert port in source.outputs.copyable_trait_names(), (source, port)
            assert into in target.inputs.copyable_trait_names(), (target, into)
            assert into not in fed[target], (target, into)
            fed[target].add(into)
    for node, ports in fed.items():
        if isinstance(node.interface, IdentityInterface):
            continue
        for name, trait in node.inputs.traits(mandatory=True).items():
            assert name in ports or isdefined(getattr(node.inputs, name)), (node, name, trait)


def test_inputs_are_those_of_the_run(build, dataset):
    workflow = build()
    inputs = workflow.get_node('participant_01_wf.sub_01_ses_a_run_2_wf.precondqsm_wf').inputs
    anat = dataset.root / 'sub-01' / 'ses-a' / 'anat'
    assert inputs.inputnode.phase == [
        str(anat / f'sub-01_ses-a_run-2_echo-{i}_part-phase_MEGRE.nii.gz') for i in (1, 2, 3)
    ]
    assert inputs.inputnode.echo_times == [0.004, 0.008, 0.012]
    assert inputs.inputnode.field_strength == 3.0
    assert not isdefined(inputs.inputnode.phase_units)
    assert not isdefined(inputs.inputnode.labels)
    inputs = workflow.get_node('participant_02_wf.sub_02_wf.precondqsm_wf').inputs
    assert inputs.inputnode.labels == str(dataset.root / 'sub-02/anat/sub-02_dseg.nii.gz')
    assert inputs.inputnode.label_names == {1: 'agar'}


def test_odd_storage_goes_through_standard_echoes(dataset, tmp_path):
    """Labels and mask with it, since all of a run must have the affine that --b0-dir makes."""
    folder = dataset.add_run()
    paths = [dataset.root / 'sub-01/anat/sub-01_dseg.nii.gz', *folder.glob('*.nii.gz')]
    mask = tmp_path / 'mask.nii.gz'
    for path in (*paths, mask):
        dataset.write_image(path, affine=None)
    dataset.add_labels('sub-01/anat/sub-01_dseg.nii.gz', {1: 'agar'}, affine=None)
    (run,), problems = find_runs(dataset.root, method=Method(b0_dir=(0, 1, 0), mask=str(mask)))
    assert not problems
    settings = Settings(dataset.root, tmp_path / 'out', work_dir=tmp_path / 'w')
    workflow = init_base_wf(settings, [run], 'LOG')
    graph = workflow._create_flat_graph()
    (node,) = (node for node in graph if node.name == 'standard_echoes')
    assert node.inputs.b0_dir == [0.0, 1.0, 0.0]
    assert node.inputs.mask == str(mask)
    fed = {
        (port, target.name, into)
        for source, target, data in graph.edges(data=True)
        if source is node
        for port, into in data['connect']
    }
    ports = ('magnitude', 'phase', 'labels', 'mask')
    assert fed == {(port, 'inputnode', port) for port in ports}
    written = {
        target.name
        for source, target, data in graph.edges(data=True)
        if source.fullname.endswith('outputs_wf.inputnode')
        and ('labels', 'labels') in data['connect']
    }
    assert written == {'roi_values', 'derivatives'}


def test_crash_files_go_to_the_participant(build, tmp_path):
    workflow = build()
    for name in workflow.list_node_names():
        subject = '01' if name.startswith('participant_01') else '02'
        folder = str(tmp_path / 'out' / f'sub-{subject}' / 'log' / 'LOG')
        assert workflow.get_node(name).config['execution']['crashdump_dir'] == folder
        assert folder == str(crash_folder(tmp_path / 'out', subject, 'LOG'))


def test_text_describes_the_method_once(build):
    text = build(pdf_iterations=17).visit_desc()
    assert text.count('precondqsm_bids') == 1
    assert text.count('17 iterations') == 1
    head = 'Only the object (of a head the brain, found in the magnitude) was reconstructed.'
    assert text.count(head) == 1
    assert 'was reconstructed' not in build(mask='object').visit_desc()
    text = build(mask='brain', mask_erosion=1.5).visit_desc()
    border = ', less a border of 1.5 mm, was reconstructed.'
    assert text.count(f'Only the brain, found in the magnitude{border}') == 1


def test_method_settings_change_the_graph(build):
    """Each setting of the method is seen by the reconstruction or by the discovery."""
    changed = {
        'phase_sign': -1,
        'prior': 'r2prime',
        'r2': 10.0,
        'shape': False,
        'mask_erosion': 2.0,
        'conventional': False,
        'consensus': True,
        'pdf_iterations': 3,
        'reg_weight': 0.1,
        'reg_rule': 'risk',
        'inversion': 'tv',
        'background': 'vsharp',
        'reference': 'none',
    }
    method = {field.name for field in fields(Method)}
    # find_runs has all but prior_fit, which needs --prior r2prime
    others = {'field_strength', 'b0_dir', 'field', 'mask', 'contrasts', 'prior_fit'}
    assert method - set(changed) == others

    def stages(**values):
        workflow = build(build.runs[-1:], **values)
        edges = workflow._create_flat_graph().edges(data=True)
        return {
            name: str(workflow.get_node(name).inputs)
            for name in workflow.list_node_names()
            if '.precondqsm_wf.' in name
        } | {'connections': str(sum(len(data['connect']) for *_, data in edges))}

    plain = stages()
    for name, value in changed.items():
        assert stages(**{name: value}) != plain, name
    theory = stages(prior='r2prime')
    for value in ('global', 'clusters'):
        assert stages(prior='r2prime', prior_fit=value) != theory


def test_memory_of_a_run(dataset):
    dataset.add_run()
    (run,), _ = find_runs(dataset.root)
    # 4 x 5 x 6 voxels, 3 echoes, magnitude and phase, 4 bytes
    assert run.series_gb == 4 * 5 * 6 * 3 * 2 * 4 / 1024**3


def test_node_names_are_identifiers():
    for label in ('sub-01', 'sub-a+b_ses-1_acq-x_run-01', 'sub-01_rec-n'):
        assert node_name(label).isidentifier()
    assert node_name('sub-a+b') != node_name('sub-ab')


def test_work_folder(build, tmp_path):
    assert Path(build().base_dir) == tmp_path / 'w'
