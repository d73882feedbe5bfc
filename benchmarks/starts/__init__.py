"""How good starts are, against references of the field."""
