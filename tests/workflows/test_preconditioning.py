"""The method around an inversion of somebody else's: a node, a command line, a workflow.

The inversion is truncated k-space division, written here: it knows nothing of the package. The
truth is that of the simulation.
"""

import logging
import sys
from dataclasses import replace

import nibabel as nb
import numpy as np
import pytest
from nipype.interfaces import utility as niu
from nipype.interfaces.base import (
    CommandLine,
    CommandLineInputSpec,
    File,
    TraitedSpec,
)
from nipype.pipeline import engine as pe

from precondqsm_bids.interfaces import BackgroundRemoval
from precondqsm_bids.interfaces.inner import FieldInUnits, TakeMap
from precondqsm_bids.interfaces.volumes import b0_along, geometry, load
from precondqsm_bids.method import Method
from precondqsm_bids.numerics import Companions, GivenField, pdf, precondition
from precondqsm_bids.numerics.given_field import in_ppm
from precondqsm_bids.phantom.spec import TubesSpec
from precondqsm_bids.phantom.tubes import simulate_tubes
from precondqsm_bids.workflows import Inner, init_preconditioning_wf, init_precondqsm_wf

HZ = 127.729
SPEC = TubesSpec(
    object_scale=0.45,
    matrix=(26, 26, 24),
    voxel_size=(2.0, 2.0, 2.0),
    tubes_dchi=(0.4, 0.8, 1.2),
    echo_times=(0.0014, 0.0042, 0.007, 0.0098),
)
SCRIPT = """
import sys
import nibabel as nb
import numpy as np

field, mask = (nb.load(path) for path in sys.argv[1:3])
size = field.header.get_zooms()[:3]
k = np.meshgrid(*(np.fft.fftfreq(n, d) for n, d in zip(field.shape, size)), indexing='ij')
square = sum(axis**2 for axis in k)
kernel = 1 / 3 - k[2] ** 2 / np.where(square, square, 1)
kernel = np.where(abs(kernel) < 0.2, np.copysign(0.2, kernel), kernel)
chi = np.fft.ifftn(np.fft.fftn(field.get_fdata()) / kernel).real * (mask.get_fdata() > 0)
scale = float(sys.argv[4]) if len(sys.argv) > 4 else 1.0
nb.save(nb.Nifti1Image((scale * chi).astype(np.float32), field.affine), sys.argv[3])
"""


class DivisionInputSpec(CommandLineInputSpec):
    script = File(exists=True, argstr='%s', position=0, mandatory=True)
    in_file = File(exists=True, argstr='%s', position=1, mandatory=True)
    mask = File(exists=True, argstr='%s', position=2, mandatory=True)
    out_file = File(
        argstr='%s', position=3, name_source='in_file', name_template='%s_chi.nii',
        keep_extension=False,
    )  # fmt: skip


class DivisionOutputSpec(TraitedSpec):
    out_file = File(exists=True)


class Division(CommandLine):
    """A program of somebody else's."""

    _cmd = sys.executable
    input_spec = DivisionInputSpec
    output_spec = DivisionOutputSpec


def divide(field, mask, scale=1.0):
    """A function of somebody else's, on files."""
    import subprocess
    import sys
    from pathlib import Path

    script, chi = Path('division.py').absolute(), Path('chi.nii').absolute()
    script.write_text(SCRIPT)
    command = [sys.executable, script, field, mask, chi, str(scale)]
    subprocess.run(command, check=True)
    return str(chi)


@pytest.fixture(scope='module')
def phantom():
    return simulate_tubes(SPEC, seed=1)


@pytest.fixture
def division(tmp_path):
    """The program as a node."""
    (tmp_path / 'division.py').write_text(SCRIPT)
    return pe.Node(Division(script=str(tmp_path / 'division.py')), name='division')


def function_node(**inputs):
    source = f'SCRIPT = {SCRIPT!r}\n'
    node = pe.Node(
        niu.Function(['field', 'mask', 'scale'], ['chi'], divide, imports=[source.strip()]),
        name='division',
    )
    for name, value in inputs.items():
        setattr(node.inputs, name, value)
    return node


