"""The network: open_clip towers, the dual path, and what stands on it. The exported graph is made of these."""
