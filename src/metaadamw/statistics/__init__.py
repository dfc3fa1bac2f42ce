"""Sec. 3.3: tensors of a group, their inner products, and the features [G, F] made of them.

May import ``update/`` (for directions) and the rooms below it.
"""
