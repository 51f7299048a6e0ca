"""Records of phantoms as scanned, compared with their references and with the targets."""

import re

import numpy as np
from heads_page import NUCLEI

ARMS = ('conventional', 'preconditioned')
RISE = {'partial-fourier': 1.14, 'receive-poles': 1.14, 'all': 1.20}
"""Greatest NRMSE of a head over that of the cropped one; `USUAL` for the other switches."""
USUAL = 1.08
NUCLEUS = 0.15
"""Greatest departure of a nucleus from its value in the cropped head, relative."""
AWAY, AT_WALLS = (0.9, 1.2), 1.5
"""Range, and greatest, robust deviation of the field's error over its standard deviation."""
TUBE, COILS = 0.05, 0.05
"""Greatest relative error of a tube, and spread of the NRMSE over numbers of coils."""
WRONG = 1.25
"""NRMSE over that of the reference above which a map is wrong."""


def nrmse(record, arm):
    """NRMSE of one arm."""
    return record['maps'][arm]['nrmse']


class Results:
    """Records with their cases, and what is compared between them."""

    def __init__(self, parts, records):
        self.parts, self.records = parts, records
        self.cases = {name: case for cases in parts.values() for name, case in cases.items()}

    def done(self, part):
        """Name and record of the cases of a part that have maps."""
        return {n: self.records[n] for n in self.parts[part] if self.mapped(n)}

    def mapped(self, name):
        """Whether a case was run and not refused."""
        return 'maps' in self.records.get(name, {})

    def reference(self, name):
        """Record of what a case is compared with, or None."""
        other = self.cases[name].reference
        return self.records[other] if self.mapped(other) else None

    def rise(self, name, arm):
        """NRMSE over that of the reference, or None."""
        if not self.mapped(name) or self.reference(name) is None:
            return None
        return nrmse(self.records[name], arm) / nrmse(self.reference(name), arm)

    def wrong(self, name):
        """Arms whose map is wrong."""
        return [arm for arm in ARMS if (self.rise(name, arm) or 0) > WRONG]

    def warnings(self, name):
        """What a case warns of and its reference does not, whatever the numbers in it."""

        def plain(text):
            return re.sub(r'[\d.]+', '#', text)

        known = {plain(text) for text in (self.reference(name) or {}).get('warnings', ())}
        if self.cases[name].reference == name:
            known = set()
        return [t for t in self.records[name].get('warnings', ()) if plain(t) not in known]

    def told(self, name):
        """Whether a wrong map comes with a warning; True of one that is not wrong.

        A map that was made once the sign was given is judged as any other.
        """
        warned = [text for text in self.warnings(name) if not text.endswith('corrected')]
        return not self.wrong(name) or bool(warned)

    def nuclei(self, name):
        """Value of each nucleus over that in the reference, preconditioned, to white matter."""
        own, other = (
            r['maps']['preconditioned']['values']
            for r in (self.records[name], self.reference(name))
        )
        return {
            n: (own[n] - own['WM']) / (other[n] - other['WM'])
            for n in NUCLEI
            if n in own and n in other
        }


def field_met(record):
    """Whether the field's standard deviation is right away from walls and at them."""
    field = record['field']
    right = AWAY[0] <= field['away'] <= AWAY[1]
    return right and (field['walls'] is None or field['walls'] <= AT_WALLS)


def limit_of(name):
    """Greatest rise of the NRMSE of a head."""
    return RISE.get(name.partition('-')[2], USUAL)


def coil_spread(results, names):
    """Greatest NRMSE over the least, less 1."""
    errors = [nrmse(results.records[name], 'preconditioned') for name in names]
    return max(errors) / min(errors) - 1


def readout_met(record):
    """Whether all tubes of a run are there and right, or it is refused."""
    if record['refused']:
        return True
    tubes = record['maps']['preconditioned']['tubes']
    return bool(np.isfinite(tubes).all()) and off_tube(record, 'preconditioned') <= TUBE


def off_tube(record, arm):
    """The greatest relative error of a tube in the region."""
    pairs = zip(record['maps'][arm]['tubes'], record['true'], strict=True)
    return max(abs(found / true - 1) for found, true in pairs if true and np.isfinite(found))
