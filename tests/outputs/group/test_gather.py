"""The group level on trees whose tables are known beforehand."""

import base64
import io
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path

import nibabel as nb
import numpy as np
import pytest
from PIL import Image

import precondqsm_bids
from precondqsm_bids.method import Method
from precondqsm_bids.outputs.group import gather, report, write_group
from precondqsm_bids.outputs.group.tables import COEFFICIENT, QUALITY

FILES = [
    *('group_coefficients.json', 'group_coefficients.tsv', 'group_quality.json'),
    *('group_quality.tsv', 'group_report.html', 'group_rois.json', 'group_rois.tsv'),
]


def region(index, name, chi, **more):
    return {'index': index, 'name': name, 'n_voxels': 10, 'precond_chi_mean': chi, **more}


def group(derivatives, **keywords):
    return write_group(derivatives.raw, derivatives.out, **keywords)


def page(derivatives):
    return (derivatives.out / 'group_report.html').read_text()


# -- rows ---------------------------------------------------------------------------------------


def test_values_of_every_run_in_order(derivatives):
    """Run 10 after run 2, participants and sessions as they are counted."""
    names = [
        'sub-2', 'sub-10_ses-a_run-2', 'sub-10_ses-a_run-10', 'sub-10_ses-b_acq-hi_run-1',
    ]  # fmt: skip
    for i, name in reversed(list(enumerate(names))):
        derivatives.add(name, echo_fit={'noise_sd': 1.5 + i}, regions=[region(1, 'agar', i / 8)])
    result = group(derivatives)
    assert (result.participants, result.usable, dict(result.runs)) == (2, 4, {'complete': 4})
    quality = derivatives.table('quality')
    assert [row['run'] for row in quality] == names
    assert [row['participant_id'] for row in quality] == ['sub-2', 'sub-10', 'sub-10', 'sub-10']
    assert [row['session_id'] for row in quality] == ['n/a', 'ses-a', 'ses-a', 'ses-b']
    assert [row['noise_sd'] for row in quality] == ['1.5', '2.5', '3.5', '4.5']
    expected = {
        'n_echoes': '2', 'offset_model': 'quartic', 'prior_parcels': '7', 'reg_weight': '0.1',
        'conventional_reg_weight': '0.2', 'reference_value': 'n/a', 'n_warnings': '0',
        'warnings': 'n/a', 'note': 'n/a', 'status': 'complete', 'outliers': 'n/a',
    }  # fmt: skip
    assert {key: quality[0][key] for key in expected} == expected
    rois = derivatives.table('rois')
    assert [(row['run'], row['name'], row['precond_chi_mean']) for row in rois] == [
        (name, 'agar', str(i / 8)) for i, name in enumerate(names)
    ]


def test_warnings_are_counted_and_told(derivatives):
    derivatives.add(
        'sub-1',
        comparison={'warnings': ['did not\thelp', 'at all']},
        dipole_inversion={'warnings': ['flat']},
    )
    group(derivatives)
    (row,) = derivatives.table('quality')
    assert row['n_warnings'] == '3'
    assert row['warnings'] == (
        'dipole_inversion: flat; comparison: did not help; comparison: at all'
    )


def test_a_text_without_end_is_cut(derivatives):
    """A reader of the csv module takes 131072 characters."""
    derivatives.add('sub-1', comparison={'warnings': ['x' * 200_000]})
    group(derivatives)
    assert derivatives.table('quality')[0]['warnings'].endswith('xx ...')


def test_coefficients_have_a_row_each(derivatives):
    derivatives.add(
        'sub-1',
        prior_fit={
            'priors': {'r2prime': {'parcels': 2}},
            'coefficients': {'r2prime': [0.5, 0.0]},
            'coefficient_errors': [0.25, 0.125],
            'implied_relaxivity': [646.0, None],
        },
    )
    derivatives.add('sub-2')
    group(derivatives)
    rows = derivatives.table('coefficients')
    columns = ('run', 'name', 'coefficient', 'coefficient_error')
    assert [[row[key] for key in columns] for row in rows] == [
        ['sub-1', '1', '0.5', '0.25'],
        ['sub-1', '2', '0', '0.125'],
    ]
    assert [row['implied_relaxivity'] for row in rows] == ['646', 'n/a']


