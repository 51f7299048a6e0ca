"""What a scanner and a living body add to the ideal signal: settings, and the switches for them.

Standard library only, so that the command line can read its defaults without loading numpy.
"""

from dataclasses import dataclass, fields, replace
from math import inf, isfinite
from typing import NamedTuple

PIXEL_BANDWIDTH = 1102
"""Receiver bandwidth of the protocol, Hz per pixel."""

CHOICES = {
    'receive': ('none', 'smooth', 'lobed', 'poles'),
    'coils': (1, 8, 32),
    'background': ('noise', 'zero', 'damped', 'normalised'),
}
"""Fields of `Scanner` that are one of a few; the first is the ideal."""


@dataclass(frozen=True)
class Scanner:
    """What is not ideal; the default is an ideal scanner with an unmoved body of water.

    The readout is along the first axis of the voxels, the phase is encoded along the second.

    Parameters
    ----------
    receive : {'none', 'smooth', 'lobed', 'poles'}
        Phase that the combination of an array of loops leaves: of one side of the array (up to
        second order in space, roughly), of all loops weighted by their magnitude and aligned
        imperfectly at the centre, or of the same not aligned at all, which cancels somewhere.
    eddy_currents : float
        Size of a constant and a gradient of phase of each echo: their root mean square over the
        echoes, rad; of a gradient, at one radius of the object.
    bipolar : float
        Phase of the even echoes relative to the odd ones in readouts of alternating polarity:
        this constant, and a gradient along the readout of this size at one radius, rad.
        0 for readouts of one polarity.
    first_echo : float
        Phase error of the first echo alone at the centre, rad; it falls to a half at one radius.
    ghost : float
        Peak deviation of the frequency as the body breathes, ppm. It goes into the phase of the
        phase-encoding lines in proportion to the echo time.
    partial_fourier : float
        Share of the phase-encoding lines that are measured, above 0.5 and up to 1.
    crop : bool
        Whether voxels are made by truncation in k-space, whatever the sampling of the phantom.
    coils : {1, 8, 32}
        Receive channels. Beyond one, the magnitude is their root sum of squares.
    background : {'noise', 'zero', 'damped', 'normalised'}
        What the scanner does where nothing gives signal: nothing; set it to zero; scale it down;
        or divide the whole magnitude by the sensitivity that a prescan found.
    fat : float
        Chemical shift of a layer of fat relative to water, ppm; 0 for no fat.
    white_matter_shift : float
        Frequency shift of white matter (tubes: of the tube of least susceptibility) that is no
        field of dipoles, ppm.
    flow : float
        Speed of the blood in the widest vein (tubes: of water in a flow tube), mm/s.
    relaxivity : float
        Greatest relative deviation of R2' from its relaxivity; it varies smoothly in space.
    integers : bool
        Whether the magnitude is stored as small integers and the phase as codes of 0 to 4095.
    two_bodies : bool
        Whether a bottle stands beside the object, in the air.

    Raises
    ------
    ValueError
        A value is out of range.
    """

    receive: str = 'none'
    eddy_currents: float = 0.0
    bipolar: float = 0.0
    first_echo: float = 0.0
    ghost: float = 0.0
    partial_fourier: float = 1.0
    crop: bool = False
    coils: int = 1
    background: str = 'noise'
    fat: float = 0.0
    white_matter_shift: float = 0.0
    flow: float = 0.0
    relaxivity: float = 0.0
    integers: bool = False
    two_bodies: bool = False

    def __post_init__(self):
        """Refuse what cannot be simulated."""
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f'{name} must be one of {choices}, not {getattr(self, name)!r}')
        for name in ('bipolar', 'first_echo', 'fat', 'white_matter_shift', 'flow'):
            _check_range(name, getattr(self, name), -inf, inf)
        for name in ('eddy_currents', 'ghost'):
            _check_range(name, getattr(self, name), 0, inf)
        _check_range('relaxivity', self.relaxivity, 0, 1)
        if not 0.5 < self.partial_fourier <= 1:
            raise ValueError(
                f'partial_fourier must be more than 0.5 and at most 1, not {self.partial_fourier}'
            )

    @property
    def ideal(self):
        """Whether nothing is switched on."""
        return self == Scanner()

    def switched_on(self):
        """The names in `SWITCHES` of what is on, in the order of that table."""
        default = Scanner()
        return [
            name
            for name, (field, value, _) in SWITCHES.items()
            if getattr(self, field) != getattr(default, field)
            and (field not in CHOICES or getattr(self, field) == value)
        ]

    def sampling(self, otherwise):
        """How fine signal becomes voxels: 'kspace' if cropped, else that of the phantom."""
        return 'kspace' if self.crop else otherwise


