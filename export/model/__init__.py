"""The network: open_clip towers, the dual path and the heads; together they are the exported graph."""
