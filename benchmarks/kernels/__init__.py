"""How fast the operations are, against other implementations and against the floor."""
