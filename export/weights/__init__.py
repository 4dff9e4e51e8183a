"""The embedded encoder: its weights and model card."""