def run(workflow, tmp_path, phantom):
    """Run on the true field in Hz; outputs by the names of the workflow's last node."""
    files = {}
    for name, volume in (
        ('total_field', HZ * phantom.field + 1e-3),
        ('magnitude', phantom.magnitude[..., 0]),
        ('prior_map', 0.9 * phantom.chi),
    ):
        files[name] = str(tmp_path / f'{name}.nii')
        nb.save(nb.Nifti1Image(volume.astype(np.float32), phantom.affine), files[name])
    given = workflow.inputs.inputnode
    given.total_field, given.field_units = files['total_field'], 'Hz'
    given.magnitude, given.field_strength = [files['magnitude']], 3.0
    given.prior_map = files['prior_map']
    workflow.base_dir = str(tmp_path / 'work')
    logging.getLogger('nipype.workflow').setLevel(logging.ERROR)
    workflow.config['execution'] = {
        'remove_unnecessary_outputs': 'false', 'crashdump_dir': str(tmp_path),
    }  # fmt: skip
    out = pe.Node(niu.IdentityInterface(['kept']), name='kept')
    workflow.connect([(workflow.get_node('outputnode'), out, [('record', 'kept')])])
    nodes = {node.name: node for node in workflow.run(plugin='Linear').nodes()}
    return {
        (name, port): value
        for name, node in nodes.items()
        if node.result and node.result.outputs
        for port, value in node.result.outputs.get().items()
    }


METHOD = Method(field='derivatives', prior='map:prior_map')


@pytest.mark.parametrize('units', ['ppm', 'Hz'])
def test_map_is_better_than_that_of_the_program_alone(tmp_path, phantom, division, units):
    if units == 'Hz':  # the program divides whatever it is given: what it leaves has its unit
        inner = Inner(function_node(scale=1 / HZ), takes='local', units=units)
    else:
        inner = Inner(division, field='in_file', chi='out_file', takes='local')
    workflow = init_preconditioning_wf(METHOD, inner, one_echo=True)
    found = run(workflow, tmp_path, phantom)
    chi = load(found['recombination', 'chi'])
    roi = load(found['shape_mask', 'roi_mask'], bool)
    true = phantom.chi[roi] - phantom.chi[roi].mean()
    error = np.linalg.norm(chi[roi] - true) / np.linalg.norm(true)
    size = phantom.spec.voxel_size
    local, _ = pdf(phantom.field.astype(np.float32), roi, size, (0, 0, 1), iterations=30)[:2]
    nb.save(nb.Nifti1Image(local, phantom.affine), tmp_path / 'bare.nii')
    nb.save(nb.Nifti1Image(roi.astype(np.uint8), phantom.affine), tmp_path / 'roi.nii')
    bare = function_node(field=str(tmp_path / 'bare.nii'), mask=str(tmp_path / 'roi.nii'))
    bare.inputs.scale = 1.0
    bare.base_dir = str(tmp_path)
    alone = load(bare.run().outputs.chi)[roi]
    before = np.linalg.norm(alone - alone.mean() - true) / np.linalg.norm(true)
    assert error < 0.2, before
    assert error < 0.5 * before, (error, before)
    record = found['gather', 'record']
    assert 0.5 < record['take_map']['field_slope'] < 2
    assert not record['take_map']['warnings']
    assert set(record) >= {'shape_mask', 'echo_fit', 'prior_fit', 'flattening', 'recombination'}


