"""Sec. 3.2: a model's parameters as ordinary PyTorch param groups, and the table of them.

May import ``checks`` and ``parallel/``.
"""
