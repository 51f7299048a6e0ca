"""Mask, labels, tissue, R2, contrasts and prior maps of a run."""

import nibabel as nib
import numpy as np
import pytest
from inputs import find, names, only_problem

TUBES = {1: 'agar', 2: 'tube A'}


def test_labels_of_the_dataset(dataset):
    dataset.add_run()
    path = dataset.add_labels('sub-01/anat/sub-01_dseg.nii.gz', TUBES)
    (run,), problems = find(dataset.root)
    assert not problems
    assert (run.labels, run.label_names) == (str(path), TUBES)


def test_labels_of_derivatives_come_first(dataset):
    """Anywhere below the participant's folder, with the names at the root of the derivatives."""
    dataset.add_run()
    dataset.add_labels('sub-01/anat/sub-01_dseg.nii.gz', TUBES)
    truth = dataset.root / 'derivatives' / 'truth'
    path = dataset.add_labels('derivatives/truth/sub-01/anat/sub-01_desc-x_dseg.nii.gz')
    (truth / 'dseg.tsv').write_text('index\tname\tcolor\n3\tiron\t#ff0000\n')
    (run,), (note,) = find(dataset.root, derivatives={'truth': truth})
    assert (run.labels, run.label_names) == (str(path), {3: 'iron'})
    assert not note.fatal
    assert 'comes first' in note.message
    (run,), problems = find(
        dataset.root, derivatives={'truth': truth}, filters={'dseg': {'description': None}}
    )
    assert run.label_names == TUBES
    assert not problems


def test_derivatives_behind_links_to_folders(dataset):
    """As DataLad and shared storage have them; a link to where it is in ends."""
    dataset.add_run()
    path = dataset.add_labels('derivatives/store/anat/sub-01_desc-x_dseg.nii.gz', TUBES)
    (path.parent / 'loop').symlink_to('..')
    truth = dataset.root / 'derivatives' / 'truth'
    (truth / 'sub-01').mkdir(parents=True)
    (truth / 'sub-01' / 'anat').symlink_to(path.parent)
    (run,), problems = find(dataset.root, derivatives={'truth': truth})
    assert run.labels == str(truth / 'sub-01' / 'anat' / path.name)
    assert not problems


@pytest.mark.parametrize(
    'name, kinds',
    [
        ('sub-011/anat/sub-011_dseg', ['skipped']),  # a participant without echoes
        ('sub-01/ses-b/anat/sub-01_ses-b_dseg', []),
    ],
)
def test_labels_of_another_participant_or_session(dataset, name, kinds):
    dataset.add_run('sub-01_ses-a')
    dataset.add_labels(f'{name}.nii.gz', TUBES)
    (run,), problems = find(dataset.root)
    assert run.labels is None
    assert [problem.kind for problem in problems] == kinds


def test_labels_of_another_run(dataset):
    dataset.add_run('sub-01_run-1')
    dataset.add_run('sub-01_run-2')
    dataset.add_labels('sub-01/anat/sub-01_run-2_dseg.nii.gz', TUBES)
    (one, two), problems = find(dataset.root)
    assert one.labels is None
    assert two.label_names == TUBES
    assert not problems


@pytest.mark.parametrize(
    'image, message',
    [
        ({'shape': (4, 5, 7)}, 'shape (4, 5, 7) differs from (4, 5, 6)'),
        ({'affine': np.diag([2.0, 2.0, 2.1, 1.0])}, 'affine differs by 0.1 mm'),
    ],
)
def test_labels_off_the_grid_are_told_of(dataset, image, message):
    dataset.add_run()
    path = dataset.add_labels('sub-01/anat/sub-01_dseg.nii.gz', TUBES, **image)
    (run,), (note,) = find(dataset.root)
    assert run.labels is None
    assert (note.file, note.fatal) == (str(path), False)
    assert message in note.message


