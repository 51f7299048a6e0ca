"""Preconditioned quantitative susceptibility mapping: numerics, Nipype nodes and a BIDS App."""

__version__ = '0.1.0'
