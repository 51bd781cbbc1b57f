"""The structures in shared memory that libraries request, all of them together (K1).

Owns: what fits with what the libraries before have requested. Must not know: processes, hosts.
Invariant: a library has all that it requests or none of it, and then the reason names it.
"""

from posthouse import limits
from posthouse.messages import StructRequest
from posthouse_master.preload import Library

__all__ = ["Structs"]


class Structs:
    """What has been requested, by crash domain and name."""

    def __init__(self) -> None:
        self.requested: dict[tuple[str, str], StructRequest] = {}

    def take(self, library: Library) -> str:
        """Take in what one library requests; else why none of it, and so the library, can be."""
        found = dict(self.requested)
        for struct in library.structs:
            key = (struct.crash_domain, struct.name)
            if key in found:
                return (
                    f"library {library.name}: structure {struct.name!r} of crash domain "
                    f"{struct.crash_domain!r} ({struct.size} bytes) is requested by library "
                    f"{found[key].library} already ({found[key].size} bytes)"
                )
            found[key] = struct
            sizes = [s.size for s in found.values() if s.crash_domain == struct.crash_domain]
            for what, value, most in (
                ("structures", len(sizes), limits.domain_structs_max),
                ("bytes", sum(sizes), limits.domain_bytes_max),
            ):
                if value > most:
                    return (
                        f"library {library.name}: with structure {struct.name!r} ({struct.size} "
                        f"bytes) crash domain {struct.crash_domain!r} has {value} {what} "
                        f"requested: at most {most} are possible"
                    )
        self.requested = found
        return ""
