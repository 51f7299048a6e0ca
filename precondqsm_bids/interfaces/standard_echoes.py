"""Standard echoes: whatever a run is stored as, as one magnitude and one phase image per echo."""

from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import nibabel as nb
import numpy as np
from nipype.interfaces.base import (
    File,
    InputMultiPath,
    SimpleInterface,
    TraitedSpec,
    isdefined,
    traits,
)

from precondqsm_bids.interfaces.hashed import InputSpec
from precondqsm_bids.interfaces.volumes import (
    clear_pair,
    load_stored,
    object_in,
    open_image,
    state_b0,
)
from precondqsm_bids.numerics.arrays import check_finite
from precondqsm_bids.numerics.phase.checks import check_signed

COMPANIONS = ('labels', 'mask', 'total_field', 'field_sd', 'r2star')
"""Images that are carried along as they are, on the grid of the echoes."""


class Volume(NamedTuple):
    """One echo of one part."""

    path: str
    name: str
    """Name of the file it is written to."""
    data: np.ndarray
    """(X, Y, Z), as it is stored."""
    image: nb.Nifti1Image
    """Image of the file, for its header."""


class StandardEchoesInputSpec(InputSpec):
    magnitude = InputMultiPath(File(exists=True), desc='one 3D file an echo, or one 4D file')
    phase = InputMultiPath(File(exists=True), desc='as the magnitude, rad or integer codes')
    real = InputMultiPath(File(exists=True), desc='real part, instead of magnitude and phase')
    imaginary = InputMultiPath(File(exists=True), desc='imaginary part')
    b0_dir = traits.List(
        traits.Float,
        minlen=3,
        maxlen=3,
        desc='direction of B0 along the voxel axes, which comes before that of the header',
    )
    labels = File(exists=True, desc='labels on the grid of the echoes')
    mask = File(exists=True, desc='region of interest on the grid of the echoes')
    total_field = File(exists=True, desc='a given field, in place of the phase')
    field_sd = File(exists=True, desc='standard deviation of the field')
    r2star = File(exists=True, desc='R2* on the grid of the echoes')


class StandardEchoesOutputSpec(TraitedSpec):
    # Lists, not OutputMultiPath, which makes a bare string of a list of one file.
    magnitude = traits.List(File(exists=True), desc='one 3D file an echo, any unit')
    phase = traits.List(File(exists=True), desc='one 3D file an echo')
    labels = File(exists=True, desc='labels on the grid of the outputs')
    mask = File(exists=True, desc='region of interest on the grid of the outputs')
    total_field = File(exists=True, desc='the field as it is')
    field_sd = File(exists=True, desc='its standard deviation')
    r2star = File(exists=True, desc='R2*')


