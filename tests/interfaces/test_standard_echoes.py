"""However a run is stored, the stages get the same magnitude and phase."""

import nibabel as nib
import numpy as np
import pytest

from precondqsm_bids.interfaces.standard_echoes import StandardEchoes, affine_along
from precondqsm_bids.interfaces.volumes import stated_b0
from precondqsm_bids.numerics.dipole import b0_direction

AFFINE = np.diag([-2.0, 2.0, 3.0, 1.0])
SHAPE, ECHOES = (5, 6, 7), 3


@pytest.fixture
def signal():
    rng = np.random.default_rng(0)
    size = (*SHAPE, ECHOES)
    return (rng.normal(size=size) + 1j * rng.normal(size=size)).astype(np.complex64)


@pytest.fixture
def write(tmp_path):
    def file(name, data, affine=AFFINE):
        path = tmp_path / f'{name}.nii.gz'
        nib.save(nib.Nifti1Image(data.astype(np.float32), affine), path)
        return str(path)

    return file


def outputs(tmp_path, **inputs):
    folder = tmp_path / 'out'
    folder.mkdir()
    return StandardEchoes(**inputs).run(cwd=str(folder)).outputs


def stack(paths):
    return np.stack([nib.load(path).get_fdata() for path in paths], axis=-1)


def test_real_and_imaginary_parts(signal, write, tmp_path):
    parts = {
        key: [write(f'echo-{i}_part-{name}_MEGRE', part[..., i]) for i in range(ECHOES)]
        for key, name, part in (
            ('real', 'real', signal.real),
            ('imaginary', 'imag', signal.imag),
        )
    }
    result = outputs(tmp_path, **parts)
    np.testing.assert_allclose(stack(result.magnitude), np.abs(signal), rtol=1e-6)
    np.testing.assert_allclose(stack(result.phase), np.angle(signal), atol=1e-6)
    assert result.phase[1].endswith('/echo-1_part-phase_MEGRE.nii')
    np.testing.assert_array_equal(nib.load(result.phase[0]).affine, AFFINE)


@pytest.mark.parametrize('part', ['magnitude', 'phase'])
def test_parts_that_do_not_pair_are_refused(signal, write, tmp_path, part):
    files = {
        'magnitude': [write('m0', np.abs(signal[..., 0])), write('m1', np.abs(signal[..., 1]))],
        'phase': [write('p', np.angle(signal[..., :2]))],
    }
    missing = {key: value for key, value in files.items() if key != part}
    with pytest.raises(ValueError, match=f'no files of the {part}: give magnitude and phase'):
        StandardEchoes(**missing).run(cwd=str(tmp_path))
    files[part] = [write('one', np.ones(SHAPE))]
    with pytest.raises(ValueError, match=r'numbers of echoes: .*nii\.gz has an echo to which'):
        StandardEchoes(**files).run(cwd=str(tmp_path))


def test_one_file_with_an_axis_of_echoes(signal, write, tmp_path):
    result = outputs(
        tmp_path, magnitude=[write('m', np.abs(signal))], phase=[write('p', np.angle(signal))]
    )
    np.testing.assert_array_equal(stack(result.magnitude), np.abs(signal))
    np.testing.assert_array_equal(stack(result.phase), np.angle(signal))


def test_files_of_one_name_in_several_folders_stay_apart(signal, tmp_path):
    files = {part: [] for part in ('real', 'imaginary')}
    for i in range(ECHOES):
        for part, data in (('real', signal.real), ('imaginary', signal.imag)):
            path = tmp_path / f'echo{i}' / part / 'image.nii'
            path.parent.mkdir(parents=True)
            nib.save(nib.Nifti1Image(data[..., i], AFFINE), path)
            files[part].append(str(path))
    result = outputs(tmp_path, **files)
    np.testing.assert_allclose(stack(result.magnitude), np.abs(signal), rtol=1e-6)
    np.testing.assert_allclose(stack(result.phase), np.angle(signal), atol=1e-6)


@pytest.mark.parametrize('b0_dir', [(0, 0, 1), (0, 0, -2), (0, 3, 0), (-1, 0.2, 0.4)])
def test_direction_of_b0_becomes_the_affine(signal, write, tmp_path, b0_dir):
    """What every stage reads from the affine is what was given; the grid keeps its voxels."""
    files = [write(f'e{i}', np.abs(signal[..., i]), None) for i in range(ECHOES)]
    result = outputs(
        tmp_path,
        magnitude=files,
        phase=files,
        b0_dir=[float(b) for b in b0_dir],
        labels=files[0],
        mask=files[1],
    )
    image = nib.load(result.magnitude[0])
    assert image.header['sform_code'] == image.header['qform_code'] == 1
    np.testing.assert_allclose(
        b0_direction(image.affine), np.array(b0_dir) / np.linalg.norm(b0_dir), atol=1e-6
    )
    assert np.linalg.det(image.affine) > 0
    for path in (result.labels, result.mask, result.phase[2]):
        np.testing.assert_array_equal(nib.load(path).affine, image.affine)
    np.testing.assert_allclose(
        nib.affines.voxel_sizes(affine_along(b0_dir, (1, 2, 3))), (1, 2, 3), rtol=1e-12
    )


def test_what_is_not_finite_is_named(signal, write, tmp_path):
    real = signal.real.copy()
    real[0, 0, 0, 0] = np.inf
    with pytest.raises(ValueError, match=r'r\.nii\.gz has 1 voxels that are not finite'):
        outputs(tmp_path, real=[write('r', real)], imaginary=[write('i', signal.imag)])


def test_one_echo_stays_a_list(signal, write, tmp_path):
    """A bare string, of which the next stage takes the first letter, is not a list of one file."""
    real, imaginary = (
        write(f'x_part-{n}_MEGRE', d[..., 0])
        for n, d in (('real', signal.real), ('imag', signal.imag))
    )
    result = outputs(tmp_path, real=[real], imaginary=[imaginary])
    assert isinstance(result.magnitude, list)
    assert isinstance(result.phase, list)
    assert len(result.magnitude) == len(result.phase) == 1


def test_a_given_field_gets_the_stated_direction_of_b0(signal, write, tmp_path):
    magnitude, field = write('m', np.abs(signal[..., 0])), write('f', signal.real[..., 0])
    result = outputs(
        tmp_path, magnitude=[magnitude], total_field=field, r2star=field, b0_dir=[0, 1, 0]
    )
    np.testing.assert_array_equal(stack(result.magnitude)[..., 0], nib.load(magnitude).get_fdata())
    for path in (result.total_field, result.r2star, *result.magnitude):
        assert stated_b0(nib.load(path).header).tolist() == [0, 1, 0]
    np.testing.assert_array_equal(
        nib.load(result.total_field).get_fdata(), nib.load(field).get_fdata()
    )
