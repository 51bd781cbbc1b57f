"""docs/reference: generated from the code, complete, and right about every number it tells."""

import re
import subprocess
import sys
from pathlib import Path

from posthouse import limits

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "docs" / "reference"


def page(name: str) -> str:
    return (REFERENCE / name).read_text()


def test_the_reference_is_what_the_code_says() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "generate.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def documented(section: str) -> set[str]:
    text = page("errors.md").partition(f"## Codes of {section}\n")[2].partition("\n## ")[0]
    return set(re.findall(r'^\| "(\w+)" \|', text, re.MULTILINE))


def test_every_code_of_refused_is_documented() -> None:
    source = "".join(
        (ROOT / "master" / "posthouse_master" / f"{module}.py").read_text()
        for module in ("core", "sessions", "hosts")
    )
    used = set(re.findall(r'Refused\(\s*code="(\w+)"', source))
    used |= set(re.findall(r'_no\(\s*hello,\s*"(\w+)"', source))
    used |= set(re.findall(r'_end\(turn, \w+, "(\w+)"', source))
    assert len(used) > 5
    assert used == documented("REFUSED")


def test_every_code_of_start_failed_is_documented() -> None:
    source = "".join(file.read_text() for file in (ROOT / "agent" / "posthouse_agent").glob("*.py"))
    used = set(re.findall(r'Refusal\(\s*"(\w+)"', source))
    used |= set(re.findall(r'code="(\w+)"', source))
    orders = (ROOT / "agent" / "posthouse_agent" / "orders.py").read_text()
    told = re.search(r"code: str  # (.*)", orders)
    assert told is not None
    used |= set(re.findall(r'"(\w+)"', told[1]))
    assert used <= documented("START_FAILED")


# Numbers that stand in the prose, and what they have to be.
NUMBERS = {
    "A frame is at most 262144 bytes": limits.client_frame_bytes_max == 262144,
    "arrays have at most 4096\n  items and maps at most 256 keys": (
        (limits.array_items_max, limits.map_items_max) == (4096, 256)
    ),
    "nothing is nested deeper than 16": limits.frame_depth_max == 16,
    "session | 16 bytes": limits.session_bytes == 16,
    "`request` id of 16 random bytes": limits.request_id_bytes == 16,
    "After 2.4 seconds without an answer": limits.silence_s == 2.4,
    "or 2.4 seconds without WELCOME": limits.silence_s == 2.4,
    "no frame of it for 2.4 seconds": limits.silence_s == 2.4,
    "has been silent for\n2.4 seconds": limits.silence_s == 2.4,
    "0.1 s doubled with each HELLO": limits.dial_backoff_s_min == 0.1,
    "at most\n2 s, times a random factor": limits.dial_backoff_s_max == 2.0,
    "(Remember the last 64.)": limits.renewals_remembered == 64,
    "nothing was acknowledged for 1 second": limits.resend_s == 1.0,
    "within 50 milliseconds, send ACK": limits.ack_delay_s == 0.05,
    "Keep at most 1024 messages and 8 MiB": (
        (limits.outbox_messages_max, limits.outbox_bytes_max) == (1024, 8 * 1024 * 1024)
    ),
    "for a day (or until 100,000 newer ones)": (
        (limits.requests_kept_s, limits.requests_kept_max) == (86_400, 100_000)
    ),
    "Have at most 1024 requests unanswered": limits.requests_in_flight_max == 1024,
    "a page of at most 256 entries and 65536 bytes": (
        (limits.page_items_max, limits.page_bytes_max) == (256, 65536)
    ),
    "A page has at most 256 entries and 65536 bytes": True,
    "adds to it, up to 4096": limits.credit_max == 4096,
    "a session has at most 1024": limits.subscriptions_per_session_max == 1024,
    "(256 are\nkept for each registration)": limits.events_per_registration_max == 256,
    "stays unanswered for 60 seconds": limits.start_attempt_s == 60.0,
}


def test_numbers_in_the_prose_of_other_pages() -> None:
    assert "Names beyond the first 5,000" in page("metrics.md")
    assert limits.metrics_workers_max == 5_000
    truth = (ROOT / "docs" / "explanation" / "truth.md").read_text()
    assert "256 rows for each registration" in truth
    assert "keeps it with its answer for a day" in truth
    assert "hears each agent every half second" in truth
    assert (limits.events_per_registration_max, limits.requests_kept_s) == (256, 86_400)
    assert limits.renew_s == 0.5


def test_numbers_in_the_prose() -> None:
    text = page("protocol.md")
    for phrase, holds in NUMBERS.items():
        assert phrase in text, f"reworded? {phrase!r}"
        assert holds, phrase
