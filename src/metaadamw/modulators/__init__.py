"""Sec. 3.4: who says α and β of each group: ``Attention``, ``Factors`` or a recorded ``Schedule``.

Reads features from ``statistics/``; knows nothing of what moves it (``learning/``).
"""
