"""What an optimizer did: record, write, draw, replay, and export to plain AdamW.

May import everything but ``integrations/``.
"""
