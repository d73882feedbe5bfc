"""Files: how models with codes and values are read and written, one package for each format."""
