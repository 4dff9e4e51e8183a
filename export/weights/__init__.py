"""The embedded encoder: its weights, model card and training log."""
