"""The closed form by its parts."""

from precondqsm_bids.method import Arm
from precondqsm_bids.numerics.dipole import Geometry
from precondqsm_bids.numerics.dipole_inversion import invert


def l2_inversion(local_field, mask, voxel_size, b0_dir, reg_weight=None, workers=1, **arm):
    """Susceptibility of a local field by closed-form division in k-space."""
    geometry = Geometry(mask, voxel_size, b0_dir, workers)
    return invert(local_field, geometry, Arm(reg_weight=reg_weight, **arm))
