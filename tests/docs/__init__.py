"""The documentation is executed, and checked against what it documents."""
