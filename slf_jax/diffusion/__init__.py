"""Diffusion in sigma space, independent of faces and voices.

Data are standardised (unit standard deviation), so sigma is the noise in units of the data's standard deviation and
log-SNR = -2 ln sigma.
"""
