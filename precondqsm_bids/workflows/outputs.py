"""Workflow that writes what a run produced: maps, sidecars, ROI table and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe
from niworkflows.engine.workflows import LiterateWorkflow as Workflow

from precondqsm_bids.interfaces.bids import (
    OUTPUTS,
    DerivativesDataSink,
    PpmToHz,
    Sidecars,
    fieldmap_acquisition,
)
from precondqsm_bids.interfaces.reports import LCurveFigure, MapFigures, RoiFigure, RunSummary
from precondqsm_bids.interfaces.roi_values import MAPS, RoiValues

INPUT_FIELDS = (
    *OUTPUTS,
    'conventional_local_field',
    'field_sd',
    'usable_echoes',
    'misfit',
    'l_curve',
    'conventional_l_curve',
    'record',
)
"""Ports of the reconstruction's outputnode, all of them, so that one connect joins the two."""

FIELD_PORTS = tuple(port for port, output in OUTPUTS.items() if output.units == 'Hz')
MAP_FIGURES = {
    'comparison': 'Chimap',
    'prior': 'Chimap',
    'fields': 'fieldmap',
    'echofit': 'R2starmap',
    'quality': 'fieldmap',
    'masks': 'mask',
}


def init_outputs_wf(
    *,
    name: str = 'outputs_wf',
    bids_dir: str | Path,
    output_dir: str | Path,
    source_files: Sequence[str],
    metadata: Mapping[str, Any],
    echo_times: Sequence[float],
    field_strength: float,
    settings_record: Mapping[str, Any],
    conventional: bool = True,
    labels: str | None = None,
    label_names: Mapping[int, str] | None = None,
    mask: str | None = None,
    more_sources: Sequence[str] = (),
    prior_labels: bool = False,
    derivatives: Mapping[str, str | Path] | None = None,
) -> Workflow:
    """Write the derivatives of one run.

    Parameters
    ----------
    bids_dir, output_dir : path_like
        The raw dataset and the derivatives.
    source_files : sequence of str
        Every raw file of the run, magnitude and phase or real and imaginary part.
    metadata : mapping
        Merged sidecar of the first magnitude.
    echo_times : sequence of float
        Seconds. With one, the maps of relaxation are not there and not written.
    field_strength : float
        Tesla.
    settings_record : mapping
        Settings of the method, for the sidecars.
    conventional : bool
        Whether the conventional arm was computed.
    labels : str, optional
        Segmentation on the grid of the run; with it, the ROI table is written.
    label_names : mapping of int to str, optional
        Names of the labels.
    mask : str, optional
        Region of interest that was given.
    more_sources : sequence of str
        Other files that were read: tissue, R2, susceptibility maps.
    prior_labels : bool
        Whether the parcels of the prior are written.
    derivatives : mapping of str to path_like, optional
        Derivative datasets that were read, by the name that BIDS URIs use.

    Notes
    -----
    The inputs are the outputs of `init_precondqsm_wf`: maps (susceptibility and fields in ppm),
    masks, ``l_curve``, ``conventional_l_curve``, ``record``.
    """
    workflow = Workflow(name=name)
    left_out = {'conventional_chi': not conventional, 'prior_labels': not prior_labels}
    left_out |= dict.fromkeys(('r2star', 't2star', 's0', 'r2prime'), len(echo_times) == 1)
    ports = [port for port in OUTPUTS if not left_out.get(port)]
    source_files = [str(f) for f in source_files]
    run = {
        'source_files': source_files,
        'metadata': dict(metadata),
        'echo_times': list(echo_times),
        'field_strength': field_strength,
        'settings_record': dict(settings_record),
    }

    def sink(desc: str | None, **entities: Any) -> pe.Node:
        return pe.Node(
            DerivativesDataSink(
                base_directory=str(output_dir),
                source_file=source_files[:1],  # the names differ in echo and part alone
                dismiss_entities=['echo', 'part'],
                compress=True,
                **({'desc': desc} if desc else {}),
                **entities,
            ),
            name='_'.join(filter(None, ('ds', entities['datatype'], desc, entities['suffix']))),
            run_without_submitting=True,
        )

    inputnode = pe.Node(niu.IdentityInterface(fields=list(INPUT_FIELDS)), name='inputnode')
    sidecars = pe.Node(
        Sidecars(
            **run,
            bids_dir=str(bids_dir),
            derivatives={key: str(root) for key, root in (derivatives or {}).items()},
        ),
        name='sidecars',
    )
    if mask:
        sidecars.inputs.mask = str(mask)
    if more_sources:
        sidecars.inputs.more_sources = [str(file) for file in more_sources]
    workflow.connect([
        (inputnode, sidecars, [('record', 'record'), ('precond_chi', 'precond_chi')]),
    ])  # fmt: skip

    # The maps, fields in Hz
    acquisition = fieldmap_acquisition(source_files[0])
    for port in ports:
        output = OUTPUTS[port]
        entities = {'datatype': output.datatype, 'suffix': output.suffix, 'extension': 'nii.gz'}
        if output.datatype == 'fmap' and acquisition:
            entities['acquisition'] = acquisition
        ds_map = sink(output.desc, **entities)
        if port in FIELD_PORTS:
            to_hz = pe.Node(PpmToHz(field_strength=field_strength), name=f'{port}_hz')
            workflow.connect([
                (inputnode, to_hz, [(port, 'in_file')]),
                (to_hz, ds_map, [('out_file', 'in_file')]),
            ])  # fmt: skip
        else:
            workflow.connect([(inputnode, ds_map, [(port, 'in_file')])])
        workflow.connect([
            (sidecars, ds_map, [(('sidecars', _item, port), 'meta_dict')]),
        ])  # fmt: skip

    # The figures
    map_figures = pe.Node(MapFigures(), name='map_figures', mem_gb=1)
    shown = [port for port in map_figures.inputs.copyable_trait_names() if port in ports]
    quality = ['field_sd', 'usable_echoes'] + ['misfit'] * (len(echo_times) > 1)
    l_curve_figure = pe.Node(LCurveFigure(), name='l_curve_figure')
    summary = pe.Node(RunSummary(**run), name='summary')
    ds_l_curve = sink('lcurve', datatype='figures', suffix='Chimap', extension='svg')
    ds_summary = sink('summary', datatype='figures', suffix='report', extension='json')
    curves = ['l_curve', 'conventional_l_curve'] if conventional else ['l_curve']
    workflow.connect([
        (inputnode, map_figures, [(port, port) for port in (*shown, *quality)]),
        (inputnode, l_curve_figure, [(curve, curve) for curve in curves]),
        (l_curve_figure, ds_l_curve, [('out_file', 'in_file')]),
        (inputnode, summary, [
            (port, port) for port in ('record', 'precond_chi', *curves)
        ]),
        (sidecars, summary, [(('sidecars', _item, 'precond_chi'), 'sidecar')]),
        (summary, ds_summary, [('out_file', 'in_file')]),
    ])  # fmt: skip
    for figure, suffix in MAP_FIGURES.items():
        ds_figure = sink(figure, datatype='figures', suffix=suffix, extension='png')
        workflow.connect([(map_figures, ds_figure, [(figure, 'in_file')])])

    # The values in the labelled regions
    if labels:
        map_figures.inputs.labels = labels
        sidecars.inputs.labels = str(labels)
        roi_values = pe.Node(
            RoiValues(labels=labels, label_names=dict(label_names or {})), name='roi_values'
        )
        roi_figure = pe.Node(RoiFigure(), name='roi_figure')
        ds_table = sink('rois', datatype='anat', suffix='values', extension='tsv')
        ds_roi_figure = sink('rois', datatype='figures', suffix='values', extension='svg')
        workflow.connect([
            (inputnode, roi_values, [('roi_mask', 'mask')]),
            (inputnode, roi_values, [(port, port) for port in MAPS if port in ports]),
            (roi_values, sidecars, [('columns', 'columns')]),
            (roi_values, ds_table, [('out_file', 'in_file')]),
            (sidecars, ds_table, [(('sidecars', _item, 'roi_values'), 'meta_dict')]),
            (roi_values, roi_figure, [('out_file', 'table')]),
            (roi_figure, ds_roi_figure, [('out_file', 'in_file')]),
        ])  # fmt: skip
    return workflow


def _item(dictionary, key):
    return dictionary[key]
