"""The nodes that draw the figures of a run and keep the numbers of its report."""

import json
from pathlib import Path

import matplotlib as mpl
import nibabel as nb
import numpy as np
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    SimpleInterface,
    TraitedSpec,
    isdefined,
    traits,
)

from precondqsm_bids.interfaces.derivatives import facts_on_grid
from precondqsm_bids.interfaces.map_inputs import defined_maps, map_inputs
from precondqsm_bids.interfaces.volumes import b0_along, load
from precondqsm_bids.outputs.figures import FIGURES, STYLE, draw_l_curves, draw_roi_values, save
from precondqsm_bids.outputs.files import json_ready
from precondqsm_bids.outputs.report import summarise
from precondqsm_bids.outputs.slices import DRAWN, DRAWN_IF_KNOWN, draw_maps
from precondqsm_bids.outputs.tables import read_table

CURVES = {'conventional_l_curve': 'conventional', 'l_curve': 'precond'}
"""Input with an L-curve -> name of its arm."""


class _MapFiguresInputSpec(map_inputs(DRAWN, DRAWN_IF_KNOWN)):
    labels = File(exists=True, desc='segmentation on the same grid')


_DRAWN = {figure.desc: File(desc=figure.title) for figure in FIGURES if figure.of_maps}


class _MapFiguresOutputSpec(type('DrawnSpec', (TraitedSpec,), _DRAWN)):
    pass  # a class of its own, since workers look it up by its name


class MapFigures(SimpleInterface):
    """Coronal and axial cross-sections of the maps of one run."""

    input_spec = _MapFiguresInputSpec
    output_spec = _MapFiguresOutputSpec

    def _run_interface(self, runtime):
        inputs = self.inputs
        maps = {name: load(file, None) for name, file in defined_maps(inputs).items()}
        labels = load(inputs.labels, int) if isdefined(inputs.labels) else None
        grid = nb.as_closest_canonical(nb.load(inputs.precond_chi)).header
        voxel_size = np.array(grid.get_zooms()[:3], dtype=float)
        with mpl.rc_context(STYLE):
            for name, figure in draw_maps(maps, voxel_size, labels):
                self._results[name] = save(figure, Path(runtime.cwd) / f'{name}.png')
        return runtime


class _CurvesInputSpec(BaseInterfaceInputSpec):
    l_curve = traits.Dict(desc='L-curve of the preconditioned inversion')
    conventional_l_curve = traits.Dict(desc='L-curve of the conventional inversion')


class _FileOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc='the figure, or the numbers')


class LCurveFigure(SimpleInterface):
    """Both L-curves with the weight that was used, and their curvature."""

    input_spec = _CurvesInputSpec
    output_spec = _FileOutputSpec

    def _run_interface(self, runtime):
        curves = {arm: getattr(self.inputs, name) for name, arm in CURVES.items()}
        known = {
            arm: curve
            for arm, curve in curves.items()
            if isdefined(curve) and curve and curve['reg_weight'] is not None
        }
        with mpl.rc_context(STYLE):
            self._results['out_file'] = save(
                draw_l_curves(known), Path(runtime.cwd) / 'lcurve.svg'
            )
        return runtime


class _RoiFigureInputSpec(BaseInterfaceInputSpec):
    table = File(exists=True, mandatory=True, desc='ROI table')


class RoiFigure(SimpleInterface):
    """Values per label against the independent reference: the abstract's figure 2."""

    input_spec = _RoiFigureInputSpec
    output_spec = _FileOutputSpec

    def _run_interface(self, runtime):
        with mpl.rc_context(STYLE):
            figure = draw_roi_values(read_table(self.inputs.table))
            self._results['out_file'] = save(figure, Path(runtime.cwd) / 'rois.svg')
        return runtime


class _RunSummaryInputSpec(_CurvesInputSpec):
    run = traits.Str(mandatory=True, desc='entities of the run')
    facts = traits.Dict(mandatory=True, desc='fields of `Facts` but the grid')
    record = traits.Dict(mandatory=True, desc='stage -> the numbers it used, chose or measured')
    precond_chi = File(exists=True, mandatory=True, desc='any map of the run, for its grid')


class RunSummary(SimpleInterface):
    """The numbers that the report shows about a run, so that it can be rebuilt from disk."""

    input_spec = _RunSummaryInputSpec
    output_spec = _FileOutputSpec

    def _run_interface(self, runtime):
        inputs = self.inputs
        image = nb.load(inputs.precond_chi)
        along = np.abs(b0_along(inputs.precond_chi)).max()
        summary = summarise(
            facts_on_grid(inputs.facts, image),
            inputs.record,
            {name: curve for name in CURVES if isdefined(curve := getattr(inputs, name))},
            run=inputs.run,
            orientation=''.join(nb.aff2axcodes(image.affine)),
            b0_tilt=round(float(np.degrees(np.arccos(min(1.0, along)))), 2),
        )
        out_file = Path(runtime.cwd) / 'summary.json'
        out_file.write_text(json.dumps(json_ready(summary), indent=2, sort_keys=True) + '\n')
        self._results['out_file'] = str(out_file)
        return runtime
