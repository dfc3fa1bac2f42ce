"""Tasks, arms, training runs and the command line: the extra ``metaadamw[bench]``.

Nothing is imported here, so that the command line can say which packages are missing
instead of failing with an ``ImportError``.
"""