def test_python_function_is_that_on_arrays(tmp_path, phantom):
    """The graph adds nothing to the function on arrays, to the last bit."""
    inner = Inner(function_node(scale=1.0), takes='local')
    workflow = init_preconditioning_wf(METHOD, inner, one_echo=True)
    found = run(workflow, tmp_path, phantom)
    total, path = tmp_path / 'total_field.nii', str(tmp_path / 'magnitude.nii')
    field = in_ppm(load(str(total), np.float64), 'Hz', 3.0)
    given = GivenField(field, load(path), 3.0, geometry(path)[1], b0_along(path))
    prior_map = load(str(tmp_path / 'prior_map.nii'))
    on_arrays = precondition(given, METHOD, Companions(maps={'prior_map': prior_map}))

    def inner(field, mask, voxel_size, b0_dir):
        for name, data in (('f', field), ('m', mask.astype(np.uint8))):
            nb.save(nb.Nifti1Image(data, phantom.affine), tmp_path / f'{name}.nii')
        node = function_node(field=str(tmp_path / 'f.nii'), mask=str(tmp_path / 'm.nii'), scale=1)
        node.base_dir = str(tmp_path / 'own')
        return load(node.run().outputs.chi)

    np.testing.assert_array_equal(
        load(found['recombination', 'chi']), on_arrays.around(inner, 'local').chi
    )
    np.testing.assert_array_equal(load(found['prior_fit', 'prior_chi']), on_arrays.prior.prior_chi)
    np.testing.assert_array_equal(load(found['flattening', 'prior_field']), on_arrays.prior_field)
    with pytest.raises(ValueError, match="takes = 'phase'"):
        on_arrays.around(inner, 'phase')


def test_foreign_workflow(tmp_path, phantom, division):
    """A workflow from total field to susceptibility, with further inputs."""
    foreign = pe.Workflow(name='theirs')
    inputs, outputs = (
        pe.Node(niu.IdentityInterface(ports), name=name)
        for name, ports in (
            ('inputnode', ['fieldmap', 'brain', 'weights', 'tesla']), ('outputnode', ['qsm']),
        )
    )  # fmt: skip
    background = pe.Node(BackgroundRemoval(), name='background')
    foreign.connect([
        (inputs, background, [('fieldmap', 'field'), ('brain', 'mask')]),
        (background, division, [('local_field', 'in_file')]),
        (inputs, division, [('brain', 'mask')]),
        (division, outputs, [('out_file', 'qsm')]),
    ])  # fmt: skip
    inner = Inner(
        foreign, field='fieldmap', chi='qsm', mask='brain',
        more={'weights': 'field_sd', 'tesla': 'field_strength'},
    )  # fmt: skip
    workflow = init_preconditioning_wf(METHOD, inner, one_echo=True)
    assert [
        data['connect']
        for source, target, data in workflow._graph.edges(data=True)
        if target is foreign and source.name == 'echo_fit'
    ] == [[('roi_mask', 'inputnode.brain'), ('field_sd', 'inputnode.weights')]]
    found = run(workflow, tmp_path, phantom)
    chi = load(found['recombination', 'chi'])
    roi = load(found['shape_mask', 'roi_mask'], bool)
    true = phantom.chi[roi] - phantom.chi[roi].mean()
    assert np.linalg.norm(chi[roi] - true) < 0.2 * np.linalg.norm(true)
    assert not found['gather', 'record']['take_map']['warnings']


def test_without_an_inversion_it_ends_with_the_flattened_field(tmp_path, phantom):
    workflow = init_preconditioning_wf(replace(METHOD, consensus=True), one_echo=True)
    assert 'inverted' not in workflow.__desc__
    found = run(workflow, tmp_path, phantom)
    roi = load(found['shape_mask', 'roi_mask'], bool)
    flat = load(found['flattening', 'flattened_field'])[roi]
    total = load(found['echo_fit', 'total_field'])[roi]
    prior = load(found['flattening', 'prior_field'])[roi]
    np.testing.assert_allclose(flat, total - prior, atol=1e-5)
    assert np.std(prior) > 0.1
    assert ('take_map', 'record') not in found


@pytest.mark.parametrize(
    'inner, words',
    [
        (lambda node: Inner(node), 'has no input field; there are: .*in_file'),
        (lambda node: Inner(node, 'in_file'), 'has no output chi; there are: out_file'),
        (lambda node: Inner(node, 'in_file', 'out_file', takes='both'), 'takes = .both. is not'),
        (lambda node: Inner(node, 'in_file', 'out_file', units='mT'), 'units = .mT. is not'),
        (lambda node: Inner(print), 'give a node or a workflow'),
        (
            lambda node: Inner(node, 'in_file', 'out_file', more={'script': 'precond_chi'}),
            'is not known before the inversion; there are: .*field_sd',
        ),
    ],
)
def test_wrong_port_is_named(division, inner, words):
    with pytest.raises(ValueError, match=words):
        init_preconditioning_wf(METHOD, inner(division), one_echo=True)


