"""Base of the stages' interfaces: check and load files, call one function, save."""

import re
from pathlib import Path
from typing import Any

import numpy as np
from nipype.interfaces.base import (
    File,
    SimpleInterface,
    isdefined,
    traits,
)

from precondqsm_bids.interfaces.hashed import InputSpec
from precondqsm_bids.interfaces.volumes import (
    b0_along,
    check_grid,
    geometry,
    is_image,
    load,
    load_mask,
    save,
)
from precondqsm_bids.numerics.dipole import Geometry
from precondqsm_bids.numerics.solver import MODEL_ERROR, noise_weights


class WeightedInputSpec(InputSpec):
    """Inputs of the stages whose least squares are weighted by the noise."""

    field_sd = File(exists=True, desc='standard deviation of the field, ppm, for the weights')
    model_error = traits.Range(
        0.0,
        value=MODEL_ERROR,
        exclude_low=True,
        usedefault=True,
        desc='model error of the field, ppm, for the weights',
    )
    num_threads = traits.Int(1, usedefault=True, nohash=True, desc='threads of the transforms')


class Stage(SimpleInterface):
    """Base of the stages: all images are on one grid, and so is what is computed of them.

    A subclass says in ``like`` which input has the grid and the header of its outputs, and in
    ``_compute`` the outputs by name: arrays, which become images (those in ``off_grid``, of
    another grid, files of NumPy), and other values; None is left undefined. Where an error of the
    function opens with the name of an input that is a file, the file takes its place.
    """

    like: str = ''
    off_grid: tuple[str, ...] = ()

    def _run_interface(self, runtime):
        check_grid(self._images())
        try:
            outputs = self._compute()
        except ValueError as error:
            raise ValueError(self._with_file(str(error))) from error
        for name, value in outputs.items():
            if isinstance(value, np.ndarray) and name in self.off_grid:
                path = Path(runtime.cwd) / f'{name}.npy'
                np.save(path, value)
                value = str(path)
            elif isinstance(value, np.ndarray):
                value = save(value, getattr(self.inputs, self.like), runtime.cwd, name)
            if value is not None:
                self._results[name] = value
        return runtime

    def _images(self) -> list[str]:
        """Files of all inputs that are images."""
        values = []
        for name, trait in self.inputs.traits(transient=None).items():
            if any(t.is_trait_type(File) for t in (trait, *trait.inner_traits)):
                value = self._given(name, [])
                values += value if isinstance(value, list) else [value]
        return [path for path in values if is_image(path)]

    def _compute(self) -> dict[str, Any]:
        """Outputs by name."""
        raise NotImplementedError

    def _given(self, name: str, default: Any = None) -> Any:
        """An input, or the default where it is undefined."""
        value = getattr(self.inputs, name)
        return value if isdefined(value) else default

    def _load(self, name: str, dtype: type | None = np.float32) -> np.ndarray | None:
        """The array of an input, None where it is undefined."""
        path = self._given(name)
        if path is None:
            return None
        return load_mask(path) if dtype is bool else load(path, dtype)

    def _geometry(self) -> Geometry:
        """Region of interest and how it lies to B0."""
        like = getattr(self.inputs, self.like)
        voxel_size, mask = geometry(like)[1], self._load('mask', bool)
        return Geometry(mask, voxel_size, b0_along(like), self._given('num_threads', 1))

    def _weights(self, mask: np.ndarray) -> np.ndarray | None:
        """Weights of the field, None where its standard deviation is undefined."""
        field_sd = self._load('field_sd')
        if field_sd is None:
            return None
        return noise_weights(field_sd, mask, self.inputs.model_error)

    def _with_file(self, message: str) -> str:
        word = re.match(r'\w*', message)[0]
        path = self.inputs.get().get(word)
        return f'{path}{message[len(word) :]}' if is_image(path) else message
