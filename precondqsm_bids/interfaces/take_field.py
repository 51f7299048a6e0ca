"""A field that was measured elsewhere, in the place of the echo fit."""

import numpy as np
from nipype.interfaces.base import File, traits

from precondqsm_bids.interfaces.echo_fit import EchoFitOutputSpec, stored_b0
from precondqsm_bids.interfaces.hashed import InputSpec
from precondqsm_bids.interfaces.stage import Stage
from precondqsm_bids.interfaces.volumes import (
    b0_along,
    geometry,
    load_magnitude,
    open_image,
    stated_b0,
    stored_axes,
)
from precondqsm_bids.numerics.given_field import UNITS, GivenField, in_ppm, take_field


class TakeFieldInputSpec(InputSpec):
    field = File(exists=True, mandatory=True, desc='total field, 0 or NaN where it is not known')
    field_units = traits.Enum(*UNITS, usedefault=True, desc='units of field and field_sd')
    magnitude = File(exists=True, mandatory=True, desc='magnitude, any unit')
    field_strength = traits.Float(mandatory=True, desc='B0, T')
    field_strength_source = traits.Str(desc='key of the metadata or option that B0 is from')
    mask = File(exists=True, mandatory=True, desc='region of interest, where the field is known')
    shape_mask = File(exists=True, desc='object in air; its field tells the sign')
    field_sd = File(
        exists=True, desc='standard deviation of the field; by its fourth differences if undefined'
    )
    r2star = File(exists=True, desc='effective transverse relaxation rate, 1/s')
    phase_sign = traits.Enum(
        'auto', 1, -1, usedefault=True, desc='what the field is multiplied by; "auto" is 1'
    )
    num_threads = traits.Int(1, usedefault=True, nohash=True, desc='threads of the transforms')


class TakeField(Stage):
    """Take a field as it is: :func:`precondqsm_bids.numerics.take_field`."""

    input_spec = TakeFieldInputSpec
    output_spec = EchoFitOutputSpec
    like = 'field'

    def _compute(self):
        inputs = self.inputs
        image = open_image(inputs.field)

        def ppm(name):
            data = self._load(name, np.float64)
            units, strength = inputs.field_units, inputs.field_strength
            return None if data is None else in_ppm(data, units, strength)

        given = GivenField(
            ppm('field'),
            load_magnitude(inputs.magnitude),
            inputs.field_strength,
            geometry(inputs.field)[1],
            b0_along(inputs.field),
            b0_stated=stated_b0(image.header) is not None,
            stored_axes=tuple(stored_axes(image.affine, range(3))),
            field_sd=ppm('field_sd'),
            r2star=self._load('r2star'),
            sign=None if inputs.phase_sign == 'auto' else inputs.phase_sign,
        )
        masks = self._load('mask', bool), self._load('shape_mask', bool)
        try:
            found = take_field(given, *masks, inputs.num_threads)
        except ValueError as error:
            raise ValueError(f'{inputs.field}: {error}') from error
        known = {'field_strength_source': inputs.field_strength_source or 'given'}
        known |= {'field_units': inputs.field_units, 'b0_dir': stored_b0(inputs.field)}
        return {**found._asdict(), 'record': found.record | known}
