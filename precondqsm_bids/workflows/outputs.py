"""Workflow that writes what a run produced: maps, sidecars, ROI table and figures."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe
from niworkflows.engine.workflows import LiterateWorkflow as Workflow

from precondqsm_bids.config import Settings
from precondqsm_bids.inputs.run import Run
from precondqsm_bids.interfaces.derivatives import Derivatives
from precondqsm_bids.interfaces.roi_values import RoiValues
from precondqsm_bids.outputs.dataset import bids_uri, fieldmap_stem
from precondqsm_bids.outputs.maps import MAPS, WITH_VALUES, names_of, up_to_flattening

ECHOES = ('echo_magnitude', 'echo_phase')
INPUT_FIELDS = (*MAPS, 'l_curve', 'conventional_l_curve', 'record', 'labels', *ECHOES)
"""Ports of the reconstruction's outputnode, all of them, so that one connect joins the two; and
the segmentation and the echoes on the grid of the maps."""

BYTES_PER_VOXEL = 130
"""Memory of the node that writes, with the pages of the images that it maps: as measured."""
VALUES_BYTES = 90
"""The same of the node of the values."""


def init_outputs_wf(run: Run, settings: Settings, *, name: str = 'outputs_wf') -> Workflow:
    """Write the derivatives of one run; with labels, the table of values too.

    ``inputnode`` has those outputs of `init_precondqsm_wf` that :func:`ports_of` names,
    ``labels`` where the run has some, and ``echo_magnitude`` and ``echo_phase``, one file an
    echo, of which the report shows two.
    """
    workflow = Workflow(name=name)
    ports = ports_of(run, settings)
    inputnode = pe.Node(niu.IdentityInterface(fields=list(INPUT_FIELDS)), name='inputnode')
    derivatives = pe.Node(
        Derivatives(
            facts=_facts(run, settings),
            base_directory=str(settings.output_dir.absolute()),
            folder=f'sub-{run.subject}' + (f'/ses-{run.session}' if run.session else ''),
            stems={'anat': run.label, 'fmap': fieldmap_stem(run.label)},
            num_threads=settings.omp_nthreads,
        ),
        name='derivatives',
        mem_gb=BYTES_PER_VOXEL * math.prod(run.matrix) / 1024**3,
        n_procs=settings.omp_nthreads,
    )
    workflow.connect([(inputnode, derivatives, _same(*ports, *(() if run.field else ECHOES)))])
    if run.labels and not settings.stop_after:
        derivatives.inputs.labels_source = _uri(run.labels, settings)
        inputnode.inputs.labels = run.labels
        roi_values = pe.Node(
            RoiValues(label_names=run.label_names or {}, num_threads=settings.omp_nthreads),
            name='roi_values',
            mem_gb=VALUES_BYTES * math.prod(run.matrix) / 1024**3,
            n_procs=settings.omp_nthreads,
        )
        with_values = [port for port in ports if port in (*WITH_VALUES, 'consensus_mask')]
        workflow.connect([
            (inputnode, roi_values, [('roi_mask', 'mask'), *_same('labels', 'record')]),
            (inputnode, roi_values, _same(*with_values)),
            (inputnode, derivatives, _same('labels')),
            (roi_values, derivatives, [('out_file', 'table'), ('columns', 'columns')]),
        ])  # fmt: skip
    return workflow


def ports_of(run: Run, settings: Settings) -> list[str]:
    """Ports of the reconstruction's outputnode that a run has."""
    arms = [arm.name for arm in settings.method.arms]
    names = names_of(
        one_echo=run.without_r2star,
        field_given=run.field is not None,
        arms=arms,
        requested=(
            *(['prior_labels'] if settings.write_prior_labels else []),
            *(['tissue_shift'] if settings.method.describes_interior else []),
        ),
    )
    if settings.stop_after:
        return [*up_to_flattening(names), 'record']
    return [
        *names,
        *(['l_curve', 'conventional_l_curve'] if 'conventional' in arms else ['l_curve']),
        'record',
    ]


def _facts(run: Run, settings: Settings) -> dict[str, Any]:
    """What `Facts` says of a run, but for its grid."""
    files = (
        *run.sources,
        *([run.mask] if run.mask else ()),
        *(run.tissue.files if run.tissue else ()),
        *([run.r2_map] if run.r2_map else ()),
        *run.contrasts,
        *settings.method.prior_maps,
    )
    return {
        'sources': [_uri(file, settings) for file in files],
        'echo_times': list(run.echo_times),
        'field_strength': run.field_strength,
        'metadata': dict(run.metadata),
        'settings': asdict(settings.method),
    }


def _uri(file, settings: Settings) -> str:
    return bids_uri(file, settings.bids_dir, settings.derivatives)


def _same(*ports: str) -> list[tuple[str, str]]:
    """Connections between ports of the same name."""
    return [(port, port) for port in ports]
