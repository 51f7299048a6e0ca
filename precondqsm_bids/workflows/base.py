"""From the runs of a dataset to one workflow, with one below per participant and run."""

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nipype.pipeline import engine as pe
from niworkflows.engine.workflows import LiterateWorkflow

from precondqsm_bids import __version__
from precondqsm_bids.config import Settings
from precondqsm_bids.inputs.run import Run
from precondqsm_bids.interfaces.mask_on_grid import MaskOnGrid
from precondqsm_bids.interfaces.standard_echoes import StandardEchoes
from precondqsm_bids.interfaces.synthstrip import SynthStrip
from precondqsm_bids.interfaces.tissue_maps import TissueMaps
from precondqsm_bids.workflows.outputs import init_outputs_wf, ports_of
from precondqsm_bids.workflows.preconditioning import init_preconditioning_wf
from precondqsm_bids.workflows.qsm import first, init_precondqsm_wf

NAME = 'precondqsm_bids_wf'


def init_base_wf(settings: Settings, runs: Sequence[Run], log_name: str) -> LiterateWorkflow:
    """Reconstruct every run and write its derivatives; no node has an input left open.

    Crash files go to ``OUTPUT_DIR/sub-<label>/log/<log_name>``.
    """
    workflow = LiterateWorkflow(name=NAME, base_dir=settings.work_dir)
    workflow.__desc__ = (
        f'Maps of magnetic susceptibility were computed with *precondqsm_bids* {__version__}, '
        'which is based on *Nipype* [@nipype].\n\n'
    )
    participants: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        participants[run.subject].append(run)
    for subject, own in participants.items():
        participant_wf = LiterateWorkflow(name=node_name(f'participant-{subject}'))
        participant_wf.add_nodes([init_run_wf(settings, run) for run in own])
        workflow.add_nodes([participant_wf])
        crash_dir = str(crash_folder(settings.output_dir, subject, log_name))
        for node in participant_wf._get_all_nodes():
            node.config = {'execution': {'crashdump_dir': crash_dir}}
    return workflow


def init_run_wf(settings: Settings, run: Run) -> LiterateWorkflow:
    """Reconstruct one run and write its derivatives."""
    workflow = LiterateWorkflow(name=node_name(run.label))
    method = settings.method
    workflow.__desc__ = _region_sentence(
        'synthstrip' if settings.brain_model else 'given' if run.mask else method.inside,
        method.mask_erosion,
    )
    init = init_preconditioning_wf if settings.stop_after else init_precondqsm_wf
    precondqsm_wf = init(
        method,
        one_echo=run.without_r2star,
        phase_difference=run.phase_difference,
        omp_nthreads=settings.omp_nthreads,
        mem_gb=run.series_gb,
        n_echoes=max(1, len(run.echo_times)),
    )
    outputs_wf = init_outputs_wf(run, settings)
    _set_known(precondqsm_wf.inputs.inputnode, run)
    if run.tissue:
        _connect_tissue(workflow, precondqsm_wf, run)
    synthstrip = _connect_mask(workflow, precondqsm_wf, run, settings)
    files = {
        'magnitude': list(run.magnitude),
        'phase': list(run.phase),
        'labels': run.labels,
        'mask': None if run.mask_resampled else run.mask,
        'total_field': run.field,
        'field_sd': run.field_sd,
        'r2star': run.r2star_map,
    }
    files = {port: value for port, value in files.items() if value}
    if run.as_needed:
        for port, value in files.items():
            setattr(precondqsm_wf.inputs.inputnode, port, value)
        if synthstrip:
            synthstrip.inputs.magnitude = run.magnitude[0]
    else:
        standard_echoes = _standard_echoes(run, files)
        echoes = ['magnitude'] if run.field else ['magnitude', 'phase']
        ports = [*echoes, *(name for name in files if name not in ('magnitude', 'phase'))]
        taken = [(port, f'inputnode.{port}') for port in ports]
        workflow.connect([(standard_echoes, precondqsm_wf, taken)])
        if synthstrip:
            port = [(('magnitude', first), 'magnitude')]
            workflow.connect([(standard_echoes, synthstrip, port)])
        if run.labels and not settings.stop_after:
            # The table of values compares the grids, and --b0-dir may have given them an affine.
            workflow.connect(standard_echoes, 'labels', outputs_wf, 'inputnode.labels')
    ports = ports_of(run, settings)
    joined = [(f'outputnode.{port}', f'inputnode.{port}') for port in ports]
    workflow.connect([(precondqsm_wf, outputs_wf, joined)])
    return workflow


