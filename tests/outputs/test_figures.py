"""The figures show the right thing the right way round, in the right window."""

import json

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from scipy import ndimage
from written import SHAPE, save, write, zeros

from precondqsm_bids.interfaces import derivatives
from precondqsm_bids.outputs import canvas, charts, figures, report, slices
from precondqsm_bids.outputs.charts import STYLE, draw_l_curves, draw_roi_values
from precondqsm_bids.outputs.figures import BEFORE_MAP, FIGURES, SECTIONS
from precondqsm_bids.outputs.maps import up_to_flattening
from precondqsm_bids.outputs.slices import Panel, choose_slices, draw_maps
from precondqsm_bids.outputs.tables import read_table

ONES = np.ones(SHAPE, np.float32)
TABLE = (
    'index\tname\tn_voxels\tprecond_chi_mean\tprecond_chi_sd\tprecond_chi_n\t'
    'precond_chi_minus_medium\tcylinder_reference\tconventional_chi_minus_medium\n'
    '1\ttube\t120\t0.7123\t0.01\t120\t0.7501\t0.7494\tn/a\n'
    '2\ttilted\t80\t0.2\t0.01\t80\t0.25\tn/a\tn/a\n'
    '3\tedge\t100\t0.2\t0.01\t49\t0.25\tn/a\tn/a\n'
    '4\tair\t500\tn/a\tn/a\t0\tn/a\tn/a\tn/a\n'
    '6\tagar $a$\t999\t-0.0378\t0.01\t999\t0\tn/a\tn/a\n'
)


def shown(desc, maps, mask=ONES > 0, hz=1.0):
    """The maps of a figure with their windows."""
    gather = slices._Gather(maps, mask, hz)
    panels = [panel for panel in slices.PANELS[desc] if panel.name in maps]
    return [one for panel in panels for one in gather.shown(panel)]