def test_a_coefficient_keeps_its_term_and_tissue(derivatives):
    """A segmentation without a class moves no other; each is compared with its like alone."""
    for i in range(4):
        tissue = {'CSF': 0.5, 'GM': 0.25 + 0.01 * i, 'WM': -0.5, 'rest': 0.0}
        if i == 1:
            del tissue['CSF']
        terms = {'tissue': tissue, 'map:/a/chi.nii': [0.75 + 0.01 * i], 'r2prime': [2.0]}
        fit = {'coefficients': terms, 'implied_relaxivity': [161.0]}
        derivatives.add(f'sub-{i}', prior_fit=fit)
    group(derivatives)
    rows = [row for row in derivatives.table('coefficients') if row['run'] == 'sub-1']
    columns = ('term', 'name', 'units', 'coefficient', 'implied_relaxivity', 'outliers')
    assert [[row[key] for key in columns] for row in rows] == [
        ['tissue', 'GM', 'ppm', '0.26', 'n/a', 'n/a'],
        ['tissue', 'WM', 'ppm', '-0.5', 'n/a', 'n/a'],
        ['tissue', 'rest', 'ppm', '0', 'n/a', 'n/a'],
        ['map:/a/chi.nii', '1', '1', '0.76', 'n/a', 'n/a'],
        ['r2prime', '1', '1', '2', '161', 'n/a'],
    ]
    text = section(page(derivatives), 'coefficients')
    found = re.findall(r'<tr><td>(.*?)</td><td>(\d)</td>.*?class="text">(.*?)<', text, re.S)
    assert found == [
        ('map:chi.nii 1', '4', ''),
        ('r2prime 1', '4', ''),
        ('tissue CSF', '3', 'ppm'),
        ('tissue GM', '4', 'ppm'),
        ('tissue WM', '4', 'ppm'),
        ('tissue rest', '4', 'ppm'),
    ]


def test_an_outlying_coefficient_is_named_by_term_and_tissue(derivatives):
    for i in range(9):
        values = {'GM': 0.25 + 0.01 * i, 'WM': 0.25 if i == 3 else -0.5 + 0.01 * i}
        derivatives.add(f'sub-{i}', prior_fit={'coefficients': {'tissue': values}})
    assert group(derivatives).outliers == 1
    assert 'coefficient of tissue WM' in section(page(derivatives), 'outliers')


@pytest.mark.parametrize('scale', [1e-6, 1.0, 1e3])
def test_ticks_of_a_logarithmic_axis_are_plain_numbers(derivatives, monkeypatch, scale):
    """The style of the page parses no mathtext, which the ticks of matplotlib are."""
    figures = []
    monkeypatch.setattr(report, '_inline', lambda figure: figures.append(figure) or 'data:,')
    for i in range(4):
        derivatives.add(f'sub-{i}', echo_fit={'noise_sd': scale * 10.0**i})
    group(derivatives)
    (axes,) = (a for a in figures[0].axes if a.get_title(loc='left').startswith('noise_sd'))
    assert axes.get_xscale() == 'log'
    figures[0].canvas.draw()
    labels = [label.get_text() for label in axes.get_xticklabels() if label.get_text()]
    assert [float(label.replace('−', '-')) for label in labels]


def test_tables_of_different_columns(derivatives):
    """A column that only some runs have keeps its neighbours, and is n/a elsewhere."""
    derivatives.add('sub-1', regions=[region(1, 'a', 0.5, r2star_mean=20)])
    derivatives.add('sub-2', regions=[region(1, 'a', 0.25, precond_chi_sd=0.1, r2star_mean=30)])
    group(derivatives)
    rows = derivatives.table('rois')
    assert list(rows[0]) == [
        *('participant_id', 'session_id', 'run', 'index', 'name', 'n_voxels'),
        *('precond_chi_mean', 'precond_chi_sd', 'r2star_mean', 'outliers'),
    ]
    assert [row['precond_chi_sd'] for row in rows] == ['n/a', '0.1']
    assert [row['r2star_mean'] for row in rows] == ['20', '30']


def test_dictionaries_have_every_column(derivatives):
    derivatives.add('sub-1', regions=[region(1, 'a', 0.5)])
    dictionary = json.loads(
        (derivatives.out / 'sub-1/anat/sub-1_desc-rois_values.json').read_text()
    )
    text = 'Mean of the x minus its mean in label 1 (agar), which surrounds the others'
    dictionary['n_voxels']['Description'] = text
    derivatives.write('sub-1', 'desc-rois_values.json', dictionary)
    group(derivatives)
    for name in ('rois', 'quality', 'coefficients'):
        header = (derivatives.out / f'group_{name}.tsv').read_text().splitlines()[0].split('\t')
        described = json.loads((derivatives.out / f'group_{name}.json').read_text())
        assert list(described) == header
        assert all(described[column]['Description'] for column in header)
    described = json.loads((derivatives.out / 'group_rois.json').read_text())
    assert described['precond_chi_mean'] == {
        'Description': 'what precond_chi_mean is',
        'Units': 'u',
    }
    # The label is a matter of the run.
    assert described['n_voxels']['Description'].endswith('in the label that surrounds the others')
    assert len(set(QUALITY)) == len(QUALITY)
    assert len(set(COEFFICIENT)) == len(COEFFICIENT)


# -- who is not complete ------------------------------------------------------------------------


