"""Linux's signal numbers by name. Owns: this table. Must not know: the platform it runs on.

Invariant: what travels is a Linux number; a client on macOS or Windows has other ones, or none.
"""

import signal
from typing import Final

from posthouse.errors import InvalidField

__all__ = ["SIGNALS", "signal_name", "signal_number"]

SIGNALS: Final = {
    "HUP": 1, "INT": 2, "QUIT": 3, "ILL": 4, "TRAP": 5, "ABRT": 6, "BUS": 7, "FPE": 8, "KILL": 9,
    "USR1": 10, "SEGV": 11, "USR2": 12, "PIPE": 13, "ALRM": 14, "TERM": 15, "STKFLT": 16,
    "CHLD": 17, "CONT": 18, "STOP": 19, "TSTP": 20, "TTIN": 21, "TTOU": 22, "URG": 23, "XCPU": 24,
    "XFSZ": 25, "VTALRM": 26, "PROF": 27, "WINCH": 28, "IO": 29, "PWR": 30, "SYS": 31,
    "RTMIN": 34, "RTMAX": 64,
}  # fmt: skip
_NAMES = {number: name for name, number in SIGNALS.items()}


def signal_number(given: int | str | signal.Signals) -> int:
    """The Linux number of a signal given as a number, a name, or this platform's own constant.

    >>> signal_number("SIGHUP"), signal_number("USR1"), signal_number(34)
    (1, 10, 34)
    """
    if isinstance(given, signal.Signals):
        given = given.name
    number: object = given
    if isinstance(given, str):
        name = given.upper().removeprefix("SIG")
        number = SIGNALS.get(name, int(given) if given.isascii() and given.isdecimal() else 0)
    if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= 64:
        raise InvalidField(
            f"signal is {given!r}: must be a name as TERM, or a number from 1 to 64",
            field="signal",
            value=repr(given),
            rule="must be a name as TERM, or a number from 1 to 64",
        )
    return number


def signal_name(number: int) -> str:
    """
    >>> signal_name(9), signal_name(40)
    ('SIGKILL', 'signal 40')
    """
    return f"SIG{_NAMES[number]}" if number in _NAMES else f"signal {number}"
