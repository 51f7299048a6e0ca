"""Workflow that writes what a run produced: maps, sidecars, ROI table and figures."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Any

from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe
from niworkflows.engine.workflows import LiterateWorkflow as Workflow

from precondqsm_bids.config import Settings
from precondqsm_bids.inputs.run import Run
from precondqsm_bids.interfaces.derivatives import DerivativesDataSink, PpmToHz, Sidecars
from precondqsm_bids.interfaces.figures import LCurveFigure, MapFigures, RoiFigure, RunSummary
from precondqsm_bids.interfaces.roi_values import RoiValues
from precondqsm_bids.outputs.dataset import bids_uri
from precondqsm_bids.outputs.figures import FIGURES
from precondqsm_bids.outputs.maps import MAPS, WITH_VALUES, WRITTEN, names_of
from precondqsm_bids.outputs.slices import DRAWN, DRAWN_IF_KNOWN

INPUT_FIELDS = (*MAPS, 'l_curve', 'conventional_l_curve', 'record')
"""Ports of the reconstruction's outputnode, all of them, so that one connect joins the two."""


def init_outputs_wf(run: Run, settings: Settings, *, name: str = 'outputs_wf') -> Workflow:
    """Write the derivatives of one run; with labels, the table of values too.

    ``inputnode`` has those outputs of `init_precondqsm_wf` that :func:`ports_of` names.
    """
    workflow = Workflow(name=name)
    ports = ports_of(run, settings)
    curves = [port for port in ports if port.endswith('l_curve')]
    sink = partial(_sink, run, settings)
    facts = _facts(run, settings)
    inputnode = pe.Node(niu.IdentityInterface(fields=list(INPUT_FIELDS)), name='inputnode')
    sidecars = pe.Node(Sidecars(facts=facts), name='sidecars')
    map_figures = pe.Node(MapFigures(), name='map_figures', mem_gb=1)
    l_curve_figure = pe.Node(LCurveFigure(), name='l_curve_figure')
    summary = pe.Node(RunSummary(run=run.label, facts=facts), name='summary')
    ds_summary = sink('summary', datatype='figures', suffix='report', extension='json')
    drawn = [port for port in ports if port in (*DRAWN, *DRAWN_IF_KNOWN)]
    workflow.connect([
        (inputnode, sidecars, _same('record', 'precond_chi')),
        (inputnode, map_figures, _same(*drawn)),
        (inputnode, l_curve_figure, _same(*curves)),
        (inputnode, summary, _same('record', 'precond_chi', *curves)),
        (summary, ds_summary, [('out_file', 'in_file')]),
        *(edge for port in ports if port in WRITTEN
          for edge in _map_edges(port, run, sink, inputnode, sidecars)),
    ])  # fmt: skip
    drawers = {'lcurve': (l_curve_figure, 'out_file')}
    if run.labels:
        map_figures.inputs.labels = run.labels
        sidecars.inputs.labels_source = _uri(run.labels, settings)
        roi_values = pe.Node(
            RoiValues(labels=run.labels, label_names=run.label_names or {}), name='roi_values'
        )
        roi_figure = pe.Node(RoiFigure(), name='roi_figure')
        ds_table = sink('rois', datatype='anat', suffix='values', extension='tsv')
        workflow.connect([
            (inputnode, roi_values, [('roi_mask', 'mask')]),
            (inputnode, roi_values, _same(*(port for port in ports if port in WITH_VALUES))),
            (roi_values, sidecars, _same('columns')),
            (roi_values, ds_table, [('out_file', 'in_file')]),
            (sidecars, ds_table, [(('sidecars', _item, 'roi_values'), 'meta_dict')]),
            (roi_values, roi_figure, [('out_file', 'table')]),
        ])  # fmt: skip
        drawers['rois'] = (roi_figure, 'out_file')
    for desc, suffix, extension, *_ in FIGURES:
        if desc != 'rois' or run.labels:
            ds_figure = sink(desc, datatype='figures', suffix=suffix, extension=extension)
            workflow.connect(*drawers.get(desc, (map_figures, desc)), ds_figure, 'in_file')
    return workflow


def _sink(run: Run, settings: Settings, desc: str | None, **entities: Any) -> pe.Node:
    """Node that writes one file of a run."""
    return pe.Node(
        DerivativesDataSink(
            base_directory=str(settings.output_dir),
            source_file=list(run.sources[:1]),  # the names differ in echo and part alone
            dismiss_entities=['echo', 'part', *([] if desc else ['desc'])],
            compress=True,
            **({'desc': desc} if desc else {}),
            **entities,
        ),
        name='_'.join(filter(None, ('ds', entities['datatype'], desc, entities['suffix']))),
        run_without_submitting=True,
    )


def _map_edges(port, run, sink, inputnode, sidecars):
    """Connections that write one map with its sidecar; a field in ppm is written in Hz."""
    row, edges = WRITTEN[port], []
    entities = {'datatype': row.datatype, 'suffix': row.suffix, 'extension': 'nii.gz'}
    if row.datatype == 'fmap' and (acquisition := _fieldmap_acquisition(run.entities)):
        entities['acquisition'] = acquisition
    ds_map = sink(row.desc, **entities)
    source, out = inputnode, port
    if row.file_unit != row.unit:
        source = pe.Node(PpmToHz(field_strength=run.field_strength), name=f'{port}_hz')
        edges, out = [(inputnode, source, [(port, 'in_file')])], 'out_file'
    return [
        *edges,
        (source, ds_map, [(out, 'in_file')]),
        (sidecars, ds_map, [(('sidecars', _item, port), 'meta_dict')]),
    ]


def ports_of(run: Run, settings: Settings) -> list[str]:
    """Ports of the reconstruction's outputnode that a run has."""
    conventional = settings.method.conventional
    return [
        *names_of(
            one_echo=run.without_r2star,
            field_given=run.field is not None,
            conventional=conventional,
            requested=('prior_labels',) if settings.write_prior_labels else (),
        ),
        *(['l_curve', 'conventional_l_curve'] if conventional else ['l_curve']),
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


def _fieldmap_acquisition(entities) -> str | None:
    """The acq label of a fieldmap, which must also carry task, ce and rec to stay unique.

    >>> _fieldmap_acquisition({'acq': 'hi', 'rec': 'norm', 'run': '1'})
    'hirecnorm'
    >>> _fieldmap_acquisition({'run': '1'}) is None
    True
    """
    folded = ''.join(f'{key}{entities[key]}' for key in ('task', 'ce', 'rec') if key in entities)
    return (entities.get('acq', '') + folded) or None


def _same(*ports: str) -> list[tuple[str, str]]:
    """Connections between ports of the same name."""
    return [(port, port) for port in ports]


def _item(dictionary, key):
    return dictionary[key]
