"""C sources, compiled when first needed, and their loader; whoever calls one checks its tensors.

At the bottom of the house: update, statistics, modulators and learning each have a kernel.
"""