def _set_known(inputs: Any, run: Run) -> None:
    """Set the inputs that no node computes; of the optional ones those that are known."""
    if run.field:
        inputs.field_units = run.field_units
    else:
        inputs.echo_times = list(run.echo_times)
    inputs.field_strength = run.field_strength
    inputs.field_strength_source = run.field_strength_source
    if manufacturer := run.metadata.get('Manufacturer'):
        inputs.manufacturer = str(manufacturer)
    if run.phase_units:
        inputs.phase_units = run.phase_units
    if run.labels:
        inputs.label_names = run.label_names
    if run.contrasts:
        inputs.contrasts = list(run.contrasts)
    if run.r2_map:
        inputs.r2_map, inputs.r2_map_kind = run.r2_map, run.r2_map_kind
    if run.tissue:
        inputs.tissue_names = list(run.tissue.classes)


def _connect_mask(
    workflow: LiterateWorkflow, precondqsm_wf: LiterateWorkflow, run: Run, settings: Settings
) -> pe.Node | None:
    """Nodes of a mask that is not a file on the run's grid; that of SynthStrip if it is used."""
    if run.mask_resampled:
        node = pe.Node(MaskOnGrid(mask=run.mask, grid=run.sources[0]), name='mask_on_grid')
        workflow.connect(node, 'mask', precondqsm_wf, 'inputnode.mask')
    if not settings.brain_model:
        return None
    node = pe.Node(SynthStrip(model=settings.brain_model), name='synthstrip', mem_gb=4)
    workflow.connect(node, 'mask', precondqsm_wf, 'inputnode.mask')
    return node


def _connect_tissue(workflow: LiterateWorkflow, precondqsm_wf: LiterateWorkflow, run: Run) -> None:
    """Node that reads the tissue classes of a run on the grid of its echoes."""
    tissue_maps = pe.Node(
        TissueMaps(
            segmentation=list(run.tissue.files),
            classes=list(run.tissue.classes),
            grid=run.sources[0],
        ),
        name='tissue_maps',
        mem_gb=run.series_gb,
    )
    if run.tissue.label_classes is not None:
        tissue_maps.inputs.label_classes = run.tissue.label_classes
    workflow.connect(tissue_maps, 'tissue', precondqsm_wf, 'inputnode.tissue')


def _standard_echoes(run: Run, files: dict[str, Any]) -> pe.Node:
    """Node that stores the echoes of a run as the reconstruction needs them."""
    parts = {'real': list(run.real), 'imaginary': list(run.imaginary)}
    parts = {port: value for port, value in parts.items() if value}
    node = pe.Node(StandardEchoes(**files, **parts), name='standard_echoes', mem_gb=run.series_gb)
    if run.b0_dir:
        node.inputs.b0_dir = list(run.b0_dir)
    return node


def _region_sentence(inside: str, erosion: float) -> str:
    """Methods sentence on a region of interest that is not the object itself.

    >>> print(_region_sentence('given', 2.0), end='')
    Only the part of the object inside a given mask, less a border of 2 mm, was reconstructed.
    """
    if inside == 'object' and not erosion:
        return ''
    part = {
        'given': 'the part of the object inside a given mask',
        'brain': 'the brain, found in the magnitude',
        'synthstrip': 'the brain, found by SynthStrip [@synthstrip]',
        'auto': 'the object (of a head the brain, found in the magnitude)',
        'object': 'the object',
    }[inside]
    border = f', less a border of {erosion:g} mm,' if erosion else ''
    return f'Only {part}{border} was reconstructed.\n'


def node_name(label: str) -> str:
    """A label as the name of a workflow: Nipype takes letters, digits and underscores.

    >>> node_name('sub-01_ses-a+b'), node_name('sub-01_ses-aplusb')
    ('sub_01_ses_a__b_wf', 'sub_01_ses_aplusb_wf')
    """
    return re.sub(r'[^0-9a-zA-Z]', '_', label.replace('+', '__')) + '_wf'


def crash_folder(output_dir: Path, subject: str, log_name: str) -> Path:
    """Where the crash files of a participant go."""
    return output_dir / f'sub-{subject}' / 'log' / log_name
