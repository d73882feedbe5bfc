"""The commands of the command line, one module each; they may print, the library does not."""
