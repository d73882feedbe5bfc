"""What every representation is made of: groups, streams of codes, checks, names, random draws."""