SPOILED = {
    'no sidecar': (
        lambda d: (d.folder(d.out, 'sub-1') / 'sub-1_desc-precond_Chimap.json').unlink(),
        'incomplete', 'no sub-1_desc-precond_Chimap.json',
    ),
    'broken sidecar': (
        lambda d: d.write('sub-1', 'desc-precond_Chimap.json', '{"Parameters": '),
        'incomplete', 'sub-1_desc-precond_Chimap.json is not valid JSON',
    ),
    'not UTF-8': (
        lambda d: d.write('sub-1', 'desc-precond_Chimap.json', '').write_bytes(b'\xff\xfe\x81'),
        'incomplete', 'sub-1_desc-precond_Chimap.json is not valid JSON',
    ),
    'empty sidecar': (
        lambda d: d.write('sub-1', 'desc-precond_Chimap.json', ''),
        'incomplete', 'is not valid JSON',
    ),
    'a list': (
        lambda d: d.write('sub-1', 'desc-precond_Chimap.json', '[1]'),
        'incomplete', 'sub-1_desc-precond_Chimap.json is no JSON object',
    ),
    'deep': (
        lambda d: d.write('sub-1', 'desc-precond_Chimap.json', '[' * 200000),
        'incomplete', 'is not valid JSON',
    ),
    'no Parameters': (
        lambda d: d.write('sub-1', 'desc-precond_Chimap.json', '{"Parameters": []}'),
        'incomplete', 'sub-1_desc-precond_Chimap.json has no Parameters',
    ),
    'no map': (
        lambda d: (d.folder(d.out, 'sub-1') / 'sub-1_desc-precond_Chimap.nii.gz').unlink(),
        'incomplete', 'no sub-1_desc-precond_Chimap.nii.gz',
    ),
    'no conventional arm': (
        lambda d: (d.folder(d.out, 'sub-1') / 'sub-1_desc-conventional_Chimap.json').unlink(),
        'incomplete', 'no sub-1_desc-conventional_Chimap.json',
    ),
    'a word for a number': (
        lambda d: d.add('sub-1', echo_fit={'noise_sd': 'low'}),
        'incomplete', "echo_fit.noise_sd = 'low' is not a number",
    ),
    'a number for a word': (
        lambda d: d.add('sub-1', echo_fit={'offset_model': 3}),
        'incomplete', "echo_fit.offset_model = '3' is not a text",
    ),
    'a number for a list': (
        lambda d: d.add('sub-1', echo_fit={'echo_times': 3}),
        'incomplete', "echo_fit.echo_times = '3' is not a list of numbers",
    ),
    'unequal lists': (
        lambda d: d.add(
            'sub-1', prior_fit={'coefficients': {'r2prime': [1, 2]}, 'coefficient_errors': [0.1]}
        ),
        'incomplete', '2 coefficients, 1 coefficient_errors',
    ),
    'no table': (
        lambda d: d.write('sub-1', 'desc-rois_values.json', '{}'),
        'incomplete', 'no sub-1_desc-rois_values.tsv',
    ),
    'an empty table': (
        lambda d: d.write('sub-1', 'desc-rois_values.tsv', ''),
        'incomplete', 'sub-1_desc-rois_values.tsv is no table: it is empty',
    ),
    'half a row': (
        lambda d: d.write('sub-1', 'desc-rois_values.tsv', 'index\tname\n1\ta\n2\n'),
        'incomplete', 'sub-1_desc-rois_values.tsv, line 3: 1 cells, the header has 2',
    ),
    'another table': (
        lambda d: d.write('sub-1', 'desc-rois_values.tsv', 'a\tb\n1\t2\n'),
        'incomplete', 'lacks index, name',
    ),
    'a column of ours': (
        lambda d: d.write('sub-1', 'desc-rois_values.tsv', 'index\tname\trun\n1\t2\t3\n'),
        'incomplete', 'has columns that the group level adds: run',
    ),
    'a broken list of runs': (
        lambda d: d.about('1', []).write_text('{'),
        'incomplete', 'sub-1_desc-about_report.json is not valid JSON',
    ),
    'a crash': (
        lambda d: d.about('1', ['sub-1'], [d.crash('1')]),
        'incomplete', 'its last call failed; what is there may be of an earlier one; y ',
    ),
    'a crash, by an earlier version': (
        lambda d: d.about('1', []).write_text(
            json.dumps({'runs': ['sub-1'], 'crash_files': [str(d.crash('1'))]})
        ),
        'incomplete', 'crash file: sub-1/log/now/crash-1.txt',
    ),
}  # fmt: skip
"""What is done to the outputs of a run, its status then, and what is told."""


@pytest.mark.parametrize('action', SPOILED)
def test_what_is_wrong_is_told_and_stops_nobody(derivatives, action):
    derivatives.add('sub-1')
    derivatives.add('sub-2')
    spoil, status, message = SPOILED[action]
    spoil(derivatives)
    result = group(derivatives)
    first, second = derivatives.table('quality')
    assert first['status'] == status
    assert message in first['note']
    assert (second['status'], second['note']) == ('complete', 'n/a')
    (listed,) = result.listed
    assert message in listed.note
    assert message.partition("'")[0] in page(derivatives)


def test_signs_that_differ_within_a_scanner_are_flagged(derivatives):
    scanners = {'1': ('A', 1), '2': ('A', -1), '3': ('B', 1), '4': ('B', 1), '5': (None, -1)}
    for subject, (station, sign) in scanners.items():
        numbers = {'phase_sign': sign, 'phase_sign_source': 'convention'}
        derivatives.add(f'sub-{subject}', echo_fit=numbers)
        path = derivatives.folder(derivatives.out, f'sub-{subject}')
        path /= f'sub-{subject}_desc-precond_Chimap.json'
        sidecar = json.loads(path.read_text())
        if station:
            sidecar |= {'Manufacturer': 'Maker', 'StationName': station}
        path.write_text(json.dumps(sidecar))
    result = group(derivatives)
    words = 'Maker A: 1 runs with the phase sign +1 and 1 with -1'
    assert result.mixed == [words]
    rows = derivatives.table('quality')
    assert [row['sign_differs'] for row in rows] == ['yes', 'yes', 'n/a', 'n/a', 'n/a']
    assert [row['scanner'] for row in rows] == ['Maker A'] * 2 + ['Maker B'] * 2 + ['n/a']
    assert rows[0]['phase_sign_source'] == 'convention'
    assert words in page(derivatives)


