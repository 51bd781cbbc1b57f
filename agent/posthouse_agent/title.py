"""The name of a process in listings.

Owns: how it is set. Must not know: whose name. Invariant: works without any third party, where it
is only the fifteen bytes that the kernel keeps.
"""

from posthouse_agent import native

try:
    import setproctitle
except ImportError:  # not in an application's own environment
    setproctitle = None  # type: ignore[assignment]

__all__ = ["set_title"]


def set_title(title: str) -> None:
    """The name in process listings."""
    if setproctitle is not None:
        setproctitle.setproctitle(title)
    else:
        native.set_short_name(title)