def _check_range(name, value, least, most):
    if not (isfinite(value) and least <= value <= most):
        limits = '' if least == -inf else f' of at least {least:g}'
        limits = limits if most == inf else f' from {least:g} to {most:g}'
        raise ValueError(f'{name} must be a finite number{limits}, not {value}')


class Switch(NamedTuple):
    """One name of ``--scanner``: the field of `Scanner` that it sets, to what, and its help."""

    field: str
    value: float | bool | str
    help: str


SWITCHES = {
    'receive-smooth': Switch(
        'receive', 'smooth', 'receive phase of one side of an array, smooth over the object'
    ),
    'receive-lobed': Switch(
        'receive', 'lobed', 'receive phase of all coils, in lobes that no quartic describes'
    ),
    'receive-poles': Switch(
        'receive', 'poles', 'receive phase of coils that cancel inside the object, with poles'
    ),
    'eddy-currents': Switch(
        'eddy_currents', 0.15, 'a constant and a gradient of phase per echo, of 0.15 rad'
    ),
    'bipolar': Switch('bipolar', 0.3, 'alternating readouts: 0.3 rad between odd and even echoes'),
    'first-echo': Switch('first_echo', 0.2, 'a smooth phase error of 0.2 rad of the first echo'),
    'ghost': Switch('ghost', 0.006, 'ghosts of breathing, 0.006 ppm, stronger in later echoes'),
    'partial-fourier': Switch(
        'partial_fourier', 0.75, '6/8 of the phase-encoding lines, zero-filled'
    ),
    'crop': Switch('crop', True, 'voxels by truncation in k-space, as --sampling kspace'),
    'coils-8': Switch('coils', 8, 'noise of 8 coils, sum of squares'),
    'coils-32': Switch('coils', 32, 'noise of 32 coils, sum of squares'),
    'background-zero': Switch('background', 'zero', 'background set to zero'),
    'background-damped': Switch('background', 'damped', 'background scaled down'),
    'background-normalised': Switch(
        'background',
        'normalised',
        'magnitude divided by the sensitivity, noise of centre and background amplified',
    ),
    'fat': Switch(
        'fat', -3.4, 'fat under the skin or oil under the lid, -3.4 ppm, displaced along readout'
    ),
    'white-matter-shift': Switch(
        'white_matter_shift',
        -0.02,
        'a frequency of white matter (or one tube) of -0.02 ppm that is no dipole field',
    ),
    'flow': Switch('flow', 150.0, 'flow of 150 mm/s in large veins or in a tube'),
    'relaxivity': Switch('relaxivity', 0.4, "R2' of a ppm varies by 40 % in space"),
    'integers': Switch('integers', True, 'magnitude as small integers, phase as 0 to 4095'),
    'two-bodies': Switch('two_bodies', True, 'a bottle beside the object, in air'),
}
"""What can be switched on. Two names that set the same field exclude each other."""

ALL = tuple(
    name
    for name in SWITCHES
    if name
    not in {'receive-smooth', 'receive-lobed', 'coils-32', 'background-zero', 'background-damped'}
)
"""What ``all`` stands for: everything, and one of each kind that exclude each other."""


def scanner(*names, **changes):
    """Return a scanner with these switches on.

    Parameters
    ----------
    *names : str
        Names in `SWITCHES`, or 'all'. A name given beside 'all' takes precedence over what 'all'
        would choose of its kind.
    **changes
        Fields of `Scanner` that differ from what the switches set.

    Raises
    ------
    ValueError
        A name is unknown, or two exclude each other.

    Examples
    --------
    >>> scanner('ghost', bipolar=0.8).switched_on()
    ['bipolar', 'ghost']
    >>> scanner('all', 'receive-smooth').receive
    'smooth'
    """
    unknown = [name for name in names if name not in SWITCHES and name != 'all']
    if unknown:
        raise ValueError(f'{unknown[0]!r} is not one of {", ".join(SWITCHES)}, all')
    chosen = {}
    for name in names:
        if name == 'all':
            continue
        field = SWITCHES[name].field
        if chosen.setdefault(field, name) != name:
            raise ValueError(f'scanner: {chosen[field]} and {name} exclude each other: choose one')
    if 'all' in names:
        chosen = {SWITCHES[name].field: name for name in ALL} | chosen
    values = {field: SWITCHES[name].value for field, name in chosen.items()}
    return replace(Scanner(), **{**values, **changes})


FIELDS = tuple(field.name for field in fields(Scanner))
"""Names of the fields of `Scanner`."""
