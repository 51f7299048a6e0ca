"""The nodes that write: maps whole or not at all, fields in Hz, sidecars of what was measured.

This module imports niworkflows; the reconstruction nodes of ``precondqsm_bids.interfaces`` do not.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

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
from niworkflows.interfaces.bids import DerivativesDataSink as _DerivativesDataSink

from precondqsm_bids.interfaces.volumes import load, save
from precondqsm_bids.numerics.constants import hz_per_ppm
from precondqsm_bids.outputs.figures import FIGURES
from precondqsm_bids.outputs.files import copy_atomic
from precondqsm_bids.outputs.maps import WRITTEN
from precondqsm_bids.outputs.sidecars import Facts, compose_sidecar

_SESSION = '[/ses-{session}]'
_OF_FIGURES = sorted({'report', *(figure.suffix for figure in FIGURES)})
_OF_ANAT = '[_task-{task}][_acq-{acquisition}][_ce-{ceagent}][_rec-{reconstruction}]'
_OF_FMAP = '[_acq-{acquisition}]'
"""A fieldmap has no task, ce or rec: the workflow folds them into acq."""


def _pattern(folder, session, entities, suffixes, extensions):
    """Pattern of the names of some files."""
    return (
        f'sub-{{subject}}{session}/{{datatype<{folder}>}}/sub-{{subject}}[_ses-{{session}}]{entities}'
        '[_run-{run}][_chunk-{chunk}][_desc-{desc}]_'
        f'{{suffix<{"|".join(suffixes)}>}}.{{extension<{extensions}>}}'
    )


def _suffixes(folder):
    """Suffixes of the maps of a folder."""
    return sorted({row.suffix for row in WRITTEN.values() if row.datatype == folder})


class DerivativesDataSink(_DerivativesDataSink):
    """The sink of niworkflows with our names, whole files only, and always ``.nii.gz``.

    niworkflows removes the old file and then writes the new one in place; a reader (or a kill)
    in between sees half a map. Here it writes to a staging folder, and each file goes to its
    place under a temporary name that is then renamed, the sidecar before its map.
    """

    out_path_base = ''
    _file_patterns = (
        _pattern('anat', _SESSION, _OF_ANAT, _suffixes('anat'), 'nii.gz'),
        _pattern('anat', _SESSION, _OF_ANAT, ['values'], 'tsv|json'),
        _pattern('fmap', _SESSION, _OF_FMAP, _suffixes('fmap'), 'nii.gz'),
        _pattern('figures', '', _OF_ANAT, _OF_FIGURES, 'png|svg|json'),
    )

    def _run_interface(self, runtime):
        base_directory = Path(self.inputs.base_directory).absolute()
        # Set here and not as a default of the trait: defaults are lost when a node is copied.
        self.inputs.compress = [
            str(path).endswith(('.nii', '.nii.gz')) for path in self.inputs.in_file
        ]
        with tempfile.TemporaryDirectory(dir=runtime.cwd) as staging:
            self.inputs.base_directory = staging
            try:
                runtime = super()._run_interface(runtime)
            finally:
                self.inputs.base_directory = str(base_directory)

            def publish(staged):
                return copy_atomic(staged, base_directory / Path(staged).relative_to(staging))

            staged = self._results['out_file']
            if 'out_meta' in self._results:
                self._results['out_meta'] = publish(self._results['out_meta'])
            self._results['out_file'] = [publish(file) for file in staged]
        return runtime


class _PpmToHzInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc='field, ppm')
    field_strength = traits.Float(mandatory=True, desc='B0, tesla')


class _PpmToHzOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc='field, Hz')


class PpmToHz(SimpleInterface):
    """Field in Hz from field in ppm: ``Hz = ppm 1e-6 gammabar B0`` (`constants.hz_per_ppm`)."""

    input_spec = _PpmToHzInputSpec
    output_spec = _PpmToHzOutputSpec

    def _run_interface(self, runtime):
        source = self.inputs.in_file
        field = load(source) * np.float32(hz_per_ppm(self.inputs.field_strength))
        self._results['out_file'] = save(field, source, runtime.cwd, 'field_hz')
        return runtime


class _SidecarsInputSpec(BaseInterfaceInputSpec):
    facts = traits.Dict(mandatory=True, desc='fields of `Facts` but the grid')
    record = traits.Dict(mandatory=True, desc='stage -> the numbers it used, chose or measured')
    precond_chi = File(exists=True, mandatory=True, desc='any map of the run, for its grid')
    labels_source = traits.Str(desc='URI of the segmentation that ROI values were taken with')
    columns = traits.Dict(desc='data dictionary of the ROI table')


class _SidecarsOutputSpec(TraitedSpec):
    sidecars = traits.Dict(desc='port -> sidecar')


class Sidecars(SimpleInterface):
    """Compose the sidecar of every output, once the numbers of the run are known."""

    input_spec = _SidecarsInputSpec
    output_spec = _SidecarsOutputSpec

    def _run_interface(self, runtime):
        inputs = self.inputs
        facts = facts_on_grid(inputs.facts, nb.load(inputs.precond_chi))
        sidecars = {
            name: compose_sidecar(row, inputs.record, facts) for name, row in WRITTEN.items()
        }
        if isdefined(inputs.columns):
            labels = [inputs.labels_source] if isdefined(inputs.labels_source) else []
            sidecars['roi_values'] = {**inputs.columns, 'Sources': [*facts.sources, *labels]}
        self._results['sidecars'] = sidecars
        return runtime


def facts_on_grid(facts, image):
    """`Facts` with the matrix and voxel size of an image."""
    return Facts(
        **facts,
        matrix=[int(n) for n in image.shape[:3]],
        voxel_size=[round(float(v), 6) for v in image.header.get_zooms()[:3]],
    )
