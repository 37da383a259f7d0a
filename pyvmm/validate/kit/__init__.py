"""What cases share: the toolbox, guests, memory, checks."""
