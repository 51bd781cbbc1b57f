"""One module for each group of verbs; posthouse_cli.main loads them by name when they are used."""
