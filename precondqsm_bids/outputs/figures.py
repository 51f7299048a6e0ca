"""The figures of the report: what there is, in which order, and what is said of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from PIL import Image

from precondqsm_bids.outputs.files import whole

SECTIONS = {'map': 'The map', 'estimate': 'Prior and inversion', 'data': 'The data'}
"""Parts of a run's section in the report, in their order."""


class FigureText(NamedTuple):
    """A figure of the report: its file, its heading and what to look for in it."""

    section: str
    """One of ``SECTIONS``."""
    desc: str
    suffix: str
    extension: str
    title: str
    alt: str
    """What it shows, for who cannot see it."""
    caption: str
    optional: bool = False
    """Whether there are runs that do not have it."""
    stacked: bool = False
    """Whether it is shown in one place with the other figures that are: one at a time."""

    @property
    def name(self) -> str:
        """End of the file's name, after the entities of the run."""
        return f'desc-{self.desc}_{self.suffix}.{self.extension}'


_SLICES = (
    'Planes: axial, coronal and sagittal, through the centre of the label that differs most from '
    'its surroundings, or, without labels, those with the largest sum of absolute susceptibility '
    '(relative to the median) in the middle half of the region. Short lines at the border mark '
    'where the other planes cut. The left of the image is the left of the object.'
)
_STACK = (
    'One place and one window for all maps: what moves or changes its grey when another is chosen '
    'is what the maps differ in. Look for diagonal streaks and bands that one map has and the '
    'other has not. Numbers: slices from the foot, the lowest 0.'
)


def _mosaic(desc: str, title: str) -> FigureText:
    alt = f'Three planes and a mosaic of axial slices, {title} susceptibility'
    return FigureText(
        'map', f'{desc}mosaic', 'Chimap', 'png', title, alt, _STACK, optional=True, stacked=True
    )