def test_who_left_nothing_is_listed(derivatives):
    derivatives.add('sub-1_ses-a')
    derivatives.add_raw('sub-1_ses-a_run-2')  # left out by a filter
    derivatives.add_raw('sub-1_ses-b')  # this session was not run
    derivatives.add_raw('sub-2')
    derivatives.add_raw('sub-3', suffix='T2starw')
    crash = derivatives.crash('3')
    derivatives.about('3', [], [crash])
    derivatives.add('sub-4_run-1')
    derivatives.about('4', ['sub-4_run-1', 'sub-4_run-2'])
    derivatives.write('sub-5', 'R2starmap.nii.gz', '')  # stopped in the middle
    (derivatives.folder(derivatives.raw, 'sub-6') / 'sub-6_T1w.nii.gz').touch()  # nothing for us
    (derivatives.folder(derivatives.raw, 'sub-6') / 'sub-6_T2starw.nii.gz').touch()
    result = group(derivatives)
    assert [(row['run'], row['status']) for row in derivatives.table('quality')] == [
        ('sub-1_ses-a', 'complete'),
        ('sub-1_ses-a_run-2', 'missing'),
        ('sub-1_ses-b', 'missing'),
        ('sub-2', 'missing'),
        ('sub-3', 'failed'),
        ('sub-4_run-1', 'complete'),
        ('sub-4_run-2', 'missing'),
        ('sub-5', 'incomplete'),
    ]
    assert result.usable == 2
    note = 'no outputs; y <b>; crash file: sub-3/log/now/crash-1.txt'
    assert derivatives.table('quality')[4]['note'] == note
    page = (derivatives.out / 'group_report.html').read_text()
    assert 'y &lt;b&gt;; crash file: sub-3/' in page


def test_a_map_of_another_program_has_no_further_arms(derivatives):
    derivatives.add('sub-1', take_map={'warnings': ['look']})
    folder = derivatives.folder(derivatives.out, 'sub-1')
    (folder / 'sub-1_desc-conventional_Chimap.json').unlink()
    group(derivatives)
    (row,) = derivatives.table('quality')
    assert (row['status'], row['warnings']) == ('complete', 'take_map: look')


def test_a_failure_is_that_of_its_run(derivatives):
    for name in ('sub-1_ses-a', 'sub-1_ses-b'):
        derivatives.add(name)
    derivatives.about('1', ['sub-1_ses-b', 'sub-1_ses-b_run-2'], [derivatives.crash('1')])
    group(derivatives)
    first, *others = derivatives.table('quality')
    assert (first['status'], first['note']) == ('complete', 'n/a')
    assert [row['status'] for row in others] == ['incomplete', 'failed']
    assert 'its last call failed; what is there may be of an earlier one' in others[0]['note']


def test_images_are_no_runs_where_the_fields_were_given(derivatives):
    derivatives.add_raw('sub-1_run-1')
    derivatives.add_raw('sub-1_run-2')
    derivatives.write('sub-1_rec-x', 'desc-roi_mask.nii.gz', '')
    derivatives.add('sub-2')
    group(derivatives)
    assert [row['run'] for row in derivatives.table('quality')] == ['sub-1_rec-x', 'sub-2']


def test_crash_files_are_found_where_the_output_folder_was_moved_to(derivatives):
    derivatives.add('sub-1')
    derivatives.crash('1')
    derivatives.about('1', ['sub-1'], ['/elsewhere/out/sub-1/log/now/crash-1.txt'])
    group(derivatives)
    assert 'file: sub-1/log/now/crash-1.txt' in derivatives.table('quality')[0]['note']


def test_outputs_of_other_programs_are_no_runs(derivatives):
    derivatives.add('sub-1')
    folder = derivatives.folder(derivatives.out, 'sub-2')
    for file in ('sub-2_desc-brain_mask.nii.gz', 'sub-2_dseg.tsv', 'sub-2_R1map.json', 'x.json'):
        (folder / file).touch()
    (derivatives.out / 'sub-3').touch()
    group(derivatives)
    assert [row['run'] for row in derivatives.table('quality')] == ['sub-1']


def test_a_folder_that_cannot_be_listed(derivatives, monkeypatch):
    from precondqsm_bids.outputs.group import reading

    derivatives.add('sub-1')
    derivatives.add('sub-2')
    scan = os.scandir

    def refuse(path):
        if Path(path) == derivatives.out / 'sub-1' / 'anat':
            raise PermissionError(13, 'Permission denied', str(path))
        return scan(path)

    monkeypatch.setattr(reading.os, 'scandir', refuse)
    group(derivatives)
    first, second = derivatives.table('quality')
    assert (first['status'], second['status']) == ('incomplete', 'complete')
    assert first['note'] == f'{derivatives.out / "sub-1" / "anat"}: Permission denied'


