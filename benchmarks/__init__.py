"""Measurements that anyone can repeat: accuracy, speed, memory. The outermost layer; it may import everything."""
