"""The node that writes what a run produced: maps, sidecars, table of values, figures, numbers."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nb
import numpy as np
from isal import isal_zlib
from nipype.interfaces.base import (
    File,
    InputMultiPath,
    SimpleInterface,
    TraitedSpec,
    isdefined,
    traits,
)

from precondqsm_bids.interfaces.map_inputs import defined_maps, map_inputs
from precondqsm_bids.interfaces.volumes import b0_along, stored_axes, view, whole_numbers
from precondqsm_bids.numerics.constants import hz_per_ppm
from precondqsm_bids.numerics.dipole import bounding_box
from precondqsm_bids.numerics.echo_phase import left_phase
from precondqsm_bids.outputs.files import json_ready, sidecar_of, whole, write_atomic
from precondqsm_bids.outputs.maps import MAPS, VALUES, WRITTEN
from precondqsm_bids.outputs.sidecars import Facts, compose_sidecar
from precondqsm_bids.outputs.strip import STRIP, draw_strip, write_strip
from precondqsm_bids.outputs.tables import read_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from precondqsm_bids.outputs.slices import EchoPlanes

# What draws is imported where it is called: it takes half a second, and the main process, which
# only builds the node, has it by then (`cli.execution.prepare`).

CURVES = {'conventional_l_curve': 'conventional', 'l_curve': 'precond'}
"""Input with an L-curve -> name of its arm."""

REFERENCE_NAMES = {'roi-mean': 'mean of the region', 'none': ''}
"""What the maps are relative to, in words, where it is no label."""

MOST_ECHOES = 8
"""Of which the phase is drawn."""

LEVEL = 1
"""Of the compression: the next takes three times as long for half a per cent."""

GZIP = 31
"""Window of 2^15 bytes, with the header and checksum of gzip."""


class _DerivativesInputSpec(map_inputs(MAPS)):
    record = traits.Dict(mandatory=True, desc='stage -> the numbers it used, chose or measured')
    l_curve = traits.Dict(desc='L-curve of the preconditioned inversion')
    conventional_l_curve = traits.Dict(desc='L-curve of the conventional inversion')
    facts = traits.Dict(mandatory=True, desc='fields of `Facts` but the grid')
    echo_magnitude = InputMultiPath(
        File(exists=True), nohash=True, desc='magnitude of each echo, of which two are drawn'
    )
    echo_phase = InputMultiPath(File(exists=True), nohash=True, desc='phase of each echo')
    labels = File(exists=True, desc='segmentation on the same grid')
    labels_source = traits.Str(desc='URI of the segmentation that the values were taken with')
    table = File(exists=True, desc='values per label')
    columns = traits.Dict(desc='data dictionary of the table')
    base_directory = traits.Str(mandatory=True, desc='root of the derivatives')
    folder = traits.Str(mandatory=True, desc='folder of the session below it: sub-01/ses-a')
    stems = traits.Dict(
        traits.Str, traits.Str, mandatory=True, desc='datatype -> entities of the run in its names'
    )
    num_threads = traits.Int(1, usedefault=True, nohash=True, desc='maps compressed at a time')


class _DerivativesOutputSpec(TraitedSpec):
    out_files = traits.List(File(exists=True), desc='maps, in the order of the table of maps')


class Derivatives(SimpleInterface):
    """Write the derivatives of one run, each file whole or not at all, a sidecar before its map.

    The maps are compressed in threads while the figures are drawn from the same files, which are
    mapped into memory. Where nothing was inverted they are those of what comes before. What an
    earlier call with other settings has left of the run and this one does not write is removed in
    the end: beside each other they would pass for results of one call.
    """

    input_spec = _DerivativesInputSpec
    output_spec = _DerivativesOutputSpec
    _always_run = True  # whatever became of the output folder since

    def _run_interface(self, runtime):
        inputs = self.inputs
        maps = defined_maps(inputs)
        self._grid, self._here = maps['prior_chi'], set[Path]()
        self._prior_mean: float | None = None
        facts = facts_on_grid(inputs.facts, nb.load(self._grid))
        with ThreadPoolExecutor(inputs.num_threads) as pool:
            echoes = pool.submit(self._echoes)  # read while the charts are drawn
            written = {
                name: pool.submit(self._write_map, name, file, facts)
                for name, file in maps.items()
                if name in WRITTEN
            }
            self._draw(maps, facts, echoes)
            self._write_numbers(facts, signal_to_noise(maps, inputs.record))
            self._results['out_files'] = [str(file.result()) for file in written.values()]
        if isdefined(inputs.precond_chi):
            self._write_strip(maps)  # not older than its map
        self._remove_earlier()
        return runtime

    def _remove_earlier(self) -> None:
        """Remove the files of this run that an earlier call has written and this one has not."""
        from precondqsm_bids.outputs.figures import FIGURES

        maps = [self._path(row.datatype, f'{row.ending}.nii.gz') for row in WRITTEN.values()]
        figures = [self._path('figures', name) for name in (STRIP, *(f.name for f in FIGURES))]
        table = self._path('anat', VALUES)
        for path in (*maps, table, *figures):
            if path not in self._here:
                path.unlink(missing_ok=True)
                if path.parent.name != 'figures':
                    sidecar_of(path).unlink(missing_ok=True)

    def _path(self, datatype: str, ending: str) -> Path:
        """Place of a file; figures are those of the participant."""
        folder = Path(self.inputs.base_directory, self.inputs.folder)
        if datatype == 'figures':
            folder = Path(self.inputs.base_directory, Path(self.inputs.folder).parts[0])
        stems = self.inputs.stems
        return folder / datatype / f'{stems.get(datatype, stems["anat"])}_{ending}'

    def _own(self, datatype: str, ending: str) -> Path:
        """Place of a file that this call writes."""
        path = self._path(datatype, ending)
        self._here.add(path)
        return path

    def _write_map(self, name: str, file: str, facts: Facts) -> Path:
        """Write one map with its sidecar, a field in Hz; its path."""
        row = WRITTEN[name]
        target = self._own(row.datatype, f'{row.ending}.nii.gz')
        _write_json(target, compose_sidecar(row, self.inputs.record, facts))
        factor = 1.0 if row.file_unit == row.unit else hz_per_ppm(facts.field_strength)
        write_compressed(file, target, factor)
        return target

    def _write_numbers(self, facts: Facts, snr: float | None) -> None:
        """Write the table of values with its data dictionary, and the numbers of the report."""
        from precondqsm_bids.outputs.report import SUMMARY, summarise

        inputs = self.inputs
        if isdefined(inputs.table):
            target = self._own('anat', VALUES)
            labels = [inputs.labels_source] if isdefined(inputs.labels_source) else []
            _write_json(target, {**inputs.columns, 'Sources': [*facts.sources, *labels]})
            write_atomic(target, Path(inputs.table).read_text(encoding='utf-8'))
        along = np.abs(b0_along(self._grid)).max()
        summary = summarise(
            facts,
            inputs.record,
            {name: curve for name in CURVES if isdefined(curve := getattr(inputs, name))},
            run=inputs.stems['anat'],
            orientation=''.join(nb.aff2axcodes(nb.load(self._grid).affine)),
            b0_tilt=round(float(np.degrees(np.arccos(min(1.0, along)))), 2),
            snr=snr,
            prior_mean=self._prior_mean,
        )
        text = json.dumps(json_ready(summary), indent=2, sort_keys=True) + '\n'
        write_atomic(self._path('figures', SUMMARY), text)

    def _write_strip(self, maps: dict[str, str]) -> None:
        """Draw the slices that the page of the group shows."""
        size = nb.as_closest_canonical(nb.load(maps['precond_chi'])).header.get_zooms()[:3]
        strip = draw_strip(view(maps['precond_chi']), view(maps['roi_mask']), np.array(size))
        write_strip(self._own('figures', STRIP), strip)

    def _draw(
        self, files: dict[str, str], facts: Facts, echoes: Future[dict[str, np.ndarray]]
    ) -> None:
        """Draw the charts, and slices of the maps and echoes."""
        from matplotlib import rc_context

        from precondqsm_bids.outputs.charts import STYLE
        from precondqsm_bids.outputs.figures import FIGURES, save
        from precondqsm_bids.outputs.slices import DRAWN, DRAWN_IF_KNOWN, draw_maps

        inputs, names = self.inputs, {figure.desc: figure.name for figure in FIGURES}
        known = (name for name in (*DRAWN, *DRAWN_IF_KNOWN) if name in files)
        maps = {name: view(files[name]) for name in known}
        with rc_context(STYLE):
            for desc, figure in self._charts(maps, facts):
                save(figure, self._own('figures', names[desc]))
        labels = view(inputs.labels) if isdefined(inputs.labels) else None
        if labels is not None:
            labels = whole_numbers(labels, inputs.labels)
        size = nb.as_closest_canonical(nb.load(self._grid)).header.get_zooms()[:3]
        known_maps = maps | echoes.result()
        field, zooms = hz_per_ppm(facts.field_strength), np.array(size, float)
        phases = self._phases(maps, zooms)
        for desc, figure in draw_maps(known_maps, zooms, labels, field, phases):
            save(figure, self._own('figures', names[desc]))

    def _echoes(self) -> dict[str, np.ndarray]:
        """First and last echo as they are stored, the phase in rad."""
        inputs = self.inputs
        turn = inputs.record.get('echo_fit', {}).get('phase_turn') or 2 * np.pi
        found = {}
        for part in ('magnitude', 'phase'):
            files = getattr(inputs, f'echo_{part}')
            if isdefined(files):
                for which, file in {'first': files[0], 'last': files[-1]}.items():
                    if which == 'first' or len(files) > 1:
                        found[f'{which}_{part}'] = view(file)
        for name in ('first_phase', 'last_phase'):
            if name in found:
                turns = np.divide(found[name], turn, dtype=np.float32)
                turns -= np.rint(turns)
                turns *= np.float32(2 * np.pi)
                found[name] = turns
        return found

    def _phases(
        self, maps: dict[str, np.ndarray], zooms: np.ndarray
    ) -> Callable[[int], EchoPlanes] | None:
        """What makes the phase of the echoes in an axial plane; None of fewer than three echoes
        and of a given field."""
        fit, files = self.inputs.record.get('echo_fit', {}), self.inputs.echo_phase
        if not (fit.get('echo_phase') and 'r2star' in maps and isdefined(files)):
            return None
        return lambda index: echo_planes(files, fit, maps, zooms, index)

    def _charts(self, maps: dict[str, np.ndarray], facts: Facts) -> Iterator[tuple[str, Figure]]:
        """The figures that are no slices."""
        from precondqsm_bids.outputs.charts import (
            COLOURS,
            draw_echo_phase,
            draw_explained,
            draw_histograms,
            draw_l_curves,
            draw_roi_values,
            prior_mean,
        )

        inputs, record = self.inputs, self.inputs.record
        if chart := draw_explained(record.get('prior_fit', {}), record.get('comparison', {})):
            yield 'explained', chart
        if found := record.get('echo_fit', {}).get('echo_phase'):
            yield 'echophase', draw_echo_phase(found, facts.echo_times)
        if not isdefined(inputs.precond_chi):
            return
        curves = {arm: getattr(inputs, name) for name, arm in CURVES.items()}
        yield 'lcurve', draw_l_curves({
            arm: curve
            for arm, curve in curves.items()
            if isdefined(curve) and curve and curve['reg_weight'] is not None
        })  # fmt: skip
        box = bounding_box(maps['roi_mask'] > 0)
        within = {name: values[box] for name, values in maps.items()}
        mask = within['roi_mask'] > 0
        yield 'histogram', draw_histograms({
            arm: within[f'{arm}_chi'][mask & (within.get(f'{arm}_mask', mask) > 0)]
            for arm in COLOURS
            if f'{arm}_chi' in maps
        })  # fmt: skip
        if isdefined(inputs.table):
            found, rows = record.get('recombination', {}), read_table(inputs.table)
            reference = found.get('reference', '')
            words = REFERENCE_NAMES.get(reference, reference)
            # Of several bodies each has a reference of its own.
            if 'bodies' not in found:
                self._prior_mean = prior_mean(reference, rows, within['prior_chi'][mask])
            yield 'rois', draw_roi_values(rows, words, self._prior_mean)


def echo_planes(
    files: Sequence[str],
    fit: Mapping[str, Any],
    maps: Mapping[str, np.ndarray],
    zooms: np.ndarray,
    index: int,
) -> EchoPlanes:
    """Phase of the echoes in an axial plane, of many of ``MOST_ECHOES``, as found and as left.

    ``fit`` is the record of the echo fit, ``zooms`` the voxel size (mm) of the maps.
    """
    from precondqsm_bids.outputs.slices import EchoPlanes

    several = np.linspace(0, len(files) - 1, min(len(files), MOST_ECHOES))
    chosen = np.unique(np.rint(several).astype(int))
    times = np.asarray(fit['echo_times'])[chosen]
    planes = [view(files[e])[:, :, index] for e in chosen]
    turn = fit.get('phase_turn') or 2 * np.pi
    phase = np.stack(planes, axis=-1, dtype=np.float32) * np.float32(2 * np.pi / turn)
    place = np.stack([*np.indices(phase.shape[:2]), np.full(phase.shape[:2], index)], axis=-1)
    order = stored_axes(nb.load(files[0]).affine, range(3))
    for axis in fit.get('alternating_axes', ()):  # of the file
        phase += np.float32(np.pi) * (place[..., order.index(axis), None] % 2)
    taken = fit['echo_phase']
    gradient = np.asarray(taken['gradient'])[chosen] * zooms
    own = np.asarray(taken['constant'])[chosen]
    own = own + (place - _centre(maps['roi_mask'] > 0)) @ gradient.T
    left = left_phase(
        phase * fit.get('phase_sign', 1),
        2 * np.pi * hz_per_ppm(fit['field_strength']) * times,
        maps['total_field'][:, :, index],
        maps['r2star'][:, :, index, None] * times,
        own,
    )
    titles = tuple(f'echo {e + 1}, {1e3 * t:.4g} ms' for e, t in zip(chosen, times, strict=True))
    return EchoPlanes(titles, np.angle(np.exp(1j * (left + own))), left)


def _centre(mask: np.ndarray) -> np.ndarray:
    """Mean of the voxel indices of a mask, in the middle of an empty one."""
    sums = (mask.sum(axis=tuple({0, 1, 2} - {axis}), dtype=float) for axis in range(3))
    return np.array([
        np.average(np.arange(n), weights=w if w.any() else None)
        for n, w in zip(mask.shape, sums, strict=True)
    ])  # fmt: skip


def signal_to_noise(maps: Mapping[str, str], record: Mapping[str, Any]) -> float | None:
    """Median over the region of S0, or of the magnitude of all echoes, over a channel's noise."""
    noise, mask = record.get('echo_fit', {}).get('noise_sd'), view(maps['roi_mask']) > 0
    if not noise or not mask.any():
        return None
    signal = view(maps.get('s0', maps['magnitude']))
    return float(np.median(signal.T[mask.T]) / noise)  # along the memory of files


