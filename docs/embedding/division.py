#!/usr/bin/env python
"""Truncated k-space division: ``division.py FIELD MASK OUT [TESLA]``.

An inversion that knows nothing of precondqsm_bids: total field (ppm; Hz if the field strength is
given) and mask in, susceptibility (ppm) out. B0 is along the last axis of the images. The
background is removed by SHARP (Schweser et al., NeuroImage 2011;54:2789), the rest divided by the
dipole kernel, at least 0.2 (Shmueli et al., Magn Reson Med 2009;62:1510).
"""

import sys

import nibabel as nib
import numpy as np

RADIUS, LEAST, THRESHOLD = 6.0, 0.05, 0.2  # mm, and of the two kernels

image, mask = nib.load(sys.argv[1]), nib.load(sys.argv[2]).get_fdata() > 0
field, size = np.where(mask, image.get_fdata(), 0), image.header.get_zooms()[:3]
if len(sys.argv) > 4:
    field = field / (42.576 * float(sys.argv[4]))

axes = (np.fft.fftfreq(n, 1 / n) * d for n, d in zip(field.shape, size, strict=True))
sphere = sum(x**2 for x in np.meshgrid(*axes, indexing='ij')) <= RADIUS**2
high = 1 - np.fft.fftn(sphere / sphere.sum())  # takes the mean over a sphere off
inner = np.fft.ifftn(np.fft.fftn(mask) * (1 - high)).real > 0.999
rest = inner * np.fft.ifftn(np.fft.fftn(field) * high).real
local = np.fft.fftn(rest) * np.divide(1, high, out=0 * high, where=abs(high) > LEAST)
local = inner * np.fft.ifftn(local).real

k = np.meshgrid(*map(np.fft.fftfreq, field.shape, size), indexing='ij')
square = sum(x**2 for x in k)
kernel = 1 / 3 - k[2] ** 2 / np.where(square, square, 1)
kernel = np.where(abs(kernel) < THRESHOLD, np.copysign(THRESHOLD, kernel), kernel)
chi = inner * np.fft.ifftn(np.fft.fftn(local) / kernel).real
nib.save(nib.Nifti1Image(chi.astype(np.float32), image.affine), sys.argv[3])
