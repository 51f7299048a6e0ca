"""Identities of linear operators."""

import numpy as np


def assert_adjoint(apply, adjoint, shape, image_shape=None, rtol=1e-6):
    """Check ``<A x, y> = <x, A' y>`` for random ``x`` and ``y``.

    Parameters
    ----------
    apply, adjoint : callable
        ``A`` and ``A'``.
    shape, image_shape : tuple of int
        Shapes of ``x`` and of ``A x``, which is that of ``x`` by default.
    rtol : float
        Largest difference, relative to ``|A x| |y|``. Random vectors are nearly at right angles,
        so that relative to ``<A x, y>`` the rounding of float32 would be large by chance.
    """
    rng = np.random.default_rng(0)
    for _ in range(3):
        x = rng.standard_normal(shape, np.float32)
        y = rng.standard_normal(image_shape or shape, np.float32)
        image, back = apply(x), adjoint(y)
        assert image.shape == y.shape
        assert back.shape == x.shape
        difference = np.vdot(image, y.astype(float)) - np.vdot(x.astype(float), back)
        assert abs(difference) < rtol * np.linalg.norm(image) * np.linalg.norm(y)
