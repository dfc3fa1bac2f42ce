"""``python -m metaadamw.bench``: the command ``metaadamw``."""

from metaadamw.bench.cli import main

if __name__ == "__main__":
    main()
