"""The maps' values per labelled region, as a BIDS table and its data dictionary."""

from pathlib import Path

import numpy as np
from nipype.interfaces.base import File, SimpleInterface, TraitedSpec, isdefined, traits

from precondqsm_bids.interfaces.map_inputs import defined_maps, map_inputs
from precondqsm_bids.interfaces.volumes import (
    affine_along_b0,
    check_grid,
    load,
    load_mask,
    whole_numbers,
)
from precondqsm_bids.outputs.maps import WITH_VALUES
from precondqsm_bids.outputs.tables import Segmentation, column_dictionary, roi_rows, write_table


class _RoiValuesInputSpec(map_inputs((*WITH_VALUES, 'consensus_mask'))):
    labels = File(exists=True, mandatory=True, desc='integer labels on the grid of the maps')
    label_names = traits.Dict(traits.Int, traits.Str, desc='name of each label')
    mask = File(
        exists=True, mandatory=True, desc='region of interest: voxels outside it do not count'
    )
    record = traits.Dict(desc='stage -> its numbers; of the uncertainty those of each label')
    num_threads = traits.Int(1, usedefault=True, nohash=True, desc='threads that share the work')


class _RoiValuesOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc='table, one row per label')
    columns = traits.Dict(desc='data dictionary of the table: column -> Description, Units')


class RoiValues(SimpleInterface):
    """Mean, sd, median and voxel count of each map in each label, and cylinder references.

    The result is `numerics.roi_values` over the voxels of each label that lie in the mask; of the
    map by the consensus those in which it is known.
    """

    input_spec = _RoiValuesInputSpec
    output_spec = _RoiValuesOutputSpec

    def _run_interface(self, runtime):
        path, files = self.inputs.labels, defined_maps(self.inputs)
        check_grid([path, self.inputs.mask, *files.values()])
        labels = whole_numbers(load(path, None), path)
        mask = load_mask(self.inputs.mask)
        maps = {name: load(file, None) for name, file in files.items()}
        if (known := maps.pop('consensus_mask', None)) is not None:
            maps['consensus_chi'] = np.where(known > 0, maps['consensus_chi'], np.nan)
        names = self.inputs.label_names if isdefined(self.inputs.label_names) else {}
        record = self.inputs.record if isdefined(self.inputs.record) else {}
        regions = record.get('uncertainty', {}).get('regions')
        threads = self.inputs.num_threads
        # The labels are a file of the dataset; the mask has the direction of B0 that was stated.
        segmentation = Segmentation(labels, names, affine_along_b0(self.inputs.mask))
        rows = roi_rows(segmentation, mask, maps, regions, threads)
        columns = column_dictionary(list(rows[0]) if rows else ['index', 'name'], segmentation)
        out_file = Path(runtime.cwd) / 'roi_values.tsv'
        write_table(out_file, columns, rows)
        self._results.update(out_file=str(out_file), columns=columns)
        return runtime
