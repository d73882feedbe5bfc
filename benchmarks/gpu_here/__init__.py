"""Everything that only a GPU can show, in one command for a machine without a package index."""