def test_selection(derivatives):
    for name in ('sub-1_ses-a', 'sub-1_ses-b', 'sub-2_ses-b', 'sub-3'):
        derivatives.add(name, regions=[region(1, 'x', 0)])
    group(derivatives, participants=('1', '3'))
    runs = [row['run'] for row in derivatives.table('rois')]
    assert runs == ['sub-1_ses-a', 'sub-1_ses-b', 'sub-3']
    group(derivatives, sessions=('b',))
    runs = [row['run'] for row in derivatives.table('quality')]
    assert runs == ['sub-1_ses-b', 'sub-2_ses-b']


def test_nothing_usable_writes_nothing(derivatives):
    assert group(derivatives).files == ()
    derivatives.add_raw('sub-1')
    derivatives.write('sub-2', 'R2starmap.nii.gz', '')
    before = sorted(derivatives.out.rglob('*'))
    result = group(derivatives)
    assert (result.files, result.usable) == ((), 0)
    assert [item.run for item in result.listed] == ['sub-1', 'sub-2']
    assert sorted(derivatives.out.rglob('*')) == before


# -- the table of runs --------------------------------------------------------------------------


def add_map(derivatives, name, height, shape=(20, 16, 12)):
    """A map with a ball of some susceptibility in a region of 0 ppm, stored from right to left."""
    x = np.indices(shape) - np.reshape([6, 8, 6], (3, 1, 1, 1))
    chi = np.where(np.linalg.norm(x, axis=0) < 4, height, 0).astype(np.float32)
    region = np.pad(np.ones([n - 4 for n in shape], np.uint8), 2)
    for file, data in (('desc-precond_Chimap', chi), ('desc-roi_mask', region)):
        path = derivatives.folder(derivatives.out, name) / f'{name}_{file}.nii.gz'
        nb.save(nb.Nifti1Image(data, np.diag([-2.0, 2, 2, 1])), path)


def strips(text):
    """Alternative text -> pixels (0 to 1) and contrast of the strips of a page."""
    found = {}
    for data, name, contrast in re.findall(
        r'<img src="data:image/jpeg;base64,([^"]+)" alt="([^"]*)" style="filter: '
        r'contrast\(([\d.]+)\)">',
        text,
    ):
        with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as image:
            found[name] = np.asarray(image) / 255, float(contrast)
    return found


def test_each_run_has_its_slices_on_one_grey_scale(derivatives):
    """Contrast turns the grey scale of each strip into that of the middle run."""
    heights = {'sub-1': 0.1, 'sub-2': 0.2, 'sub-3': -0.4}
    for name, height in heights.items():
        derivatives.add(name)
        add_map(derivatives, name, height)
    group(derivatives)
    found = strips(page(derivatives))
    assert list(found) == [
        'Slices of sub-1, own grey scale ±0.1 ppm', 'Slices of sub-2, own grey scale ±0.2 ppm',
        'Slices of sub-3, own grey scale ±0.4 ppm',
    ]  # fmt: skip
    for (pixels, contrast), height in zip(found.values(), heights.values(), strict=True):
        shown = np.clip(0.5 + contrast * (pixels - 0.5), 0, 1)
        extreme = shown.max() if height > 0 else shown.min()
        assert extreme == pytest.approx(np.clip(0.5 + height / 0.4, 0, 1), abs=0.02)
    pixels = found['Slices of sub-1, own grey scale ±0.1 ppm'][0]
    third = pixels[:, 2 * (128 + 4) :][:, :128]  # 16 x 12 voxels, 96 pixels high
    # stored from right to left, the ball stands right of the middle
    assert third[:, 64:].mean() > third[:, :64].mean() + 0.05


def test_strip_is_drawn_again_after_its_map_and_left_alone_otherwise(derivatives):
    derivatives.add('sub-1')
    add_map(derivatives, 'sub-1', 0.1)
    group(derivatives)
    path = derivatives.out / 'sub-1/figures/sub-1_desc-strip_Chimap.jpg'
    first = path.stat().st_mtime_ns
    group(derivatives)
    assert path.stat().st_mtime_ns == first
    add_map(derivatives, 'sub-1', 0.3)
    later = time.time() + 10
    os.utime(derivatives.out / 'sub-1/anat/sub-1_desc-precond_Chimap.nii.gz', (later, later))
    group(derivatives)
    assert '±0.3 ppm' in page(derivatives)