@pytest.mark.parametrize(
    'table, message',
    [
        (None, 'no TSV'),
        ('index\tlabel\n1\ta\n', "no column name, separated by tabs: its columns are ['index', "),
        (
            'index,name\n1,a\n',
            'no column index and name, separated by tabs: its columns',
        ),
        ('index\tname\none\ta\n', 'with an integer column index and a column name (invalid lit'),
        ('index\tname\n1\ta\n1\tb\n', 'there twice'),
        ('index\tname\n1\ta\n2\ta\n', 'there twice'),
        ('index\tname\n', 'no rows'),
    ],
)
def test_labels_without_names_are_told_of(dataset, table, message):
    dataset.add_run()
    path = dataset.add_labels('sub-01/anat/sub-01_dseg.nii.gz')
    if table:
        path.with_name('sub-01_dseg.tsv').write_text(table)
    (run,), (note,) = find(dataset.root)
    assert run.labels is None
    assert message in note.message


def test_reference_should_be_a_label(dataset):
    dataset.add_run('sub-01')
    dataset.add_run('sub-02')
    dataset.add_labels('sub-01/anat/sub-01_dseg.nii.gz', TUBES)
    runs, (problem,) = find(dataset.root, reference='agar')
    assert [run.subject for run in runs] == ['01']
    assert problem.subject == '02'
    _, (problem, _) = find(dataset.root, reference='water')
    assert '--reference water is not one of its labels (agar, tube A)' in problem.message


def test_mask_of_derivatives(dataset, tmp_path):
    """Its own participant's, on its own grid, desc-brain first."""
    dataset.add_run('sub-01_ses-a')
    derivatives = {'seg': tmp_path / 'seg'}
    given = {'derivatives': derivatives, 'mask': 'derivatives'}
    anat = tmp_path / 'seg/sub-01/ses-a/anat'
    dataset.write_image(anat / 'sub-01_ses-b_desc-brain_mask.nii.gz')
    dataset.write_image(tmp_path / 'seg/sub-011/anat/sub-011_desc-brain_mask.nii.gz')
    off = dataset.write_image(anat / 'sub-01_ses-a_desc-brain_mask.nii.gz', shape=(4, 5, 7))
    problem = only_problem(dataset, **given)
    assert 'no _mask of this run, on its grid' in problem.message
    assert f'{off}: mask not used: the affine of {off.name} has the code 2' in problem.message
    assert 'shape (4, 5, 7) differs from (4, 5, 6)' in problem.message
    body = dataset.write_image(anat / 'sub-01_ses-a_desc-body_mask.nii.gz')
    (run,), (note,) = find(dataset.root, **given)
    assert (run.mask, note.kind) == (str(body), 'warning')
    brain = dataset.write_image(off)
    (run,), (note,) = find(dataset.root, **given)
    assert (run.mask, note.file, note.kind) == (str(brain), str(body), 'skipped')
    filters = {'mask': {'description': 'body'}}
    (run,), problems = find(dataset.root, **given, filters=filters)
    assert (run.mask, problems) == (str(body), [])
    (run,), (note,) = find(dataset.root, derivatives=derivatives)  # without being asked for
    assert (run.mask, note.file, note.kind) == (str(brain), str(body), 'skipped')
    assert 'desc-body is not that of a brain' in note.message
    for word in ('object', 'brain'):
        assert find(dataset.root, derivatives=derivatives, mask=word)[0][0].mask is None


def in_scanner_space(dataset, path, **keywords):
    """An image whose affine is that of the scanner."""
    image = nib.load(dataset.write_image(path, **keywords))
    image.set_sform(image.affine, 1)
    image.set_qform(image.affine, 1)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header), path)
    return path


FINE = {'shape': (9, 10, 12), 'affine': np.eye(4)}


