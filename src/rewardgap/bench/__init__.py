"""Measurements of this program on this machine: ratios within one run, and what a fit costs."""
