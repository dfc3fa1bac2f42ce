"""Tensors and meta-updates that are spread over processes: shards, ranks, sums over all.

Imports torch alone.
"""