def test_mask_of_an_anatomical_image(dataset):
    """fMRIPrep's: in the space of the T1w image, of the acquisition of that, beside others."""
    anat = dataset.add_run('sub-01_ses-a_acq-gre_run-2')
    for path in anat.glob('*.nii.gz'):
        in_scanner_space(dataset, path)
    root = dataset.root / 'derivatives/fmriprep'
    folder = root / 'sub-01/ses-a'
    stems = {
        'brain': 'anat/sub-01_ses-a_acq-mprage_run-1_desc-brain_mask',
        'template': 'anat/sub-01_ses-a_space-MNI152NLin2009cAsym_desc-brain_mask',
        'ribbon': 'anat/sub-01_ses-a_desc-ribbon_mask',
        'bold': 'func/sub-01_ses-a_task-rest_space-T1w_desc-brain_mask',
        'sibling': 'anat/sub-01_ses-a_space-T2w_desc-brain_mask',
    }
    paths = {
        key: in_scanner_space(dataset, folder / f'{stem}.nii.gz', **FINE)
        for key, stem in stems.items()
    }
    # On the grid of this run, and of another by its name.
    other = in_scanner_space(dataset, folder / 'anat/sub-01_ses-a_run-1_desc-brain_mask.nii.gz')
    (run,), notes = find(dataset.root, derivatives={'f': root})
    assert (run.mask, run.mask_resampled) == (str(paths['brain']), True)
    said = {note.file: note for note in notes}
    assert set(said) == {*map(str, paths.values()), str(other)}
    assert 'a head that moved' in said[str(paths['brain'])].message
    left = [note for file, note in said.items() if file != run.mask]
    assert {note.kind for note in left} == {'skipped'}
    assert 'space-MNI152NLin2009cAsym' in said[str(paths['template'])].message
    assert 'of another acquisition' in said[str(paths['bold'])].message
    assert 'of another acquisition' in said[str(other)].message
    own = in_scanner_space(dataset, folder / 'anat/sub-01_ses-a_acq-gre_run-2_mask.nii.gz')
    filters = {'mask': {'description': None}}
    (run,), _ = find(dataset.root, derivatives={'f': root}, filters=filters)
    assert (run.mask, run.mask_resampled) == (str(own), False)


def test_mask_of_a_template_is_never_used(dataset):
    """Not even on the grid of the run."""
    dataset.add_run()
    root = dataset.root / 'derivatives/f'
    name = 'sub-01/anat/sub-01_space-MNI152NLin6Asym_desc-brain_mask.nii.gz'
    dataset.write_image(root / name)
    (run,), (note,) = find(dataset.root, derivatives={'f': root})
    assert (run.mask, note.kind) == (None, 'skipped')
    problem = only_problem(dataset, derivatives={'f': root}, mask='derivatives')
    assert 'space-MNI152NLin6Asym is not the coordinates of the scanner' in problem.message


def test_mask_file(dataset, tmp_path):
    dataset.add_run()
    path = dataset.write_image(tmp_path / 'mask.nii')
    (run,), problems = find(dataset.root, mask=str(path))
    assert (run.mask, problems) == (str(path), [])
    dataset.write_image(path, affine=np.diag([2.0, 2.0, 2.1, 1.0]))
    problem = only_problem(dataset, mask=str(path))
    assert problem.file == str(path)
    assert '--mask: affine differs by 0.1 mm from' in problem.message


FREESURFER = {2: 'Left-Cerebral-White-Matter', 3: 'Left-Cerebral-Cortex', 13: 'Right-Pallidum'}
FREESURFER |= {41: 'Right-Cerebral-White-Matter', 0: 'Unknown'}


def test_tissue_of_labels(dataset):
    """The table at the root of the derivatives, as sMRIPrep has it."""
    dataset.add_run()
    root = dataset.root / 'derivatives/smriprep'
    dataset.add_labels('derivatives/smriprep/sub-01/anat/sub-01_desc-aseg_dseg.nii.gz')
    rows = [f'{index}\t{name}' for index, name in FREESURFER.items()]
    (root / 'desc-aseg_dseg.tsv').write_text('\n'.join(['index\tname', *rows]) + '\n')
    (run,), problems = find(dataset.root, derivatives={'s': root}, prior='tissue')
    assert not problems
    assert names(run.tissue.files) == ['sub-01_desc-aseg_dseg.nii.gz']
    assert run.tissue.classes == ('WM', 'GM', 'pallidum')
    assert run.tissue.label_classes == {2: 'WM', 3: 'GM', 13: 'pallidum', 41: 'WM'}
    assert not run.tissue.resampled
    (run,), _ = find(dataset.root, derivatives={'s': root})
    assert run.tissue is None  # nobody asked


