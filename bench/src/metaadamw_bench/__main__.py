"""``python -m metaadamw_bench``: the command ``metaadamw``."""

from metaadamw_bench.cli import main

if __name__ == "__main__":
    main()
