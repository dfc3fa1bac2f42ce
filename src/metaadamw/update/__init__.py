"""Eqs. 1–4: the step, tensor by tensor (the truth), by foreach, fused, and in one pass in C.

May import ``kernels/``, ``state/`` and the rooms below it.
"""
