"""The models of the paper's five tasks, each with its published sizes as defaults."""