def test_tissue_of_the_anatomical_image_of_another_acquisition(dataset):
    """What a T1w image is called is nothing that the run's name would have to say."""
    dataset.add_run('sub-01_ses-a_acq-gre_run-2')
    folder = 'derivatives/seg/sub-01/ses-a/anat'
    for label in ('GM', 'WM', 'CSF', 'CSF'):
        dataset.add_labels(f'{folder}/sub-01_ses-a_acq-mprage_run-1_label-{label}_probseg.nii.gz')
    root = dataset.root / 'derivatives/seg'
    (run,), problems = find(dataset.root, derivatives={'s': root}, prior='tissue')
    assert not problems
    assert sorted(run.tissue.classes) == ['CSF', 'GM', 'WM']
    assert run.tissue.label_classes is None
    assert [name.split('label-')[1][:2] for name in names(run.tissue.files)] == [
        name[:2] for name in run.tissue.classes
    ]


def test_tissue_is_chosen_by_a_filter(dataset):
    dataset.add_run()
    for desc in ('one', 'two'):
        dataset.add_labels(f'sub-01/anat/sub-01_desc-{desc}_dseg.nii.gz', {1: 'GM', 2: 'WM'})
    filters = {'tissue': {'description': 'two'}}
    (run,), _ = find(dataset.root, prior='tissue', filters=filters)
    assert names(run.tissue.files) == ['sub-01_desc-two_dseg.nii.gz']


def test_r2_map_of_the_run_comes_first(dataset):
    dataset.add_run('sub-01_run-2')
    for stem in ('sub-01_run-1_R2map', 'sub-01_run-2_R2map', 'sub-01_acq-x_T2map'):
        dataset.write_image(dataset.root / f'sub-01/anat/{stem}.nii.gz')
    (run,), problems = find(dataset.root, r2='map')
    assert names([run.r2_map]) == ['sub-01_run-2_R2map.nii.gz']
    assert run.r2_map_kind == 'R2map'
    assert [problem.kind for problem in problems] == ['skipped', 'skipped']


def test_contrasts_of_the_run_come_in_the_order_of_their_suffixes(dataset):
    dataset.add_run('sub-01_run-2')
    for stem in ('sub-01_run-1_T1w', 'sub-01_run-2_T1w', 'sub-01_R1map', 'sub-02_R1map'):
        dataset.write_image(dataset.root / f'{stem[:6]}/anat/{stem}.nii.gz')
    (run,), problems = find(dataset.root, participant_label=['01'], contrasts=('R1map', 'T1w'))
    assert names(run.contrasts) == ['sub-01_R1map.nii.gz', 'sub-01_run-2_T1w.nii.gz']
    assert [problem.kind for problem in problems] == ['skipped']
    filters = {'contrast': {'run': ['1', None]}}
    (run,), _ = find(dataset.root, participant_label=['01'], contrasts=('T1w',), filters=filters)
    assert names(run.contrasts) == ['sub-01_run-1_T1w.nii.gz']


def test_prior_maps_are_on_the_grid_of_every_run(dataset, tmp_path):
    dataset.add_run()
    good = dataset.write_image(tmp_path / 'good.nii.gz')
    bad = dataset.write_image(tmp_path / 'bad.nii.gz', affine=np.diag([2.0, 2.0, 2.1, 1.0]))
    assert not find(dataset.root, prior=[f'map:{good}'])[1]
    problem = only_problem(dataset, prior=[f'map:{good}', f'map:{bad}'])
    assert problem.file == str(bad)
    assert 'affine differs by 0.1 mm' in problem.message