def test_lights_of_the_runs_can_be_sorted_and_lead_to_the_reports(derivatives):
    levels = {'sub-1': 'good', 'sub-2': 'bad', 'sub-10': 'doubtful'}
    for name, level in levels.items():
        derivatives.add(name)
        path = derivatives.folder(derivatives.out, name) / f'{name}_desc-precond_Chimap.json'
        lights = {'sign': {'level': level}}
        path.write_text(json.dumps(json.loads(path.read_text()) | {'Lights': lights}))
    (derivatives.out / 'sub-2.html').touch()
    group(derivatives)
    table = section(page(derivatives), 'lights')
    rows = re.findall(r'<tbody>\s*<tr>(.*?)</tr>', table, re.DOTALL)
    assert [re.search(r'sub-\d+', row)[0] for row in rows] == ['sub-1', 'sub-2', 'sub-10']
    assert [re.search(r'class="light (\w+)"', row)[1] for row in rows] == list(levels.values())
    # by the place of the level in the list, the best first
    second = [re.findall(r'data-sort="(\d+)"', row)[1] for row in rows]
    assert sorted(levels, key=lambda name: second[list(levels).index(name)]) == [
        'sub-1', 'sub-10', 'sub-2',
    ]  # fmt: skip
    assert ['href="./sub-2.html#sub-2"' in row for row in rows] == [False, True, False]
    assert table.count('no map to show') == 3


def test_a_run_without_outputs_has_no_place_on_the_page_of_its_participant(derivatives):
    derivatives.add('sub-1_run-1')
    derivatives.add_raw('sub-1_run-2')
    (derivatives.out / 'sub-1.html').touch()
    group(derivatives)
    table = section(page(derivatives), 'lights')
    assert re.findall(r'href="(.*?)">(.*?)</a>', table) == [
        ('./sub-1.html#sub-1_run-1', 'sub-1_<wbr>run-1'),
        ('./sub-1.html', 'sub-1_<wbr>run-2'),
    ]


def test_equal_runs_are_flagged(derivatives):
    same = {'shape_mask': {'roi_voxels': 900}, 'recombination': {'roi_mean': 0.125, 'roi_sd': 0.5}}
    noise = {'echo_fit': {'median_field_sd': 0.001}}
    derivatives.add('sub-1', **same, **noise)
    derivatives.add('sub-2', **same, echo_fit={'median_field_sd': 0.0010001})
    derivatives.add('sub-3', **same, **noise)
    derivatives.add('sub-4', **same)
    derivatives.add('sub-5', **same)
    group(derivatives)
    flagged = {row['run']: row['equal_to'] for row in derivatives.table('quality')}
    assert flagged == {
        'sub-1': 'sub-3', 'sub-2': 'n/a', 'sub-3': 'sub-1', 'sub-4': 'n/a', 'sub-5': 'n/a',
    }  # fmt: skip
    assert 'The same scan under 2 names: sub-1, sub-3.' in page(derivatives)


def test_methods_of_all_runs_that_have_maps(derivatives):
    for name, trust in (('sub-1', 1.0), ('sub-2', 1.0), ('sub-3', 0.0), ('sub-4', 0.0)):
        derivatives.add(name, prior_fit={'trust': trust})
        path = derivatives.folder(derivatives.out, name) / f'{name}_desc-precond_Chimap.json'
        more = {'Settings': asdict(Method()), 'Toolbox': 'precondqsm_bids 7.8'}
        path.write_text(json.dumps(json.loads(path.read_text()) | more))
    (derivatives.folder(derivatives.out, 'sub-4') / 'sub-4_desc-precond_Chimap.nii.gz').unlink()
    group(derivatives)
    text = section(page(derivatives), 'methods')
    assert 'precondqsm_bids 7.8 (' in text
    assert 'Runs sub-1, sub-2: ' in text
    assert 'Run sub-3: ' in text
    assert 'sub-4' not in text
    assert '@article{liu2011,' in text


@pytest.mark.parametrize('n, drawn', [(2, 0), (3, 1)])
def test_distributions_are_drawn_from_three_runs_on(derivatives, n, drawn):
    for i in range(n):
        derivatives.add(f'sub-{i}', echo_fit={'noise_sd': 1.0 + i})
    group(derivatives)
    assert page(derivatives).count('<img') == drawn


# -- outliers -----------------------------------------------------------------------------------


@pytest.fixture
def planted(derivatives):
    """Twelve runs; 1 to 11 spread evenly around a middle, and one planted value in each kind."""
    for i in range(12):
        odd = i == 7
        derivatives.add(
            f'sub-{i:02d}',
            echo_fit={'noise_sd': 100.0 * 1.01 ** (i % 5)},
            comparison={'explained': 0.9 if odd else 0.5 + 0.01 * (i % 5)},
            prior_fit={'coefficients': {'r2prime': [3.0 if i == 3 else 1 + 0.1 * (i % 3)]}},
            regions=[
                region(1, 'agar', 0.01 * (i % 4)),
                region(2, 'tube', -5.0 if i == 2 else 1 + 0.01 * (i % 4)),
            ],
        )
    return derivatives


def test_planted_outliers_are_named_and_nobody_else(planted):
    result = group(planted)
    named = {row['run']: row['outliers'] for row in planted.table('quality')}
    assert {run: found for run, found in named.items() if found != 'n/a'} == {
        'sub-07': 'explained'
    }
    regions = {(row['run'], row['name']): row['outliers'] for row in planted.table('rois')}
    assert {key: found for key, found in regions.items() if found != 'n/a'} == {
        ('sub-02', 'tube'): 'precond_chi_mean'
    }
    coefficients = {row['run']: row['outliers'] for row in planted.table('coefficients')}
    assert [run for run, found in coefficients.items() if found != 'n/a'] == ['sub-03']
    assert result.outliers == 3
    text = section(page(planted), 'outliers')
    assert re.findall(r'<tr><td>(sub-\d+)', text) == ['sub-02', 'sub-07', 'sub-03']
    assert 'tube: precond_chi_mean' in text


