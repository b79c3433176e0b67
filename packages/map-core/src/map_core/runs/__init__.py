"""What a run directory is: checkpoints, metrics, curves, progress, the summary."""
