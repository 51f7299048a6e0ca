"""A small head from raw data to maps, with tissue as prior: truth from the phantom's own field."""

import json
import shutil

import nibabel as nb
import numpy as np
import pytest

from precondqsm_bids.cli.run import main
from precondqsm_bids.phantom.cli import main as make_phantom

pytestmark = pytest.mark.slow
NUCLEI = ('caudate', 'putamen', 'pallidum', 'thalamus')


@pytest.fixture(scope='module')
def head(tmp_path_factory):
    root = tmp_path_factory.mktemp('head') / 'raw'
    assert not make_phantom([str(root), '--kind', 'head', '--voxel-size', '4', '4', '4'])
    return root


@pytest.fixture
def reconstruct(head, tmp_path, monkeypatch):
    """Maps and sidecar of a run of the app; what the runs have in common is computed once."""
    monkeypatch.chdir(tmp_path)
    truth = head / 'derivatives' / 'truth'
    work = head.parent / 'work'

    def call(*options):
        command = [str(head), 'out', 'participant', '-w', str(work), '-d', f'truth={truth}']
        command += ['--mask', 'derivatives', '--phase-sign', '+1', '--nprocs', '2']
        assert main([*command, '--no-conventional', *options]) == 0
        anat = tmp_path / 'out' / 'sub-01' / 'anat'
        chi = {
            desc: nb.load(anat / f'sub-01_desc-{desc}_Chimap.nii.gz').get_fdata()
            for desc in ('precond', 'prior')
        }
        sidecar = json.loads((anat / 'sub-01_desc-precond_Chimap.json').read_text())
        return anat, chi, sidecar

    return call


@pytest.fixture(scope='module')
def truth(head):
    """Maps of the truth."""
    anat = head / 'derivatives' / 'truth' / 'sub-01' / 'anat'
    table = (anat / 'sub-01_desc-tissues_dseg.tsv').read_text()
    rows = [line.split('\t') for line in table.splitlines()[1:]]
    return {
        'chi': nb.load(anat / 'sub-01_desc-truth_Chimap.nii.gz').get_fdata(),
        'labels': np.asanyarray(nb.load(anat / 'sub-01_desc-tissues_dseg.nii.gz').dataobj),
        # of 4 mm, many voxels of the rim hold bone, 2 ppm away from the brain beside it
        'whole': sum(
            nb.load(anat / f'sub-01_label-{name}_probseg.nii.gz').get_fdata()
            for name in ('GM', 'WM', 'CSF')
        )
        > 0.9,
        'mask': nb.load(anat / 'sub-01_desc-brain_mask.nii.gz').get_fdata() > 0,
        'index': {name: int(index) for index, name, *_ in rows},
    }


def error(chi, truth, mask):
    """Voxelwise error relative to the truth, both less their means."""
    a, b = (volume[mask] - volume[mask].mean() for volume in (chi, truth))
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def test_tissue(reconstruct, truth):
    anat, chi, sidecar = reconstruct('--prior', 'tissue')
    mask = nb.load(anat / 'sub-01_desc-roi_mask.nii.gz').get_fdata() > 0
    assert error(chi['precond'], truth['chi'], mask & truth['whole']) < 0.45
    fit = sidecar['Parameters']['prior_fit']
    values = fit['coefficients']['tissue']
    means = {
        name: truth['chi'][mask & (truth['labels'] == truth['index'][name])].mean()
        for name in ('GM', 'WM', *NUCLEI)
    }
    for name in ('GM', *NUCLEI):  # 0.01 ppm: a tenth of the pallidum's
        assert values[name] - values['WM'] == pytest.approx(means[name] - means['WM'], abs=0.015)
    assert fit['priors']['tissue']['supported']
    assert not fit['warnings']
    explained = fit['priors']['tissue']['explained'] + fit['free_voxels']['explained']
    assert explained == pytest.approx(fit['explained'], abs=1e-4)
    assert 'bids:truth:sub-01/anat/sub-01_desc-tissues_dseg.nii.gz' in sidecar['Sources']
    reference = sidecar['Reference']
    assert reference['Region'] == 'roi-mean'
    assert reference['WholeRegionReferencedMean'] == pytest.approx(0, abs=1e-6)
    prior = json.loads((anat / 'sub-01_desc-prior_Chimap.json').read_text())
    assert prior['EstimationAlgorithm'].startswith('tissue (')
    assert 'sources of their own (' in prior['EstimationAlgorithm']
    assert prior['EstimationReference'].startswith('Liu T et al., NMR Biomed 2011;24:1129')
    assert not list(anat.glob('*desc-prior_dseg*'))


