"""Training: state, optimizer, compiled step, mesh, checkpoints, metrics."""