def test_the_robust_z_on_the_page_is_that_of_the_formula(planted):
    """Of `explained`, as it was planted, by hand."""
    values = sorted(0.9 if i == 7 else 0.5 + 0.01 * (i % 5) for i in range(12))
    median = (values[5] + values[6]) / 2
    deviations = sorted(abs(value - median) for value in values)
    z = (0.9 - median) / (1.4826 * (deviations[5] + deviations[6]) / 2)
    group(planted)
    text = section(page(planted), 'outliers')
    assert f'<td>{z:.4g}</td>' in text


def section(text, name):
    return text.partition(f'<section id="{name}">')[2].partition('</section>')[0]


def test_more_outliers_than_the_page_names(planted, monkeypatch):
    """The farthest stay; the tables have all."""
    monkeypatch.setattr('precondqsm_bids.outputs.group.tables.LISTED', 1)
    planted.add('sub-09', echo_fit={'noise_sd': 100.0}, comparison={'explained': 70.0})
    assert group(planted).outliers == 4
    text = section(page(planted), 'outliers')
    assert 'The farthest 3 of 4' in text
    assert re.findall(r'<tr><td>(sub-\d+)', text) == ['sub-09', 'sub-02', 'sub-03']
    named = {row['run']: row['outliers'] for row in planted.table('quality')}
    assert (named['sub-07'], named['sub-09']) == ('explained', 'explained')


# -- files --------------------------------------------------------------------------------------


def test_same_bytes_again_and_nothing_else_beside(planted):
    def contents():
        return {path.name: path.read_bytes() for path in planted.out.glob('group_*')}

    group(planted, command='precondqsm_bids raw out group')
    first = contents()
    assert sorted(first) == FILES
    group(planted, command='precondqsm_bids raw out group')
    assert contents() == first
    hidden = [path.name for path in planted.out.iterdir() if path.name.startswith('.')]
    assert hidden == ['.bidsignore']


def test_a_failure_leaves_the_tables_of_before(planted, monkeypatch):
    group(planted)
    before = {path: path.read_bytes() for path in planted.out.glob('group_*')}

    def fail(*args, **keywords):
        raise RuntimeError('no page')

    monkeypatch.setattr(gather, 'compose_report', fail)
    planted.add('sub-99')
    with pytest.raises(RuntimeError, match='no page'):
        group(planted)
    assert {path: path.read_bytes() for path in planted.out.glob('*group_*')} == before
    assert [path.name for path in planted.out.glob('.*')] == ['.bidsignore']


def test_a_table_that_changes_while_it_is_read(planted, monkeypatch):
    """A participant level beside this one writes a table with a new column."""
    columns = gather.region_columns

    def and_then(*args):
        found = columns(*args)
        planted.add('sub-05', regions=[region(1, 'agar', 0.0, new=1)])
        return found

    monkeypatch.setattr(gather, 'region_columns', and_then)
    group(planted)
    row = planted.table('quality')[5]
    assert row['status'] == 'incomplete'
    assert row['note'].endswith('has new columns (new): run the group level again')
    assert 'sub-05' not in {row['run'] for row in planted.table('rois')}


def test_files_that_go_away_while_they_are_read(planted, monkeypatch):
    from precondqsm_bids.outputs.group import reading

    read = reading._read_run

    def and_remove(folder, subject, *rest):
        if subject == '05':
            for path in folder.iterdir():
                path.unlink()
        return read(folder, subject, *rest)

    monkeypatch.setattr(reading, '_read_run', and_remove)
    group(planted)
    assert planted.table('quality')[5]['status'] == 'incomplete'
    assert len(planted.table('quality')) == 12


def test_leftovers_of_a_process_that_was_killed(planted):
    """Those of yesterday go; a younger one may be in use."""
    old, young = (planted.out / f'.group_rois.rows.host.{n}.2' for n in (1, 2))
    for path in (old, young):
        path.touch()
    yesterday = time.time() - 2 * 86_400
    os.utime(old, (yesterday, yesterday))
    group(planted)
    assert (old.exists(), young.exists()) == (False, True)


@pytest.mark.slow
def test_processes_at_the_same_time_leave_whole_files(planted):
    """Three group levels, and a participant level that writes the same sidecars meanwhile."""
    code = (
        'import sys; from pathlib import Path\n'
        'from precondqsm_bids.outputs.group import write_group\n'
        'for _ in range(3): write_group(Path(sys.argv[1]), Path(sys.argv[2]), command="c")\n'
    )
    package = Path(precondqsm_bids.__file__).parents[1]
    group(planted, command='c')
    expected = {path.name: path.read_bytes() for path in planted.out.glob('group_*')}
    processes = [
        subprocess.Popen(
            [sys.executable, '-c', code, planted.raw, planted.out],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, 'PYTHONPATH': str(package), 'MPLBACKEND': 'agg'},
        )
        for _ in range(3)
    ]
    sidecar = planted.out / 'sub-04/anat/sub-04_desc-precond_Chimap.json'
    text, seen = sidecar.read_text(), 0
    while any(process.poll() is None for process in processes):
        temporary = sidecar.with_name('.writing')
        temporary.write_text(text)
        os.replace(temporary, sidecar)
        for path in planted.out.glob('group_*'):
            assert path.read_bytes() == expected[path.name], path.name
            seen += 1
    for process in processes:
        assert (process.wait(), process.communicate()[1]) == (0, '')
    assert seen
    assert {path.name for path in planted.out.glob('.*')} == {'.bidsignore'}


