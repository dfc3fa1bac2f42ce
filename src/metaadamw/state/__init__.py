"""What is kept between steps: moments, checkpoints, master weights, random streams.

May import ``grouping/`` and ``parallel/``.
"""
