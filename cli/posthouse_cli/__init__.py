"""The command line: the one package that may import all others."""

from posthouse.without import without

with without("typing_extensions"):  # for names that typing has: 60 ms of each command's start
    import msgspec  # noqa: F401