class Links(HTMLParser):
    """Everything that a page would load or lead to."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found += [(tag, value) for key, value in attrs if key in ('src', 'href')]


def test_the_page_is_one_file(planted):
    (planted.out / 'sub-07.html').touch()
    group(planted, command='precondqsm_bids <raw> out group')
    text = page(planted)
    parser = Links()
    parser.feed(text)
    sources = [value for tag, value in parser.found if tag == 'img']
    assert len(sources) == 3  # charts: the maps of these runs are empty files
    for source in sources:
        head, _, data = source.partition(',')
        assert head == 'data:image/png;base64'
        assert base64.b64decode(data, validate=True).startswith(b'\x89PNG')
    links = {value for tag, value in parser.found if tag == 'a'}
    assert {'./sub-07.html', './group_quality.tsv'} <= links
    assert './sub-02.html' not in links  # there is none
    assert {tag for tag, _ in parser.found} == {'a', 'img'}
    assert 'url(' not in text
    assert '@import' not in text
    assert '&lt;raw&gt;' in text


def test_arm_of_the_consensus_has_its_columns(derivatives):
    derivatives.add('sub-1')
    settings = {'conventional': True, 'consensus': True}
    for name in ('sub-2', 'sub-3'):
        derivatives.add(name)
        path = derivatives.folder(derivatives.out, name) / f'{name}_desc-precond_Chimap.json'
        path.write_text(json.dumps(json.loads(path.read_text()) | {'Settings': settings}))
    numbers = {
        'consensus_dipole_inversion': {'reg_weight': 0.7},
        'consensus_background_removal': {'known_voxels': 800, 'method': 'vsharp'},
    }
    derivatives.write('sub-2', 'desc-consensus_Chimap.json', {'Parameters': numbers})
    assert dict(group(derivatives).runs) == {'complete': 2, 'incomplete': 1}
    rows = {row['run']: row for row in derivatives.table('quality')}
    found = {name: row['consensus_reg_weight'] for name, row in rows.items()}
    assert found == {'sub-1': 'n/a', 'sub-2': '0.7', 'sub-3': 'n/a'}
    assert rows['sub-2']['consensus_known_voxels'] == '800'
    assert rows['sub-2']['consensus_background'] == 'vsharp'
    assert 'no sub-3_desc-consensus_Chimap.json' in rows['sub-3']['note']


def test_one_run_without_regions_and_coefficients(derivatives):
    derivatives.add('sub-1', conventional=False)
    result = group(derivatives)
    assert dict(result.runs) == {'complete': 1}
    assert derivatives.table('rois') == []
    text = page(derivatives)
    assert 'No run has labelled regions' in text
    assert 'No value lies outside' in text
    assert '<img' not in text


def test_names_are_text_on_the_page(planted):
    for i in range(12):
        planted.add(f'sub-{i:02d}', regions=[region(1, r'<script>$\no$', 9 if i else 1)])
    group(planted)
    assert '<script>$' not in page(planted)
    assert '&lt;script&gt;$' in page(planted)


def test_validator_has_nothing_to_say(planted):
    planted.add('sub-1', regions=[region(1, 'agar', 0.5)])
    group(planted)
    (planted.out / '.group_rois.rows.host.1.2').touch()  # of a process that was killed
    validator = Path(sys.executable).with_name('bids-validator-deno')
    done = subprocess.run(
        [validator, '--format', 'json', str(planted.out)], capture_output=True, text=True
    )
    issues = json.loads(done.stdout)['issues']['issues']
    assert [i for i in issues if 'group_' in str(i.get('location'))] == []


MEASURE_MEMORY = """
import sys, tracemalloc
from pathlib import Path
from precondqsm_bids.outputs.group import gather
gather.compose_report = lambda *args, **keywords: ''
raw, out = map(Path, sys.argv[1:])
gather.write_group(raw, out, participants=('1',))  # imports and caches
tracemalloc.start()
gather.write_group(raw, out)
print(tracemalloc.get_traced_memory()[1])
"""


def test_memory_does_not_grow_with_the_text_of_the_runs(derivatives):
    """Some floats a run are kept, not its record: 300 runs with 12 MB of warnings.

    In a process of its own, since what other tests left behind is traced, too.
    """
    for i in range(300):
        derivatives.add(f'sub-{i}', comparison={'warnings': ['x' * 40_000]})
    package = Path(precondqsm_bids.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, '-c', MEASURE_MEMORY, derivatives.raw, derivatives.out],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, 'PYTHONPATH': str(package)},
    )
    assert int(done.stdout) < 2_000_000