def test_contrast_and_tissue_of_shares_and_r2_of_the_literature(reconstruct, truth, tmp_path):
    choice = {'tissue': {'suffix': 'probseg'}}
    (tmp_path / 'filter.json').write_text(json.dumps(choice))
    anat, chi, sidecar = reconstruct(
        *('--prior', 'contrast', 'tissue', 'r2prime-by-tissue', '--r2', 'literature'),
        *('--reference', 'CSF', '--write-prior-labels', '--bids-filter-file', 'filter.json'),
    )
    mask = nb.load(anat / 'sub-01_desc-roi_mask.nii.gz').get_fdata() > 0
    assert error(chi['precond'], truth['chi'], mask & truth['whole']) < 0.55
    record = sidecar['Parameters']
    priors = record['prior_fit']['priors']
    assert sorted(priors) == ['contrast', 'r2prime-by-tissue', 'tissue']
    assert priors['contrast']['parcels'] > 1000 > priors['tissue']['parcels'] == 4
    assert record['prior_fit']['combined_magnitude']  # the region is the brain inside the head
    assert record['shape_mask']['mask'] == 'sub-01_desc-brain_mask.nii.gz'
    total = sum(prior['explained'] for prior in priors.values())
    total += record['prior_fit']['free_voxels']['explained']
    assert total == pytest.approx(record['prior_fit']['explained'], abs=1e-3)
    assert record['r2prime_prior']['r2_source'].startswith('literature')
    assert sum('probseg' in source for source in sidecar['Sources']) == 3
    labels = np.asanyarray(nb.load(anat / 'sub-01_desc-prior_dseg.nii.gz').dataobj)
    assert (labels[mask] > 0).all()
    assert not labels[~mask].any()
    assert 8 < labels.max() <= 16  # cells of the finest scale, 4 x 4; some hold no voxel
    assert json.loads((anat / 'sub-01_desc-prior_dseg.json').read_text())['Manual'] is False
    reference = sidecar['Reference']
    region = mask & (truth['labels'] == truth['index']['CSF'])
    assert reference['Region'] == 'CSF'
    assert chi['precond'][region].mean() == pytest.approx(0, abs=1e-6)
    assert chi['precond'][region].std() == pytest.approx(reference['StandardDeviation'], rel=1e-4)
    assert reference['WholeRegionReferencedMean'] == pytest.approx(
        -chi['precond'][mask].mean(), abs=1e-6
    )
    r2prime = json.loads((anat / 'sub-01_R2primemap.json').read_text())
    assert 'Gelman' in r2prime['EstimationAlgorithm']


def test_a_conventional_map_as_prior(reconstruct, head, tmp_path):
    """The truth itself as a given map: one coefficient, which is 1."""
    chi = head / 'derivatives' / 'truth' / 'sub-01' / 'anat' / 'sub-01_desc-truth_Chimap.nii.gz'
    image = nb.load(chi)
    mask = nb.load(chi.with_name('sub-01_desc-brain_mask.nii.gz')).get_fdata() > 0
    data = (image.get_fdata() * mask).astype(np.float32)
    nb.save(nb.Nifti1Image(data, image.affine), tmp_path / 'given.nii.gz')
    _, _, sidecar = reconstruct('--prior', 'map:given.nii.gz')
    (name,) = sidecar['Parameters']['prior_fit']['priors']
    assert name == f'map:{tmp_path}/given.nii.gz'
    (scale,) = sidecar['Parameters']['prior_fit']['coefficients'][name]
    assert scale == pytest.approx(1.0, abs=0.15)
    assert (tmp_path / 'given.nii.gz').as_uri() in sidecar['Sources']


def test_swapped_classes_and_no_r2_are_told_in_sidecar_and_report(reconstruct, head, tmp_path):
    truth = head / 'derivatives' / 'truth' / 'sub-01' / 'anat'
    folder = tmp_path / 'swapped' / 'sub-01' / 'anat'
    folder.mkdir(parents=True)
    for name, other in (('GM', 'WM'), ('WM', 'GM'), ('CSF', 'CSF')):
        source = truth / f'sub-01_label-{other}_probseg.nii.gz'
        shutil.copy(source, folder / f'sub-01_desc-swapped_label-{name}_probseg.nii.gz')
    choice = {'tissue': {'description': 'swapped'}}
    (tmp_path / 'filter.json').write_text(json.dumps(choice))
    anat, _, sidecar = reconstruct(
        *('--prior', 'tissue', '--bids-filter-file', 'filter.json', '--r2', '0', '-d', 'swapped'),
    )
    fit = sidecar['Parameters']['prior_fit']
    assert fit['priors']['tissue']['supported']
    assert fit['tissue_means']['WM'] > fit['tissue_means']['GM']
    assert 'WM (' in fit['warnings'][0]
    report = (tmp_path / 'out' / 'sub-01.html').read_text()
    assert 'another order of susceptibility' in report
    # and so is that nothing was taken off R2*
    r2prime = json.loads((anat / 'sub-01_R2primemap.json').read_text())
    assert "R2* used as R2'" in r2prime['EstimationAlgorithm']
    assert r2prime['Parameters']['r2prime_prior']['r2'] == 0
