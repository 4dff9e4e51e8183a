"""How the embedded encoder `sem_tiny` was trained on generated frames: `python -m export.pretrain`."""
