"""The strongest conventional maps of a case, at the weight that is best in hindsight.

Total variation of the local field that PDF leaves, in the same region as the default map; and of
the one that V-SHARP leaves, in that region without the rim that spheres do not know, where the
default map is scored once more. The weight is sought by the truth, coarse to fine: three or four
values, a factor of two apart, with half of the iterations, and then one in full at the vertex of
the parabola through the best of them and its neighbours. Both together cost less than six
inversions a case.
"""

import time
from contextlib import suppress

import numpy as np

from precondqsm_bids.numerics import (
    closed_form,
    least_risk,
    noise_weights,
    tv_inversion,
    vsharp,
)
from precondqsm_bids.numerics.total_variation import MOST_ITERATIONS
from precondqsm_bids.numerics.vsharp import TooThin

COARSE = MOST_ITERATIONS // 2
"""Iterations while the weight is sought."""
NAMES = {'tv': 'total variation', 'vsharp-tv': 'V-SHARP and total variation'}
"""Opponents and their names in tables."""


def best_weight(error_at, start):
    """Least error over the weights that are tried, its weight, and the iterations that it took.

    Parameters
    ----------
    error_at : callable
        Error of the map of a weight and a number of iterations.
    start : float
        Weight that the search begins at.

    Examples
    --------
    >>> error, weight, _ = best_weight(lambda w, n: 1 + np.log(w / 0.5) ** 2, 0.2)
    >>> round(float(error), 6), round(weight, 6)
    (1.0, 0.5)
    """
    tried = {start * factor: error_at(start * factor, COARSE) for factor in (0.5, 1.0, 2.0)}
    best = min(tried, key=tried.get)
    if best != start:  # at an end: one step further
        tried[best**2 / start] = error_at(best**2 / start, COARSE)
        best = min(tried, key=tried.get)
    weights = sorted(tried)
    i = int(np.clip(weights.index(best), 1, len(weights) - 2))
    x, y = np.log2(weights[i - 1 : i + 2]), [tried[w] for w in weights[i - 1 : i + 2]]
    curvature, slope, _ = np.polyfit(x - x[1], y, 2)
    step = -slope / (2 * curvature) if curvature > 0 else np.sign(y[0] - y[2])
    vertex = float(weights[i] * 2 ** np.clip(step, -2, 2))
    iterations = COARSE * len(tried) + MOST_ITERATIONS
    tried[vertex] = min(tried.get(vertex, np.inf), error_at(vertex, MOST_ITERATIONS))
    best = min(tried, key=tried.get)
    return tried[best], best, iterations


def nrmse(chi, truth, region):
    """Error over a region, each map less its mean, relative to the deviation of the true map."""
    found, true = chi[region].astype(float), truth[region].astype(float)
    found, true = found - found.mean(), true - true.mean()
    return float(np.linalg.norm(found - true) / np.linalg.norm(true))


def rimless(geometry):
    """The region without the rim that spheres do not know."""
    return vsharp(np.zeros(geometry.mask.shape, np.float32), geometry, largest_radius=0.0).known


def assess(field, local_field, field_sd, geometry, truth, region=None):
    """Both opponents of a case at their best weights, ready for JSON.

    Parameters
    ----------
    field, local_field, field_sd : (X, Y, Z) ndarray
        Total field, what PDF leaves of it in the conventional arm, and its standard deviation,
        ppm.
    geometry : Geometry
        Region that is reconstructed, and how it lies.
    truth : (X, Y, Z) ndarray
        True susceptibility, ppm.
    region : (X, Y, Z) ndarray of bool, optional
        What of it is scored; all if omitted.

    Returns
    -------
    dict
        Opponent -> ``nrmse``, ``weight`` (lambda, mm), ``share`` of the region that is scored and
        known, ``inversions`` that the search cost and CPU ``seconds``. Without V-SHARP where no
        sphere fits into the region.
    """
    region = geometry.mask if region is None else region
    found, weight = {}, None
    for name in NAMES:
        start = time.process_time()
        local, known = local_field, geometry
        if name == 'vsharp-tv':
            try:
                removed = vsharp(field, geometry)
            except TooThin:
                break
            local, known = removed.local_field, geometry._replace(mask=removed.known)
        form = closed_form(known)
        weights = noise_weights(field_sd, known.mask)
        if weight is None:
            weight = least_risk(form, form.spectrum(local))
        scored = region & known.mask

        def error_at(weight, iterations, form=form, local=local, weights=weights, scored=scored):
            chi = tv_inversion(form, local, weight, weights, iterations).chi
            return nrmse(chi, truth, scored)

        error, weight, iterations = best_weight(error_at, weight)
        found[name] = {
            'nrmse': error,
            'weight': weight,
            'share': float(scored.sum() / region.sum()),
            'inversions': iterations / MOST_ITERATIONS,
            'seconds': time.process_time() - start,
        }
    return found


def of_default(chi, geometry, truth, region=None):
    """Errors of the default map where each opponent is scored."""
    region = geometry.mask if region is None else region
    found = {'tv': nrmse(chi, truth, region)}
    with suppress(TooThin):
        found['vsharp-tv'] = nrmse(chi, truth, region & rimless(geometry))
    return found
