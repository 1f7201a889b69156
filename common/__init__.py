"""What every task shares: configs, data order, the step, the loop, checkpoints. Knows nothing of
text or images."""
