"""Training of the embedded encoder `sem_tiny` on generated frames: `python -m export.pretrain`."""
