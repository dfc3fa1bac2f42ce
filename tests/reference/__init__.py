"""A second, independent reading of the paper, written to be read and to be tested against.

Everything here is slow and obvious: one tensor at a time, out of place, in the paper's symbols,
with derivatives taken by autograd alone. Nothing here imports the library.
"""