FIGURES = (
    FigureText(
        'map', 'comparison', 'Chimap', 'png',
        'Conventional and preconditioned susceptibility',
        'Three planes of the conventional map, the preconditioned map and their difference',
        'The same grey scale for all, also for the map by the choice of the QSM consensus, if it '
        'was computed (black where it is not known); a difference that is small on it has one of '
        'its own beside it. Look for '
        'diagonal streaks from strong objects, ringing at the border of the region, horizontal '
        'bands, and strong objects that are paler in the conventional map: the preconditioned map '
        'should have less of each. ' + _SLICES,
    ),
    _mosaic('conventional', 'conventional'),
    _mosaic('precond', 'preconditioned'),
    _mosaic('prior', 'prior'),
    _mosaic('residual', 'residual'),
    _mosaic('consensus', 'consensus'),
    _mosaic('conventionalrisk', 'conventional, least expected error'),
    FigureText(
        'map', 'trust', 'Chimap', 'png',
        'What to believe of the map',
        'Three planes of the preconditioned map, of its standard deviation and of its support',
        'The preconditioned susceptibility, its standard deviation (noise and misfit of the field '
        'and error of the prior together: two of them should hold the truth in 19 of 20 voxels), '
        'and the part of the value that the field decided rather than the contrast. Where support '
        'is below one half the value is that of the prior: what looks like structure there is '
        'structure of R2* and magnitude.',
    ),
    FigureText(
        'map', 'rois', 'values', 'svg',
        'Values in the labelled regions',
        'Bars: mean susceptibility of each label in each map',
        'Mean susceptibility per label, relative to the label that surrounds the others where '
        'there is one and to the reference of the map otherwise (the prior to its own mean '
        'there), with the standard deviation inside the label. The black marks are the reference '
        'values from the bulk field of long cylinders, independent of every inversion. Labels of '
        'which less than half is in the region of interest, such as air, are left out.',
        optional=True,
    ),
    FigureText(
        'map', 'histogram', 'Chimap', 'svg',
        'Distribution of the values',
        'Histograms of the susceptibility in the region of interest, one line for each map',
        'Share of the region at each susceptibility, on a scale of logarithms. Tissue and agar '
        'make narrow peaks; broad tails on both sides of a peak are streaks and noise. A prior or '
        'residual is drawn about its own mean.',
    ),
    FigureText(
        'estimate', 'prior', 'Chimap', 'png',
        'Prior and residual',
        'Three planes of the prior and of the residual',
        "The prior is the first estimate: R2' by theory or, fitted, what the field makes of the "
        'contrasts; the numbers below say which. The residual is what the inversion of the '
        'flattened field adds: it should be small (the window is that of the maps, and a second '
        'one is its own), with structure only where the prior is wrong. A negative residual in an '
        'object says that the prior was too high there; the shape of the whole prior in it says '
        'that the prior explains too little or too much everywhere.',
    ),
    FigureText(
        'estimate', 'explained', 'fieldmap', 'svg',
        'What prior and map explain of the field',
        'Bars: share of the local field that the prior explains, and the same prior turned; '
        'lines: what both maps explain at each wavelength',
        'Left: the share of the energy of the local field that the prior explains, beside the '
        'same prior mirrored, turned or shifted, which knows nothing: what that explains is '
        'chance. A prior below the dotted line was dropped, one above the dashed line counts in '
        'full; there are no bars where every turn is like it. Right: what either map explains of '
        'the measured local field, from long to short '
        'wavelengths, both at one weight of the regularisation. Where the preconditioned line '
        'lies well below the other, the residual was silenced there.',
        optional=True,
    ),
    FigureText(
        'estimate', 'lcurve', 'Chimap', 'svg',
        'Choice of the regularisation weight',
        'L-curves of both maps with the weight in use, and their curvature',
        'Left: size of the regularisation term against the data term for every weight λ; the ring '
        'is the weight that was used, the cross the corner. Right: curvature of that curve '
        'against the logarithm of the weight, dashed the weight that was used; the corner is '
        'where the curve bends downwards most, because signal is lost from there on. A flat '
        'curvature, or a bend at the end of the range, means that the corner is not to be '
        'trusted. With a good prior the preconditioned corner lies at a lower weight.',
    ),
    FigureText(
        'data', 'masks', 'mask', 'png',
        'Masks',
        'Three planes and a mosaic of the magnitude with the outlines of both masks',
        'Outline of the shape (object against air, orange) and of the region of interest (blue) '
        'on the magnitude. Both must follow the object: look for air inside the outline, for '
        'holes, and for tissue that is left out. A leak into air or a missing part spoils the '
        'calculated background field.',
    ),
    FigureText(
        'data', 'echoes', 'MEGRE', 'png',
        'First and last echo',
        'Three planes of the magnitude and phase of the first and of the last echo, as stored',
        'As they are stored; the magnitudes in one window, the phase in rad, −π to π. Look for '
        'ghosts and motion in the magnitude, for black holes that grow with the echo time (fast '
        'decay beside air and metal), and in the phase for open ends of fringes inside the object '
        '(errors of the coil combination) and seams between slices or coils.',
        optional=True,
    ),
    FigureText(
        'data', 'fields', 'fieldmap', 'png',
        'Fields',
        'Three planes of the total, flattened and local field',
        'The total field as measured, the flattened field (minus the field calculated from the '
        'prior and from the shape), and the local field that is inverted, in Hz and on one '
        'scale; where the local field is small on it, on its own too. Abrupt steps in the total '
        'field are unwrapping errors. Flattening should remove the dipole patterns around '
        'objects; what it leaves must be smooth, a shim for example, and should be gone in the '
        'local field.',
    ),
    FigureText(
        'data', 'quality', 'fieldmap', 'png',
        'Quality of the field',
        'Three planes of the standard deviation of the field, of the misfit and of the number of '
        'usable echoes',
        'Standard deviation of the field (the scale ends at five times its median, or at 0.01 '
        'ppm); the misfit, which is 1 where one field and one R2* describe the echoes and the '
        'noise is that of the median voxel, and above 1.7 where they do not (up to 3); and '
        'the number of echoes above the noise. Bright misfit belongs to the walls of strong '
        'sources; over whole regions it is flow, fat, ghosts, or phase that is not that of one '
        'field. The misfit of a single echo is not known.',
    ),
    FigureText(
        'data', 'echofit', 'R2starmap', 'png',
        'Magnitude and R2*',
        'Three planes of the magnitude of all echoes and of R2*',
        'Root of the sum of squares over the echoes, and R2*, which a single echo does not tell; '
        'windows by the region. Where R2* is high and the magnitude '
        'has faded before the second echo, neither field nor prior is reliable. The dephasing by '
        'the field gradient across the voxel is taken out of R2*; beside air some may be left.',
    ),
    FigureText(
        'data', 'echophase', 'MEGRE', 'svg',
        'Phase of each echo',
        'Size of the phase that was taken off each echo',
        'What was found in each echo that is not linear in the echo time, and taken off: a '
        'constant and a gradient over the region, by eddy currents and alternating readouts. '
        'Bars: its root mean square over the region; above the dashed line it is a warning. '
        'Points: the constant. Bars that change from echo to echo belong to a bipolar readout, a '
        'single high one to the first echo or to motion. None at all: every echo agrees with the '
        'others.',
        optional=True,
    ),
    FigureText(
        'data', 'echoslices', 'MEGRE', 'png',
        'Phase of each echo in a slice, as found and as left',
        'Axial slices of the phase of each echo that field and offset do not explain, before and '
        'after what was found in it is taken off',
        'The phase of each echo without field and phase offset, in the axial plane of the figures '
        'above (of many echoes eight), in rad and in one window: as found, and without constant '
        'and gradient of each echo. What is left should be grain, which grows with the echo time '
        'where the signal fades. Patterns of many voxels are what no single field explains: '
        'motion, flow, fat, walls of strong sources. Ghosts are stripes or copies of the outline; '
        'they are shown as stored, also where the fit was without them.',
        optional=True,
    ),
)  # fmt: skip