# -- one rule for all ----------------------------------------------------------------------------

KINDS = {
    'mask': ('desc-{}_mask', {'mask': 'derivatives'}),
    'labels': ('desc-{}_dseg', {}),
    'tissue': ('desc-{}_dseg', {'prior': 'tissue'}),
    'R2': ('desc-{}_R2map', {'r2': 'map'}),
    'contrast': ('desc-{}_T1w', {'contrasts': 'T1w'}),
}
"""Name of a kind: names of its files, and the method that reads it."""


def chosen(run, kind):
    return {
        'mask': run.mask,
        'labels': run.labels,
        'tissue': run.tissue and run.tissue.files[0],
        'R2': run.r2_map,
        'contrast': run.contrasts and run.contrasts[0],
    }[kind]


@pytest.mark.parametrize('kind', KINDS)
def test_every_other_candidate_is_reported(dataset, kind):
    """The usable ones as skipped, those on another grid as warnings."""
    dataset.add_run()
    name, method = KINDS[kind]
    paths = [
        dataset.add_labels(
            f'derivatives/seg/sub-01/anat/sub-01_{name.format(letter)}.nii.gz',
            {1: 'GM', 2: 'WM'},
            shape=(4, 5, 7 if letter == 'a' else 6),
        )
        for letter in 'abcd'
    ]
    derivatives = {'seg': dataset.root / 'derivatives/seg'}
    (run,), problems = find(dataset.root, derivatives=derivatives, **method)
    assert chosen(run, kind) == str(paths[1])
    own = [note for note in problems if note.message.startswith(f'{kind} not used: ')]
    assert [(note.file, note.kind) for note in own] == [
        (str(paths[0]), 'warning'),
        (str(paths[2]), 'skipped'),
        (str(paths[3]), 'skipped'),
    ]
    assert 'shape (4, 5, 7) differs from (4, 5, 6)' in own[0].message
    for note in own[1:]:
        assert f'{paths[1]} comes first; choose with --bids-filter-file {{"' in note.message


@pytest.mark.parametrize('kind', KINDS)
def test_the_most_specific_candidate_comes_first(dataset, kind):
    """Derivatives before the dataset; there, the name with most of the run's entities."""
    dataset.add_run('sub-01_ses-a_acq-x_run-2')
    name, method = KINDS[kind]

    def add(folder, stem):
        path = f'{folder}{stem}_{name.format("a")}.nii.gz'
        return str(dataset.add_labels(path, {1: 'GM', 2: 'WM'}))

    seg = 'derivatives/seg/'
    find_all = {'derivatives': {'seg': dataset.root / seg}, **method}
    if kind != 'mask':
        in_dataset = add('', 'sub-01/ses-a/anat/sub-01_ses-a_acq-x_run-2')
        assert chosen(find(dataset.root, **find_all)[0][0], kind) == in_dataset
    general = add(seg, 'sub-01/anat/sub-01')
    assert chosen(find(dataset.root, **find_all)[0][0], kind) == general
    specific = add(seg, 'sub-01/ses-a/anat/sub-01_ses-a_run-2')
    add(seg, 'sub-01/ses-a/anat/sub-01_ses-a')
    add(seg, 'sub-01/ses-a/anat/sub-01_ses-a_acq-y_run-2')  # of another acquisition
    assert chosen(find(dataset.root, **find_all)[0][0], kind) == specific


def test_shares_of_no_class_are_reported(dataset):
    dataset.add_run()
    for name in ('probseg', 'label-GM_probseg', 'label-WM_probseg'):
        dataset.add_labels(f'sub-01/anat/sub-01_{name}.nii.gz')
    (run,), (note,) = find(dataset.root, prior='tissue')
    assert run.tissue.classes == ('GM', 'WM')
    assert note.kind == 'warning'
    assert 'has no class in its name' in note.message
