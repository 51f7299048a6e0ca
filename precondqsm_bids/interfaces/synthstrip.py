"""SynthStrip: brain mask by a network, through the public package nipreps-synthstrip."""

import subprocess
import sys
from pathlib import Path

from nipype.interfaces.base import File, SimpleInterface, TraitedSpec

from precondqsm_bids.interfaces.hashed import InputSpec

MODULE = 'nipreps.synthstrip'


class SynthStripInputSpec(InputSpec):
    magnitude = File(exists=True, mandatory=True, desc='magnitude of the first echo, any unit')
    model = File(exists=True, mandatory=True, desc='weights of the network (synthstrip.1.pt)')


class SynthStripOutputSpec(TraitedSpec):
    mask = File(exists=True, desc='brain, on the grid of the magnitude')


class SynthStrip(SimpleInterface):
    """Brain mask of a head by SynthStrip (Hoopes et al., NeuroImage 2022;260:119474).

    In a process of its own, so that the memory of the network is free afterwards.
    """

    input_spec = SynthStripInputSpec
    output_spec = SynthStripOutputSpec

    def _run_interface(self, runtime):
        mask = Path(runtime.cwd) / 'synthstrip_desc-brain_mask.nii.gz'
        command = [sys.executable, '-m', MODULE, '-i', self.inputs.magnitude]
        command += ['-m', str(mask), '--model', self.inputs.model]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode or not mask.exists():
            said = (done.stderr or done.stdout).strip().splitlines()[-3:]
            raise RuntimeError(
                f'SynthStrip failed on {self.inputs.magnitude} with the weights '
                f'{self.inputs.model}: {" / ".join(said)}; have the brain found in the '
                'magnitude instead, without weights, or give a mask'
            )
        self._results['mask'] = str(mask)
        return runtime