def write_compressed(source: str | os.PathLike[str], target: Path, factor: float = 1.0) -> None:
    """Write a NIfTI image that a node has left, times a factor, as ``.nii.gz``.

    Its header says as fMRIPrep's do that the grid is the scanner's (codes 1) and its unit mm;
    labels are int16 where that holds them. The deflate is ISA-L's, in which other threads go on:
    a tenth of zlib's time for the same size.
    """
    image = nb.load(source)
    data, header = np.asanyarray(image.dataobj), image.header
    if factor != 1:
        data = data * np.float32(factor)
    if data.dtype == np.int32 and (not data.size or data.max() <= np.iinfo(np.int16).max):
        data = data.astype(np.int16)
    header.set_data_dtype(data.dtype)
    if [int(header[f'{form}_code']) for form in ('qform', 'sform')] != [1, 1]:
        header.set_qform(image.affine, 1)
        header.set_sform(image.affine, 1)
    header.set_xyzt_units('mm')
    header.set_slope_inter(1, 0)
    header['vox_offset'] = 352
    compressor = isal_zlib.compressobj(LEVEL, wbits=GZIP)
    with whole(target) as temporary, temporary.open('wb') as stream:
        stream.write(compressor.compress(header.binaryblock + bytes(4)))
        stream.write(compressor.compress(data.ravel(order='F')))
        stream.write(compressor.flush())


def facts_on_grid(facts: dict[str, Any], image: Any) -> Facts:
    """`Facts` with the matrix and voxel size of an image."""
    return Facts(
        **facts,
        matrix=[int(n) for n in image.shape[:3]],
        voxel_size=[round(float(v), 6) for v in image.header.get_zooms()[:3]],
    )


def _write_json(target: Path, content: Any) -> None:
    """Write the JSON beside a file."""
    write_atomic(sidecar_of(target), json.dumps(json_ready(content), sort_keys=True, indent=2))
