"""Prior fit: the field chooses the coefficients of the prior."""

from nipype.interfaces.base import (
    File,
    InputMultiPath,
    TraitedSpec,
    traits,
)

from precondqsm_bids.interfaces.hashed import InputSpec
from precondqsm_bids.interfaces.stage import Stage
from precondqsm_bids.interfaces.volumes import check_grid, load
from precondqsm_bids.method import Method
from precondqsm_bids.numerics.prior.estimate import PriorInputs, estimate_prior
from precondqsm_bids.terms import MAP, PORT, TERMS

_IMAGES = (
    'total_field', 'field_sd', 'shape_chi', 'shape_sd', 'r2star', 'r2star_sd',
    'magnitude', 'combined_magnitude', 'magnitude_sd', 'prior_chi',
)  # fmt: skip


class PriorFitInputSpec(InputSpec):
    total_field = File(exists=True, mandatory=True, desc='measured relative field, ppm')
    field_sd = File(exists=True, mandatory=True, desc='standard deviation of the field, ppm')
    mask = File(exists=True, mandatory=True, desc='region of interest')
    shape_chi = File(exists=True, desc='susceptibility of the shape relative to air, ppm')
    shape_sd = File(
        exists=True, desc='expected error of shape_chi, ppm, which the fit may correct'
    )
    priors = traits.List(
        traits.Str,
        list(Method.prior),
        usedefault=True,
        desc=f'terms of the prior: {", ".join(TERMS)}; {MAP}{PORT} is the input of that name',
    )
    prior_map = File(exists=True, desc='susceptibility, ppm, of the term map:prior_map')
    fit = traits.Enum(
        'global',
        'clusters',
        'none',
        usedefault=True,
        desc='coefficients of r2prime and map:FILE: one, one for each cluster, or not fitted',
    )
    prior_chi = File(exists=True, desc="susceptibility from R2', ppm, for r2prime and by tissue")
    tissue = File(exists=True, desc='class of each voxel (3D) or fractions of the classes (4D)')
    tissue_names = traits.List(traits.Str, desc='names of the tissue classes')
    r2star = File(exists=True, desc='R2*, 1/s; undefined of a single echo')
    r2star_sd = File(exists=True, desc='standard deviation of R2* by the noise, 1/s')
    reliable = File(exists=True, desc='voxels whose R2* is known; the others are a cell')
    magnitude = File(exists=True, desc='magnitude of the first echo, any unit, for contrast')
    combined_magnitude = File(
        exists=True,
        desc='root sum of squares over the echoes: in place of magnitude in an inner region',
    )
    magnitude_sd = File(
        exists=True, desc='standard deviation of both magnitudes by the noise, in their unit'
    )
    contrasts = InputMultiPath(
        File(exists=True), desc='further images whose joint histogram with R2* makes cells'
    )
    n_contrasts = traits.Int(desc='how many further images there are; another number is refused')
    inner = traits.Bool(
        False, usedefault=True, desc='whether the border of the region is no surface of the object'
    )
    free_voxels = traits.Bool(
        False,
        usedefault=True,
        desc='whether voxels where the fit leaves a source are unknowns, and tissue has a shift',
    )
    field_strength = traits.Float(mandatory=True, desc='B0, T, for the implied relaxivity')
    iterations = traits.Range(1, 10000, value=66, usedefault=True, desc='gradient iterations')
    num_threads = traits.Int(1, usedefault=True, nohash=True, desc='threads of the transforms')


class PriorFitOutputSpec(TraitedSpec):
    prior_chi = File(exists=True, desc='fitted prior susceptibility, ppm')
    shape_chi = File(desc='susceptibility of the shape, its surface corrected, ppm')
    prior_labels = File(desc='finest parcels of the prior, from 1; 0 where there is none')
    outer_chi = File(
        desc='sources outside that the fit has found, ppm, on the grid of the solver (NumPy)'
    )
    expected_size = traits.Float(desc='expected size of the fitted susceptibility, ppm')
    trust = traits.Float(desc='how far the prior counts, 0 to 1')
    prior_sd = File(desc='standard deviation of the prior by its fit, ppm')
    tissue_shift = File(desc='frequency of the tissue that is no field of a dipole, ppm')
    record = traits.Dict(desc='what the stage measured and chose')


class PriorFit(Stage):
    """The first estimate: :func:`precondqsm_bids.numerics.estimate_prior`."""

    input_spec = PriorFitInputSpec
    output_spec = PriorFitOutputSpec
    like = 'total_field'
    off_grid = ('outer_chi',)

    def _compute(self):
        inputs = self.inputs
        words = [word.removeprefix(MAP) for word in inputs.priors if word.startswith(MAP)]
        files = {word: self._given(PORT) if word == PORT else word for word in words}
        if None in files.values():
            raise ValueError(f'{PORT} is not given, and the prior has the term {MAP}{PORT}')
        contrasts = self._given('contrasts', [])
        if (asked := self._given('n_contrasts', len(contrasts))) != len(contrasts):
            raise ValueError(
                f'the method has {asked} further contrasts, and {len(contrasts)} images of them '
                'are given (contrasts): give one for each'
            )
        check_grid([inputs.total_field, *files.values()])
        images = PriorInputs(
            **{name: self._load(name) for name in _IMAGES},
            inner=inputs.inner,
            reliable=self._load('reliable', bool),
            contrasts={path: load(path) for path in contrasts},
            tissue=self._load('tissue', None),
            tissue_names=self._given('tissue_names', ()),
            maps={word: load(path) for word, path in files.items()},
            field_strength=inputs.field_strength,
        )
        fit = None if inputs.fit == 'none' else inputs.fit
        return estimate_prior(
            images, self._geometry(), inputs.priors, fit, inputs.free_voxels, inputs.iterations
        )._asdict()
