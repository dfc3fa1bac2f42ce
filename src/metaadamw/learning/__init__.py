"""Sec. 3.5: what moves the modulator, one file for each way.

``lookahead/`` is the paper's (Algorithm 2); ``hypergradient``, ``windows`` and ``two_horizons``
learn inside ``step()`` from the training gradients alone. May import every room below.
"""
