"""What the tests of the app in containers share: the image, and what it must compute."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nb
import numpy as np

from precondqsm_bids import __version__

NAME = os.environ.get('PRECONDQSM_IMAGE', 'precondqsm_bids')
IMAGE = NAME if ':' in NAME else f'{NAME}:{__version__}'

# On this small phantom the field of the shape does not decide the sign of the phase.
OPTIONS = ('--nprocs', '2', '--omp-nthreads', '1', '--phase-sign', '+1')

# Which kernels BLAS takes decides the last bits; a container should take those of the host.
BLAS_VARIABLES = [
    name
    for name in ('OPENBLAS_CORETYPE', 'OPENBLAS_L2_SIZE', 'NPY_DISABLE_CPU_FEATURES')
    if name in os.environ
]

LIST_PACKAGES = (
    'import json; from importlib.metadata import distributions; '
    "print(json.dumps({d.metadata['Name']: d.version for d in distributions()}))"
)
HASH_SOURCE = (
    'import json, precondqsm_bids; from hashlib import sha256; from pathlib import Path; '
    'top = Path(precondqsm_bids.__file__).parent; '
    'print(json.dumps({str(p.relative_to(top)): sha256(p.read_bytes()).hexdigest() '
    "for p in top.rglob('*') if p.is_file() and p.suffix != '.pyc'}))"
)


def docker(*arguments):
    """Run a docker command; its completed process with the output as text."""
    return subprocess.run(
        ['docker', *map(str, arguments)], capture_output=True, text=True, stdin=subprocess.DEVNULL
    )


def python_inside(*options, code):
    """What a line of Python prints inside the image."""
    done = docker('run', '--rm', *options, '--entrypoint', 'python', IMAGE, '-c', code)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def bind(source, target, *options):
    """The option that mounts a folder; unlike -v it does not make one that is missing."""
    return '--mount', ','.join(['type=bind', f'source={source}', f'target={target}', *options])


def python_outside(code):
    """What the same line prints here."""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def problem_with_image():
    """Why there is no image of this source to test, if that is so."""
    if shutil.which('docker') is None:
        return 'there is no docker command'
    if (engine := docker('version')).returncode:
        return f'no Docker Engine answers: {engine.stderr.strip()}'
    if docker('image', 'inspect', IMAGE).returncode:
        return f'there is no image {IMAGE}: make image'
    if changed := changed_source():
        return f'{IMAGE} is of another source ({", ".join(changed)}): make image'
    return ''


def changed_source():
    """Files of the package that differ between the image and here."""
    here, there = (
        json.loads(python_outside(HASH_SOURCE)),
        json.loads(python_inside(code=HASH_SOURCE)),
    )
    return sorted(name for name in here.keys() | there if here.get(name) != there.get(name))


def assert_same_results(out_dir, outside):
    """The same files as outside; maps of the same bits, tables of the same text."""
    patterns = ('sub-*/*/*.nii.gz', 'sub-*/*/*.tsv', 'sub-*.html')
    files = {
        folder: sorted(p.relative_to(folder) for pattern in patterns for p in folder.glob(pattern))
        for folder in (outside, out_dir)
    }
    assert files[outside] == files[out_dir]
    assert Path('sub-01/anat/sub-01_desc-precond_Chimap.nii.gz') in files[outside]
    other = differing_packages()
    for name in files[outside]:
        if name.name.endswith('.nii.gz'):
            expected, inside = nb.load(outside / name), nb.load(out_dir / name)
            np.testing.assert_array_equal(inside.affine, expected.affine, err_msg=str(name))
            np.testing.assert_array_equal(
                inside.get_fdata(), expected.get_fdata(), err_msg=f'{name}\n{other}'
            )
        elif name.suffix == '.tsv':
            assert (out_dir / name).read_text() == (outside / name).read_text(), other


def differing_packages():
    """Packages whose versions differ between here and the image: a cause of other bits."""
    here = json.loads(python_outside(LIST_PACKAGES))
    there = json.loads(python_inside(code=LIST_PACKAGES))
    differing = [
        f'{name} {here[name]} outside, {there[name]} in the image'
        for name in sorted(here.keys() & there.keys())
        if here[name] != there[name]
    ]
    return 'other versions: ' + ('; '.join(differing) or 'none')
