"""The command line: the one package that may import all others."""