class StandardEchoes(SimpleInterface):
    """Real and imaginary parts, 4D files, images with a stated B0: as the stages read them.

    Images without an orientation get one: the rotation that takes B0, given along their axes, to
    the scanner's z, about which their position is not known. The maps then carry the direction of
    B0 as every other map does. Images with an orientation keep it, and the direction is written
    into the description of their headers, where the stages look first.
    """

    input_spec = StandardEchoesInputSpec
    output_spec = StandardEchoesOutputSpec

    def _run_interface(self, runtime):
        folder, inputs = Path(runtime.cwd), self.inputs
        self._written = set()
        for name in COMPANIONS:
            if isdefined(path := getattr(inputs, name)):
                image = open_image(path)
                data = np.asanyarray(image.dataobj)
                self._results[name] = self._save(data, image, folder / f'{name}.nii')
        if isdefined(inputs.total_field):
            (only,) = self._volumes('magnitude')
            saved = self._save(only.data, only.image, folder / only.name)
            self._results['magnitude'] = [saved]
            return runtime
        parts = ('real', 'imaginary') if isdefined(inputs.real) else ('magnitude', 'phase')
        magnitude, phase, inside = [], [], None
        for one, other in self._pairs(parts):
            data, names = (one.data, other.data), (one.name, other.name)
            if parts[0] == 'real':
                check_signed(*data, (one.path, other.path))
                data = np.hypot(*data), np.arctan2(other.data, one.data)
                names = tuple(
                    one.name.replace('part-real', f'part-{part}') for part in ('mag', 'phase')
                )
            if any(part.dtype.kind == 'f' and np.isnan(part).any() for part in data):
                data = tuple(np.array(part, np.float32) for part in data)
                inside = object_in(data[0]) if inside is None else inside
                paths = (one.path, other.path)
                if parts[0] == 'real' and not np.isnan(one.data).any():
                    paths = (other.path, other.path)
                clear_pair(*data, paths, inside)
            magnitude.append(self._save(data[0], one.image, folder / names[0]))
            phase.append(self._save(data[1], other.image, folder / names[1]))
        self._results |= {'magnitude': magnitude, 'phase': phase}
        return runtime

    def _pairs(self, parts):
        """Both parts of each echo, one after the other."""
        for part in parts:
            if not isdefined(getattr(self.inputs, part)):
                raise ValueError(f'no files of the {part}: give {parts[0]} and {parts[1]}')
        for one, other in zip_longest(*map(self._volumes, parts)):
            if one is None or other is None:
                alone = (one or other).path
                raise ValueError(
                    f'{parts[0]} and {parts[1]} differ in their numbers of echoes: {alone} has an '
                    'echo to which the other has none'
                )
            yield one, other

    def _volumes(self, part):
        """Each echo in the files of a part, one after the other."""
        for path in getattr(self.inputs, part):
            data, image = load_stored(path)
            if np.isinf(data).any():
                check_finite(data, path)
            stem = Path(path).name.partition('.')[0]
            if data.ndim == 3:
                yield Volume(path, f'{stem}.nii', data, image)
                continue
            for i in range(data.shape[3]):
                name = f'{stem}_volume-{i + 1}.nii'
                yield Volume(path, name, np.ascontiguousarray(data[..., i]), image)

    def _save(self, data, like, path):
        if path in self._written:  # files of several folders may have one name
            path = path.with_stem(f'{path.stem}_{len(self._written)}')
        self._written.add(path)
        affine = like.affine
        codes = [int(like.header[f'{form}_code']) for form in ('qform', 'sform')]
        stated = isdefined(self.inputs.b0_dir)
        if stated and not any(codes):
            affine = affine_along(self.inputs.b0_dir, like.header.get_zooms()[:3])
            codes = [1, 1]
        if data.dtype not in (np.uint8, np.int16, np.int32):
            data = data.astype(np.float32)
        image = nb.Nifti1Image(data, affine)
        image.header.set_xyzt_units('mm')
        if stated and any(int(like.header[f'{form}_code']) for form in ('qform', 'sform')):
            state_b0(image.header, self.inputs.b0_dir)
        image.set_qform(affine, codes[0])
        image.set_sform(affine, codes[1])
        nb.save(image, path)
        return str(path)


def affine_along(b0_dir, voxel_size):
    """The affine with B0 (its z axis) along ``b0_dir`` of the voxel axes, least turned.

    >>> affine_along((0, 0, 2), (1, 1, 3)).diagonal().tolist()
    [1.0, 1.0, 3.0, 1.0]
    >>> affine_along((0, 1, 0), (1, 1, 3))[2].tolist()
    [0.0, 1.0, 0.0, 0.0]
    """
    b = np.asarray(b0_dir, dtype=np.float64)
    b = b / np.linalg.norm(b)
    z = np.array([0.0, 0.0, 1.0])
    if b[2] <= -1 + 1e-9:
        rotation = np.diag([1.0, -1.0, -1.0])  # half a turn, about whichever axis
    else:
        # Rodrigues' formula for the least rotation that takes b to z.
        cross = np.cross(b, z)
        skew = np.array(
            [[0, -cross[2], cross[1]], [cross[2], 0, -cross[0]], [-cross[1], cross[0], 0]]
        )
        rotation = np.eye(3) + skew + skew @ skew / (1 + b[2])
    affine = np.eye(4)
    affine[:3, :3] = rotation * np.asarray(voxel_size, dtype=np.float64)
    return affine
