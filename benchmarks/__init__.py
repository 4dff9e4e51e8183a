"""Figures that anyone can run again: accuracy, speed, memory. Outermost layer; may import everything."""
