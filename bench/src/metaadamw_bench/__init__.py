"""Tasks, arms, training runs and the command line of ``metaadamw``.

Nothing is imported here, so that the command line can say which packages are missing
instead of failing with an ``ImportError``.
"""

__version__ = "0.2.0"
