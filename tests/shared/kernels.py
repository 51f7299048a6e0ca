"""The dipole kernel once more, in double precision and by its formula."""

import numpy as np
from scipy import fft


def full_kernel(shape, voxel_size, b0_dir):
    """Dipole kernel on the full spectrum, by its formula; the mean of both signs at Nyquist."""
    kernel = np.zeros(shape)
    for signs in np.ndindex(2, 2, 2):
        k = [fft.fftfreq(n, d) for n, d in zip(shape, voxel_size, strict=True)]
        for axis, sign in enumerate(signs):
            n = shape[axis]
            if n % 2 == 0 and sign:
                k[axis][n // 2] *= -1
        k = np.stack(np.meshgrid(*k, indexing='ij'), axis=-1)
        k2 = np.sum(k**2, axis=-1)
        k2[0, 0, 0] = 1
        kernel += (1 / 3 - (k @ b0_dir) ** 2 / k2) / 8
    kernel[0, 0, 0] = 0
    return kernel
