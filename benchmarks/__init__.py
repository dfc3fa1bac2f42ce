"""What a step, a meta-update and an epoch cost; ``python -m benchmarks.report`` measures it all."""
