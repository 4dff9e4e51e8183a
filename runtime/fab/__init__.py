"""Files of the fab: metadata of SEM frames, text bars, and KLARF lots."""