_WITHOUT_MAP: dict[str, dict[str, Any]] = {
    'prior': {
        'title': 'Prior',
        'alt': 'Three planes of the prior',
        'caption': "The prior is the first estimate: R2' by theory or, fitted, what the field "
        'makes of the contrasts; the numbers below say which. ' + _SLICES,
    },
    'explained': {
        'title': 'What the prior explains of the field',
        'alt': 'Share of the local field that the prior explains, and the same prior turned',
        'caption': 'The share of the energy of the local field that the prior explains, beside '
        'the same prior mirrored, turned or shifted, which knows nothing: what that explains is '
        'chance. A prior below the dotted line was dropped, one above the dashed line counts in '
        'full.',
    },
    'fields': {
        'alt': 'Three planes of the total and of the flattened field',
        'caption': 'The total field as measured, and the flattened field (minus the field '
        'calculated from the prior and from the shape), in Hz and on one scale. Abrupt steps in '
        'the total field are unwrapping errors. Flattening should remove the dipole patterns '
        'around objects; what it leaves must be smooth, a shim for example.',
    },
}
BEFORE_MAP = tuple(
    figure._replace(**_WITHOUT_MAP.get(figure.desc, {}))
    for figure in FIGURES
    if figure.section != 'map' and figure.desc != 'lcurve'
)
"""Those of a run that was stopped after the flattening."""


def save(figure: Figure | Image.Image, path: Path) -> None:
    """Write a figure whole or not at all, with the same bytes on every run."""
    kind = path.suffix[1:]
    with whole(path) as temporary:
        if isinstance(figure, Figure):
            metadata: dict[str, Any] = {'Date': None} if kind == 'svg' else {}
            figure.savefig(temporary, format=kind, dpi=110, metadata=metadata)
        else:
            figure.save(temporary, format=kind)