def boxes(there, size):
    """Solid areas of an image of at least a size, from its top: rows and columns of each."""
    there = there.astype(np.uint8)
    solid = ndimage.maximum_filter(ndimage.minimum_filter(there, size), size)
    found = ndimage.find_objects(ndimage.label(solid)[0])
    return sorted(found, key=lambda box: (box[0].start // 50, box[1].start))


# -- slices -------------------------------------------------------------------------------------


def test_slices_go_through_the_label_that_differs_most():
    labels = np.ones(SHAPE, int)
    labels[5:8, 10:13, 4:9] = 2
    labels[12:15, 3:6, 18:23] = 3
    chi = np.select([labels == 2, labels == 3], [0.3, -0.9], 0.0)
    assert choose_slices(chi, ONES > 0, labels) == (13, 4, 20)


def test_slices_go_through_one_side_of_a_label_on_both():
    labels = np.ones(SHAPE, int)
    labels[2:5, 10:13, 4:9] = labels[14:18, 10:13, 4:9] = 2
    chi = np.where(labels == 2, 1.0, 0.0)
    sagittal = choose_slices(chi, ONES > 0, labels).sagittal
    assert labels[sagittal, 11, 6] == 2


def test_slices_without_labels_are_the_strongest_of_the_middle():
    chi = np.zeros(SHAPE)
    chi[8:12, 9:12, 16:19] = 1
    chi[:, 0] = 5  # an edge artefact, outside the middle half
    sagittal, coronal, axial = choose_slices(chi, ONES > 0)
    assert 8 <= sagittal <= 12
    assert 9 <= coronal <= 11
    assert 16 <= axial <= 18


@pytest.mark.parametrize('flips', [(1, 1, 1), (-1, 1, 1), (-1, -1, 1), (1, 1, -1)])
def test_object_on_the_right_is_drawn_on_the_right_however_it_is_stored(flips, tmp_path):
    """In scanner space the bright block is right, front and top."""
    affine = np.diag([*(2.0 * np.array(flips)), 1.0])
    chi = np.zeros(SHAPE, np.float32)
    block = np.ix_(
        *(
            range(3, 6) if flip < 0 else range(n - 6, n - 3)
            for flip, n in zip(flips, SHAPE, strict=True)
        )
    )
    chi[block] = 1
    maps = zeros(tmp_path, affine)
    maps['labels'] = save(tmp_path, 'labels', (1 + (chi > 0)).astype(np.uint8), affine)
    plain = write(maps, tmp_path / 'plain') / 'sub-01_desc-comparison_Chimap.png'
    maps['precond_chi'] = save(tmp_path, 'chi', chi, affine)
    drawn = write(maps, tmp_path / 'block') / 'sub-01_desc-comparison_Chimap.png'
    before, after = (np.asarray(Image.open(path)).astype(int) for path in (plain, drawn))
    planes = boxes(before > 100, 30)
    assert len(planes) == 3
    places = []
    for plane in planes:
        changed = (after - before)[plane] > 60
        for at, length in zip(np.nonzero(changed), changed.shape, strict=True):
            places.append((at.mean() + 0.5) / length)
    right, front, top = ((n - 4.5) / n for n in SHAPE)
    axial, coronal, sagittal = (1 - front, right), (1 - top, right), (1 - top, front)
    assert places == pytest.approx([*axial, *coronal, *sagittal], abs=0.02)


def test_planes_are_in_millimetres():
    maps = dict.fromkeys(slices.DRAWN, ONES)
    image = np.asarray(dict(draw_maps(maps, np.array([1.0, 2.0, 0.5])))['comparison'])
    sizes = [
        (rows.stop - rows.start, columns.stop - columns.start)
        for rows, columns in boxes(image == 255, 30)
    ]
    # the object fills the grid: 20 mm to the right, 48 mm to the front, 14 mm to the top
    assert len(sizes) == 3
    scale = sizes[0][0] / 48
    for size, lengths in zip(sizes, [(48, 20), (14, 20), (14, 48)], strict=True):
        assert size == pytest.approx([scale * length for length in lengths], abs=3)


def test_every_figure_of_slices_is_drawn_and_has_its_text():
    known = {figure.desc for figure in FIGURES if figure.extension == 'png'}
    extra = [*slices.DRAWN_IF_KNOWN, *(name for name in slices.EXTRA if name != 'difference')]
    maps = dict.fromkeys([*slices.DRAWN, *extra], ONES)
    echoes = slices.EchoPlanes(('a', 'b'), *np.zeros((2, *SHAPE[:2], 2)))
    drawn = {desc for desc, _ in draw_maps(maps, np.ones(3), echoes=lambda index: echoes)}
    assert drawn == known
    assert {figure.section for figure in FIGURES} == set(SECTIONS)
    needed = [desc for desc, _ in draw_maps(dict.fromkeys(slices.DRAWN, ONES), np.ones(3))]
    optional = {'quality', 'conventionalmosaic', 'echoes', 'consensusmosaic', 'echoslices'}
    optional.add('conventionalriskmosaic')
    assert set(needed) == known - optional
    # of a run that was stopped before anything was inverted
    early = dict.fromkeys(up_to_flattening(slices.DRAWN), ONES)
    drawn = {desc for desc, _ in draw_maps(early, np.ones(3))} - {'priormosaic'}
    assert drawn == {f.desc for f in BEFORE_MAP if f.extension == 'png'} - optional


def test_mosaic_has_the_slices_of_the_region_from_the_top():
    chi = np.broadcast_to(np.linspace(-0.5, 1, SHAPE[2]), SHAPE).astype(np.float32)
    mask = ONES.copy()
    mask[:, :, 22:] = 0
    maps = dict.fromkeys(slices.DRAWN, chi) | {'roi_mask': mask, 'shape_mask': mask}
    image = np.asarray(dict(draw_maps(maps, np.ones(3)))['precondmosaic']).astype(int)
    tiles = boxes(image > 0, 61)[3:]
    assert len(tiles) == 22  # one for each slice that the region has
    middle = [np.median(image[tile]) for tile in tiles]
    assert middle == sorted({*middle}, reverse=True)
    assert middle[0] < 255  # the region ends below the top of the grid


# -- windows ------------------------------------------------------------------------------------


def test_window_is_that_of_the_map_for_all_susceptibilities_and_set_inside_the_region():
    rng = np.random.default_rng(0)
    mask = np.zeros(SHAPE, bool)
    mask[5:15, 5:15, 5:15] = True
    maps = {
        name: np.where(mask, size * rng.uniform(-1, 1, SHAPE), 99).astype(np.float32)
        for name, size in
        {'precond_chi': 0.5, 'conventional_chi': 2, 'prior_chi': 0.4, 'residual_chi': 0.02}.items()
    }  # fmt: skip
    maps['difference'] = maps['precond_chi'] - maps['conventional_chi']
    conventional, precond, difference = shown('comparison', maps, mask)
    assert conventional.limits == precond.limits == difference.limits == (-0.5, 0.5)
    prior, residual, own = shown('prior', maps, mask)
    assert prior.limits == residual.limits == precond.limits
    assert own.limits == pytest.approx((-0.02, 0.02))
    assert 'own window' in own.title
    maps['residual_chi'] = maps['prior_chi']
    assert len(shown('prior', maps, mask)) == 2
    maps['difference'] = 0.1 * maps['precond_chi']
    assert [one.limits[1] for one in shown('comparison', maps, mask)] == [0.5, 0.5, 0.5, 0.05]


def test_map_of_the_consensus_stands_between_the_others_and_only_where_it_is_known():
    rng = np.random.default_rng(0)
    names = ('precond_chi', 'conventional_chi', 'consensus_chi', 'difference')
    maps = {name: rng.normal(size=SHAPE).astype(np.float32) for name in names}
    maps['consensus_mask'] = np.zeros(SHAPE, np.uint8)
    maps['consensus_mask'][4:12] = 1
    conventional, consensus, precond, _ = shown('comparison', maps)
    assert [one.title for one in (conventional, consensus, precond)] == [
        'conventional susceptibility',
        'susceptibility by the consensus',
        'preconditioned susceptibility',
    ]
    assert consensus.limits == precond.limits
    assert np.array_equal(consensus.region, maps['consensus_mask'] > 0)
    assert precond.region.all()
    maps = dict.fromkeys(slices.DRAWN, ONES) | {
        'consensus_chi': ONES, 'consensus_mask': maps['consensus_mask'],
    }  # fmt: skip
    sheet = np.asarray(dict(draw_maps(maps, np.ones(3)))['consensusmosaic'])
    # 8 of 20 voxels to the right are known, in a grid of 24 to the front and 28 to the top
    planes = boxes(sheet > 0, 31)[:3]
    for (rows, columns), (deep, wide) in zip(planes, [(24, 8), (28, 8)], strict=False):
        ratio = (columns.stop - columns.start) / (rows.stop - rows.start)
        assert ratio == pytest.approx(wide / deep, abs=0.03)


def test_fields_are_in_hertz_on_one_scale():
    field = np.linspace(-1, 1, ONES.size).reshape(SHAPE)
    maps = {'total_field': 2 * field + 1, 'flattened_field': field, 'local_field': 0.01 * field}
    panels = shown('fields', maps, hz=127.7)
    total, flattened, local, own = (one.ends for one in panels)
    assert total == flattened == local
    # 98 % of -1 to 3 ppm and of -1 to 1 ppm
    assert [float(x.removesuffix(' Hz').replace('−', '-')) for x in total] == pytest.approx(
        [-0.98 * 127.7, 2.96 * 127.7], rel=0.01
    )
    assert own == ('−1.25', '1.25 Hz')


def test_windows_of_the_quality_of_the_field():
    sd = np.full(SHAPE, 0.01, np.float32)
    sd[:2] = 3
    maps = {'field_sd': sd, 'misfit': sd * 100, 'usable_echoes': np.full(SHAPE, 4, np.uint8)}
    limits = [one.limits for one in shown('quality', maps)]
    assert limits[0] == pytest.approx((0, 0.05))  # five times the median
    assert limits[1:] == [(0, 3), (0, 4)]


def test_a_map_without_a_finite_value_is_black():
    nothing = np.full(SHAPE, np.nan, np.float32)
    (one,) = slices._Gather({'r2star': nothing}, ONES > 0, 1.0).shown(
        Panel('r2star', slices.from_zero)
    )
    assert not canvas.grey(nothing[0], one.limits).any()


def test_outline_is_the_border_of_the_mask():
    mask = np.zeros((10, 10), bool)
    mask[2:7, 3:8] = True
    line = canvas.outline(mask, (40, 40))
    rows, columns = np.nonzero(line)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (8, 27, 12, 31)
    assert line.sum() == 4 * 19  # one pixel thick


# -- what the node reads for them ---------------------------------------------------------------


def test_phase_of_the_first_and_last_echo_is_in_radians(tmp_path):
    codes = np.array([0, 1024, 3072, 4095, 5120], np.int16).reshape(5, 1, 1)
    files = [save(tmp_path, f'echo{i}', codes + i, np.eye(4)) for i in range(3)]
    node = derivatives.Derivatives(
        echo_phase=files, echo_magnitude=files[:1], record={'echo_fit': {'phase_turn': 4096.0}}
    )
    found = node._echoes()
    assert [*found] == ['first_magnitude', 'first_phase', 'last_phase']
    quarter = np.pi / 2
    assert found['first_phase'].ravel() == pytest.approx(
        [0, quarter, -quarter, -quarter / 1024, quarter]
    )
    step = 2 * np.pi / 4096
    assert (found['last_phase'] - found['first_phase']).ravel() == pytest.approx(
        2 * step, rel=1e-4
    )


def test_signal_over_noise_is_that_of_s0_in_the_median_voxel_of_the_region(tmp_path):
    mask = save(tmp_path, 'mask', np.array([[[1]], [[1]], [[1]], [[0]]], np.uint8), np.eye(4))
    s0 = save(tmp_path, 's0', np.array([[[8.0]], [[10.0]], [[30.0]], [[1000.0]]]), np.eye(4))
    magnitude = save(tmp_path, 'm', np.full((4, 1, 1), 2.0), np.eye(4))
    record, maps = {'echo_fit': {'noise_sd': 0.5}}, {'magnitude': magnitude, 'roi_mask': mask}
    found = derivatives.signal_to_noise({'s0': s0, **maps}, record)
    assert found == 20
    assert derivatives.signal_to_noise(maps, record) == 4
    assert derivatives.signal_to_noise(maps, {}) is None


# -- charts -------------------------------------------------------------------------------------


def test_l_curve_marks_the_weight_in_use_and_the_corner_with_their_unit():
    weights = np.logspace(-2, 1, 61)
    curve = {
        'reg_weights': weights,
        'consistency': weights**0.5,
        'regularization': weights**-2,
        'curvature': -(np.log(weights) ** 2),
        'reg_weight': 0.5,
        'corner': 2.0,
    }
    axes = draw_l_curves({'precond': curve}).axes[0]
    for marker, weight in {'o': 0.5, 'x': 2.0}.items():
        line = next(line for line in axes.lines if line.get_marker() == marker)
        assert line.get_xdata()[0] == pytest.approx(weight**0.5)
        assert line.get_ydata()[0] == pytest.approx(weight**-2)
    (label,) = axes.get_legend().texts
    assert label.get_text() == 'preconditioned, λ = 0.5 mm, corner 2 mm'


def test_no_l_curve_is_said_in_words(tmp_path):
    assert 'No L-curve' in draw_l_curves({}).get_suptitle()
    curve = {'reg_weight': 0.2, 'reg_weights': []}
    folder = write(zeros(tmp_path, np.eye(4)), tmp_path, l_curve=curve)
    assert '<svg' in (folder / 'sub-01_desc-lcurve_Chimap.svg').read_text()
    curve = {'reg_weight': None, 'reg_weights': [], 'warnings': ['zero']}
    write(zeros(tmp_path, np.eye(4)), tmp_path, l_curve=curve)  # a field of zero has no weight


def test_roi_figure_shows_each_map_against_a_named_reference(tmp_path):
    path = tmp_path / 'table.tsv'
    path.write_text(TABLE)
    axes = draw_roi_values(read_table(path)).axes[0]
    # without the medium, air, and what is mostly outside of the region
    assert [t.get_text() for t in axes.get_yticklabels()] == ['tube', 'tilted']
    # without the conventional map, which has no values
    assert [round(bar.get_width(), 4) for bar in axes.patches] == [0.7501, 0.25]
    reference = next(c for c in axes.collections if 'reference' in c.get_label())
    assert reference.get_segments()[0][0][0] == 0.7494
    assert axes.get_xlabel() == 'susceptibility − agar $a$ (ppm)'
    assert not axes.xaxis.label.get_parse_math()


def test_values_without_a_label_around_them_are_against_the_reference_of_the_map():
    row = {'name': 'pallidum', 'n_voxels': 9, 'precond_chi_mean': 0.1, 'precond_chi_sd': 0.01,
           'precond_chi_minus_medium': None}  # fmt: skip
    axes = draw_roi_values([row], 'mean of the region').axes[0]
    assert [bar.get_width() for bar in axes.patches] == [0.1]
    assert axes.get_xlabel() == 'susceptibility − mean of the region (ppm)'


@pytest.mark.parametrize(('reference', 'mean'), [('roi-mean', 2.0), ('csf', 1.75), ('none', 0.0)])
def test_bars_of_the_prior_are_relative_to_the_reference_of_the_map(reference, mean):
    """The prior's map has no reference; here the label csf stands in two rows."""
    rows = [
        {'name': name, 'n_voxels': n, 'precond_chi_mean': 0.1, 'precond_chi_minus_medium': None,
         'prior_chi_mean': prior, 'prior_chi_n': n}
        for name, n, prior in (('csf', 1, 1.0), ('csf', 3, 2.0), ('wm', 4, 2.5))
    ]  # fmt: skip
    found = charts.prior_mean(reference, rows, np.array([1.0, 3.0], np.float32))
    axes = draw_roi_values(rows, 'x', found).axes[0]
    widths = [bar.get_width() for bar in axes.patches]
    assert widths == pytest.approx([1 - mean, 2 - mean, 2.5 - mean, 0.1, 0.1, 0.1])
    assert charts.prior_mean('gm', rows, np.ones(2)) is None
    assert len(draw_roi_values(rows, 'x', None).axes[0].patches) == 3


def test_histogram_has_the_share_of_the_region():
    values = np.repeat([-0.1, 0.2], [30, 10])
    axes = charts.draw_histograms({'precond': values, 'prior': values + 5}).axes[0]
    for stairs, places in zip(axes.patches, ([-0.1, 0.2], [-0.075, 0.225]), strict=True):
        share, edges, _ = stairs.get_data()
        bins = np.flatnonzero(np.isfinite(share))
        assert share[bins] == pytest.approx([0.75, 0.25])
        for place, left, right in zip(places, edges[bins], edges[bins + 1], strict=True):
            assert left - 1e-9 <= place <= right + 1e-9


def test_histogram_ends_where_the_values_do_but_for_a_few():
    values = np.repeat([-0.1, 1.5, 40.0], [5000, 5000, 3])
    axes = charts.draw_histograms({'precond': values}).axes[0]
    edges = axes.patches[0].get_data().edges
    assert edges[[0, -1]] == pytest.approx([-0.18, 1.58])
    assert len(charts.draw_histograms({'precond': np.zeros(9)}).axes[0].patches) == 1
    assert not charts.draw_histograms({}).axes[0].patches


def test_phase_of_each_echo_is_drawn_with_the_limit_of_the_warning():
    found = {'size': [0.26, 0.52, 0.0], 'constant': [0.25, -0.5, 0.0]}
    axes = charts.draw_echo_phase(found, [0.002, 0.005, 0.008]).axes[0]
    assert [bar.get_height() for bar in axes.patches] == found['size']
    assert [*axes.lines[0].get_ydata()] == found['constant']
    assert axes.lines[2].get_ydata()[0] == 0.3
    assert [t.get_text() for t in axes.get_xticklabels()][1] == '2\n5 ms'
    assert not axes.texts
    nothing = charts.draw_echo_phase({'size': [0, 0, 0], 'constant': [0, 0, 0]}, [0.1, 0.2, 0.3])
    assert [text.get_text() for text in nothing.axes[0].texts] == [
        'nothing was taken off: every echo agrees with the others'
    ]


def test_figures_have_the_same_bytes_each_time(tmp_path):
    for suffix in ('svg', 'png'):
        files = []
        for i in range(2):
            figure = Figure()
            with mpl.rc_context(STYLE):
                figure.subplots().plot([0, 1], [1, 0])
                figures.save(figure, tmp_path / f'{i}.{suffix}')
                files.append(tmp_path / f'{i}.{suffix}')
        first, second = (f.read_bytes() for f in files)
        assert first == second


def test_numbers_beside_the_figures_have_the_signal_over_noise(tmp_path):
    maps = zeros(tmp_path, np.eye(4))
    maps['magnitude'] = save(tmp_path, 'm', 6 * ONES, np.eye(4))
    folder = write(maps, tmp_path, record={'echo_fit': {'noise_sd': 0.25}})
    assert json.loads((folder / f'sub-01_{report.SUMMARY}').read_text())['snr'] == 24


SCALES = [
    {'longest': 1e6, 'shortest': 64.0, 'preconditioned': 0.9, 'conventional': 0.8},
    {'longest': 64.0, 'shortest': 32.0, 'preconditioned': 0.7, 'conventional': 0.75},
]


def test_what_prior_and_maps_explain():
    judged = {'judged': {'explained': 0.6, 'null': 0.2}}
    figure = charts.draw_explained(judged, {'explained_by_scale': SCALES})
    bars, lines = figure.axes
    assert [bar.get_height() for bar in bars.patches] == [0.6, 0.2]
    # In full and not at all, beyond the null: 0.12 and 0.03 by the page on methods.
    assert [line.get_ydata()[0] for line in bars.lines] == pytest.approx([0.32, 0.23])
    shown = {line.get_label(): line.get_ydata() for line in lines.lines[:2]}
    np.testing.assert_array_equal(shown['preconditioned map'], [0.9, 0.7])
    np.testing.assert_array_equal(shown['conventional map'], [0.8, 0.75])
    np.testing.assert_allclose(lines.lines[0].get_xdata(), [90.5, 45.3], atol=0.1)
    for some in ((judged, {}), ({}, {'explained_by_scale': SCALES})):
        assert len(charts.draw_explained(*some).axes) == 2
    assert charts.draw_explained({}, {}) is None
