"""The section on the opponents, as every page of the benchmarks has it."""

import numpy as np
import page
from opponents import NAMES

UNKNOWN = '-'


def worst_ratio(found, ours):
    """Error of the default over that of the stronger opponent, each in its mask."""
    return max(ours[name] / found[name]['nrmse'] for name in found)


def target(cases, what, limit):
    """Cells of a row of targets: the greatest ratio of some cases against its limit.

    ``cases`` are pairs of the opponents' record and the default's errors, by name.
    """
    ratios = {name: worst_ratio(*pair) for name, pair in cases.items()}
    most = max(ratios, key=ratios.get)
    within = sum(ratio <= limit for ratio in ratios.values())
    text = f'{within} of {len(ratios)}; worst: {most} {ratios[most]:.2f}'
    heading = f'{what}: NRMSE of the default over that of the stronger opponent at its best weight'
    return heading, f'at most {limit:g}', text, within == len(ratios)


def section(cases):
    """Section on the opponents, or nothing without cases; as for :func:`target`."""
    if not cases:
        return ''
    rows, lost = [], []
    for title, (found, ours) in cases.items():
        cells = [title]
        for name in NAMES:
            if name not in found:
                cells += [UNKNOWN] * 3
                continue
            ratio = ours[name] / found[name]['nrmse']
            cells += [page.percent(found[name]['nrmse']), page.percent(ours[name]), f'{ratio:.2f}']
            if ratio >= 1:
                lost.append(f'{title} ({NAMES[name]}, {ratio:.2f})')
        share = found.get('vsharp-tv', {}).get('share')
        rows.append((*cells, UNKNOWN if share is None else f'{share:.2f}'))
    columns = ['']
    for name in NAMES.values():
        columns += [f'{name}: NRMSE, %', 'default there, %', 'default over it']
    columns.append('share of the region that V-SHARP knows')
    every = [list(found.values()) for found, _ in cases.values()]
    cost = np.mean([sum(one['inversions'] for one in both) for both in every])
    seconds = np.median([sum(one['seconds'] for one in both) for both in every])
    wins = f'**They win in**: {"; ".join(lost)}.' if lost else '**They win nowhere.**'
    return f"""## The strongest opponents

Conventional maps with total variation, at the weight that is best in hindsight, which takes the
truth to know; the default has the lambda of its own rule. After PDF in the same region as the
default map; after V-SHARP in that region without the rim that spheres do not know, in which the
default is scored once more. {wins}

{page.table(tuple(columns), rows)}

The weight is sought coarse to fine, at the cost of {cost:.1f} inversions a case, {seconds:.0f} s
of one CPU in the median case."""
