"""Inputs that are maps of the reconstruction: from the table of maps."""

from nipype.interfaces.base import File, isdefined

from precondqsm_bids.interfaces.hashed import InputSpec
from precondqsm_bids.outputs.maps import MAPS


def map_inputs(known):
    """Input specification with a file for each map, to derive that of an interface from."""
    files = {
        name: File(exists=True, desc=f'{MAPS[name].words}, {MAPS[name].unit or "labels"}')
        for name in known
    }
    return type('MapInputSpec', (InputSpec,), files)


def defined_maps(inputs):
    """Map -> file, of those that are defined, in the order of the table."""
    values = {name: getattr(inputs, name, None) for name in MAPS}
    return {name: file for name, file in values.items() if file and isdefined(file)}
