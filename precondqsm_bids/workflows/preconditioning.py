"""The method around an inversion of somebody else's, as a workflow."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from nipype.pipeline import engine as pe
from niworkflows.engine.workflows import LiterateWorkflow

from precondqsm_bids.cost import stage_gb
from precondqsm_bids.interfaces.inner import FieldInUnits, TakeMap
from precondqsm_bids.method import Method
from precondqsm_bids.numerics.given_field import UNITS
from precondqsm_bids.numerics.precondition import TAKES
from precondqsm_bids.outputs.maps import MAPS, up_to_flattening
from precondqsm_bids.outputs.sentences import sentences_around
from precondqsm_bids.workflows.qsm import (
    FIELDS_AND_SHAPE,
    check_arguments,
    connect,
    edges_of,
    stage_node,
    stages_of,
)

BEFORE = ('shape_mask', 'echo_fit', 'r2prime_prior', 'prior_fit', 'flattening')
"""Stages up to the flattened field."""
OUTPUTS = (
    'precond_chi', 'residual_chi', 'local_field', *up_to_flattening(MAPS), *FIELDS_AND_SHAPE,
    'record',
)  # fmt: skip


class Inner(NamedTuple):
    """An inversion of somebody else's: a node or workflow from a field to susceptibility, ppm.

    Ports are those of the node, or of the ``inputnode`` and ``outputnode`` of the workflow; with a
    dot (``first.in_file``) those of any node in it.
    """

    run: pe.Node | pe.Workflow
    """The node or workflow."""
    field: str = 'field'
    """Its input of the field."""
    chi: str = 'chi'
    """Its output of the susceptibility, ppm, NIfTI, on the grid of the field."""
    mask: str | None = 'mask'
    """Its input of the mask; None if it takes none."""
    takes: str = 'total'
    """``total``: it removes the background itself; ``local``: that is done before."""
    units: str = 'ppm'
    """Of the field that it takes: ``ppm``, ``Hz``, ``rad/s`` or ``T``."""
    more: Mapping[str, str] = {}
    """Further inputs of it, and what is connected to each: an output of the preconditioning
    workflow that comes before it (``magnitude``, ``field_sd``, ``prior_chi``), ``field_strength``
    (T) or ``echo_times`` (s)."""


def init_preconditioning_wf(
    method: Method | None = None,
    inner: Inner | pe.Node | pe.Workflow | None = None,
    *,
    one_echo: bool = False,
    phase_difference: bool = False,
    omp_nthreads: int = 1,
    mem_gb: float = 0.25,
    n_echoes: int = 3,
    name: str = 'preconditioning_wf',
) -> LiterateWorkflow:
    """First estimate and flattening, an inversion of somebody else's, and the recombination.

    Parameters
    ----------
    method : Method, optional
        As for :func:`init_precondqsm_wf`; its inversion and other arms are not used, and
        its ``background`` only if the inversion takes a local field.
    inner : Inner, node or workflow, optional
        From the flattened field to its susceptibility. None ends the workflow with the flattened
        field and the prior.
    one_echo, phase_difference, omp_nthreads, mem_gb, n_echoes, name
        As for :func:`init_precondqsm_wf`.

    Returns
    -------
    workflow : LiterateWorkflow
        ``inputnode`` is that of :func:`init_precondqsm_wf`. ``outputnode`` has precond_chi (the
        map) and residual_chi (of the inversion), total_field, field_sd, magnitude, r2star and
        others as far as known, flattened_field, prior_chi and prior_field, shape_chi, shape_mask
        and roi_mask; local_field and background_field if the inversion takes a local field; and
        ``record``. Fields and susceptibilities are in ppm.

    Raises
    ------
    ValueError
        The prior is made of R2* and there is one echo; or ``inner`` has no such port.
    """
    method = method or Method()
    check_arguments(method, one_echo, omp_nthreads, mem_gb, n_echoes)
    method = replace(method, conventional=False, consensus=False)
    if inner is not None and not isinstance(inner, Inner):
        inner = Inner(inner)
    local = inner is not None and inner.takes == 'local'
    if not local:  # the region is that of the flattened field
        method = replace(method, background='pdf')
    workflow = LiterateWorkflow(name=name)
    takes = inner.takes if inner else None
    workflow.__desc__ = sentences_around(method, takes, one_echo, phase_difference)
    wanted = (*BEFORE, *['background_removal'] * local, *['recombination'] * (inner is not None))
    stages = {
        stage: interface
        for stage, interface in stages_of(method, one_echo, phase_difference).items()
        if stage in wanted
    }
    if inner is not None:
        _check(inner)
        stages['take_map'] = TakeMap()
    nodes = {
        stage: stage_node(stage, interface, omp_nthreads, stage_gb(stage, mem_gb, n_echoes))
        for stage, interface in stages.items()
    }
    edges = edges_of(method, one_echo)
    connect(workflow, nodes, edges if inner is None else [*edges, *_take(method, inner)], OUTPUTS)
    if inner is not None:
        _connect_inner(workflow, inner, edges, mem_gb / n_echoes)
    return workflow


def _take(method: Method, inner: Inner) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """Connections of what the inversion left."""
    source, field, known = _field(inner)
    if method.background == 'pdf':
        known = 'echo_fit'
    return [
        (source, 'take_map', [(field, 'field')]),
        (known, 'take_map', [('roi_mask', 'mask')]),
        ('take_map', 'recombination', [('residual_chi', 'residual_chi')]),
        ('take_map', 'outputnode', [('residual_chi', 'residual_chi')]),
    ]


def _field(inner: Inner) -> tuple[str, str, str]:
    """Stage and port of the field that is inverted, and the stage that says where it is known."""
    if inner.takes == 'local':
        return 'background_removal', 'local_field', 'background_removal'
    return 'flattening', 'flattened_field', 'echo_fit'


def _connect_inner(workflow: Any, inner: Inner, edges: Any, volume_gb: float) -> None:
    """Put the inversion between the field and what takes its map."""
    source, field, _ = _field(inner)
    node, take = workflow.get_node(source), workflow.get_node('take_map')
    inputnode = workflow.get_node('inputnode')
    if inner.units != 'ppm':
        units = pe.Node(FieldInUnits(units=inner.units), name='field_in_units', mem_gb=volume_gb)
        workflow.connect([
            (node, units, [(field, 'field')]),
            (inputnode, units, [('field_strength', 'field_strength')]),
        ])  # fmt: skip
        node, field = units, 'field'
    workflow.connect(node, field, inner.run, _port(inner, inner.field, 'inputnode'))
    workflow.connect(inner.run, _port(inner, inner.chi, 'outputnode'), take, 'residual_chi')
    sources = _sources(edges)
    more = {**({inner.mask: 'roi_mask'} if inner.mask else {}), **inner.more}
    for port, output in more.items():
        stage, own = ('inputnode', output) if output in TIMES else sources.get(output, ('', ''))
        if (node := workflow.get_node(stage) if stage else None) is None:
            known = sorted(
                name for name, (stage, _) in sources.items() if workflow.get_node(stage)
            )
            raise ValueError(
                f'inner.more: {output!r} is not known before the inversion; there are: '
                f'{", ".join([*known, *TIMES])}'
            )
        workflow.connect(node, own, inner.run, _port(inner, port, 'inputnode'))


TIMES = ('field_strength', 'echo_times')
"""Inputs of the workflow that an inversion may take."""
AFTER = ('take_map', 'recombination', 'dipole_inversion', 'gather')
"""Stages whose outputs come after the inversion."""


def _sources(edges: Any) -> dict[str, tuple[str, str]]:
    """Stage and port of each output that is known before the inversion."""
    return {
        output: (stage, port)
        for stage, target, ports in edges
        if target == 'outputnode' and stage not in AFTER
        for port, output in ports
    }


def _port(inner: Inner, name: str, of_workflow: str) -> str:
    """A port of the inversion, with the node of a workflow that has it."""
    workflow = isinstance(inner.run, pe.Workflow)
    return f'{of_workflow}.{name}' if workflow and '.' not in name else name


def _check(inner: Inner) -> None:
    """Raise ValueError if the inversion is none, or has no such ports."""
    if not isinstance(inner.run, pe.Node | pe.Workflow):
        raise ValueError(f'inner is {type(inner.run).__name__}: give a node or a workflow')
    for name, value, words in (('takes', inner.takes, TAKES), ('units', inner.units, UNITS)):
        if value not in words:
            raise ValueError(f'inner.{name} = {value!r} is not one of {", ".join(words)}')
    for name in (inner.field, *([inner.mask] if inner.mask else []), *inner.more):
        _check_port(inner, name, 'inputnode', 'inputs')
    _check_port(inner, inner.chi, 'outputnode', 'outputs')


def _check_port(inner: Inner, name: str, of_workflow: str, kind: str) -> None:
    port = _port(inner, name, of_workflow)
    node, _, trait = port.rpartition('.')
    holder = inner.run.get_node(node) if node else inner.run
    known = getattr(holder, kind).copyable_trait_names() if holder is not None else []
    if trait not in known:
        there = f'; there are: {", ".join(known)}' if known else ''
        raise ValueError(
            f'inner {inner.run.name} has no {kind.removesuffix("s")} {port}{there}: name its '
            'ports, Inner(node, field=..., chi=..., mask=...)'
        )