@pytest.mark.parametrize(
    'change, words',
    [
        (lambda chi, affine: (1000 * chi, affine), 'another unit than ppm'),
        (lambda chi, affine: (-chi, affine), 'other sign'),
        (lambda chi, affine: (chi[:-1], affine), 'differ in matrix size'),
        (lambda chi, affine: (chi, affine + np.eye(4)), 'differ in the affines'),
        (lambda chi, affine: (np.where(chi > 0.3, np.nan, chi), affine), 'not finite in'),
    ],
    ids=['unit', 'sign', 'matrix', 'affine', 'nan'],
)
def test_map_that_is_not_of_the_field_is_refused(tmp_path, phantom, change, words):
    mask = phantom.labels > 0
    paths = {name: str(tmp_path / f'{name}.nii') for name in ('field', 'mask', 'residual_chi')}
    field = np.where(mask, phantom.field - phantom.field[mask].mean(), 0)
    wrong, affine = change(phantom.chi.astype(np.float32), phantom.affine)
    for name, data, matrix in (
        ('field', field.astype(np.float32), phantom.affine),
        ('mask', mask.astype(np.uint8), phantom.affine),
        ('residual_chi', wrong.astype(np.float32), affine),
    ):
        nb.save(nb.Nifti1Image(data, matrix), paths[name])
    with pytest.raises(ValueError, match=words) as caught:
        TakeMap(**paths).run(cwd=str(tmp_path))
    assert 'residual_chi.nii' in str(caught.value)


def test_field_in_other_units(tmp_path):
    path = str(tmp_path / 'ppm.nii')
    nb.save(nb.Nifti1Image(np.ones((4, 4, 4), np.float32), np.eye(4)), path)
    node = FieldInUnits(field=path, units='rad/s', field_strength=3.0)
    found = load(node.run(cwd=str(tmp_path)).outputs.field)
    np.testing.assert_allclose(found, 2 * np.pi * 42.5775 * 3, rtol=1e-4)  # MHz/T


def test_map_that_is_an_input_has_to_be_there(tmp_path, phantom):
    workflow = init_preconditioning_wf(METHOD, one_echo=True)
    node = workflow.get_node('prior_fit')
    assert 'map:prior_map' in node.inputs.priors
    interface = node.interface
    path = str(tmp_path / 'field.nii')
    nb.save(nb.Nifti1Image(phantom.field.astype(np.float32), phantom.affine), path)
    for name in ('total_field', 'field_sd', 'mask'):
        setattr(interface.inputs, name, path)
    interface.inputs.field_strength = 3.0
    with pytest.raises(ValueError, match='prior_map is not given'):
        interface.run(cwd=str(tmp_path))


@pytest.mark.parametrize('init', [init_precondqsm_wf, init_preconditioning_wf])
@pytest.mark.parametrize(
    ('arguments', 'says'),
    [
        ({'method': 'contrast'}, 'method should be a Method, not a str'),
        ({'omp_nthreads': 0}, 'omp_nthreads should be positive'),
        ({'mem_gb': -1}, 'mem_gb should be positive'),
        ({'n_echoes': 0}, 'n_echoes should be positive'),
        ({'n_echoes': 1}, 'give one_echo=True'),
    ],
)
def test_workflows_of_what_cannot_be_are_refused(init, arguments, says):
    with pytest.raises(ValueError, match=says):
        init(**arguments)


@pytest.mark.parametrize('takes', ['total', 'local'])
def test_a_map_is_checked_where_its_field_is_known(takes):
    """Not in fat, which the echo fit leaves out of the region that the inversion is given."""
    node = pe.Node(niu.IdentityInterface(['field', 'mask', 'chi']), name='inner')
    workflow = init_preconditioning_wf(Method(), Inner(node, takes=takes))
    graph, take = workflow._graph, workflow.get_node('take_map')
    sources = {
        source.name: ports
        for source, _, data in graph.in_edges(take, data=True)
        if (ports := [own for own, port in data['connect'] if port == 'mask'])
    }
    assert sources == {'echo_fit': ['roi_mask']}
