"""Write docs/reference/*.md from the code, or check that they are fresh.

    uv run python docs/generate.py           write them all
    uv run python docs/generate.py --check   exit 1 and say what differs

Owns: the tables. The prose is in reference/protocol.in.md and errors.in.md, where a line
`<!-- table: NAME -->` is replaced by a table; the notes beside fields are in reference/notes.toml.
Invariant: what the code has and the notes lack, or the other way round, is an error; so nothing
can be added to the catalogue without a word about it.
"""

import dataclasses
import difflib
import inspect
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cli_page
import configuration_page
import msgspec
import rules as contract
from msgspec import inspect as types

import posthouse.shmem
from posthouse import config_keys, errors, limits, messages, records, states, transport
from posthouse.messages import KINDS, UNSEQUENCED, Message
from posthouse.spec import BackgroundWorker
from posthouse_master.registry import TRANSITIONS, Step
from posthouse_master.store.base import Life
from posthouse_testing.conformance import CASES

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "docs" / "reference"
GOLDEN = ROOT / "tests" / "wire" / "golden"
NOTES: dict[str, dict[str, str]] = tomllib.loads((REFERENCE / "notes.toml").read_text())

SHARED = (
    messages.WardenRef,
    messages.Running,
    messages.Exit,
    records.ExitFacts,
    records.HandleRef,
    records.Status,
    records.WorkerInfo,
    records.HostInfo,
    records.HostUse,
    records.WorkerUse,
    messages.HostVerdict,
    messages.Missing,
    messages.Declared,
    messages.Change,
    records.Event,
)
ENUMS = (
    states.WorkerState,
    states.StopReason,
    states.Every,
    states.ShutdownMode,
    states.Phase,
    states.StartTime,
)
WIRE_LIMITS = (
    *("agent_frame_bytes_max", "client_frame_bytes_max", "frame_depth_max", "array_items_max"),
    *("map_items_max", "page_bytes_max", "page_items_max", "outbox_messages_max"),
    *("outbox_bytes_max", "resend_s", "ack_delay_s", "renew_s", "silence_s"),
    *("dial_backoff_s_min", "dial_backoff_s_max", "peers_max", "subscriptions_per_session_max"),
    *("credit_max", "requests_in_flight_max", "requests_kept_max", "requests_kept_s"),
    *("start_attempt_s", "hosts_max", "retired_max", "events_per_registration_max"),
    *("events_total_max", "exit_records_max", "log_read_bytes_max"),
)


class Unfit(Exception):
    """Code and notes do not go together."""


def wire_name(cls: type[Any]) -> str:
    """START_FAILED of StartFailed."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).upper()


def row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    return "\n".join((row(*head), row(*("---" for _ in head)), *(row(*cells) for cells in rows)))


def prose(cls: type[Any]) -> str:
    """The docstring as running text."""
    return " ".join((inspect.getdoc(cls) or "").split())


# --- types ---


def number(value: float) -> str:
    return {2**63 - 1: "2^63-1", 2**31 - 1: "2^31-1"}.get(int(value), f"{value:g}")


def kind_of(found: types.Type) -> str:
    """A declared type in words."""
    match found:
        case types.IntType(ge=low, le=high):
            return f"integer {number(low or 0)} to {number(high or 0)}"
        case types.StrType(min_length=low, max_length=high):
            if low == high:
                return f"text of {high}"
            return f"text, {low} to {high}" if low else f"text, at most {high}"
        case types.BytesType(min_length=low, max_length=high):
            return f"{high} bytes" if low == high else f"at most {high} bytes"
        case types.EnumType(cls=states.EventKind):
            return "[EventKind](#following-the-log)"
        case types.EnumType(cls=cls):
            return f"[{cls.__name__}](#enumerations)"
        case types.StructType(cls=cls):
            return f"[{cls.__name__}](#{cls.__name__.lower()})"
        case types.ListType(item_type=item, max_length=high):
            return f"array of at most {high}: {kind_of(item)}"
        case types.FloatType() | types.BoolType() | types.DictType():
            return {types.FloatType: "number", types.BoolType: "boolean"}.get(type(found), "map")
        case types.UnionType(types=union):
            inner = [one for one in union if not isinstance(one, types.NoneType)]
            return " or ".join(kind_of(one) for one in inner) + " or nil"
    raise Unfit(f"no word for {found}")


def default_of(field: types.Field) -> str:
    if field.required:
        return "required"
    value = field.default
    if value is msgspec.UNSET or value is msgspec.NODEFAULT:
        value = field.default_factory()
    return shown(value)


def shown(value: Any) -> str:
    """A default as it would be on the wire."""
    match value:
        case None:
            return "nil"
        case bool():
            return str(value).lower()
        case bytes():
            return "no bytes" if not value else value.hex()
        case str():
            return f'"{value}"'
        case tuple() | list():
            return "[]"
        case dict():
            return "{}"
        case float():
            return f"{value:g}" if value != int(value) else f"{value:.1f}"
    return str(value)


# --- notes ---


class Notes:
    """Hands out notes, and knows at the end which were never asked for."""

    def __init__(self, notes: dict[str, dict[str, str]]) -> None:
        self._notes = notes
        self._used: set[tuple[str, str]] = set()

    def field(self, cls: type[Any], name: str) -> str:
        for section in (cls.__name__, "any"):
            if name in self._notes.get(section, {}):
                return self.of(section, name)
        raise Unfit(f"no note for {cls.__name__}.{name}")

    def of(self, section: str, name: str) -> str:
        if name not in self._notes[section]:
            raise Unfit(f"no note for {name} in [{section}]")
        self._used.add((section, name))
        return self._notes[section][name]

    def all(self, section: str) -> Iterator[tuple[str, str]]:
        for name in self._notes[section]:
            yield name, self.of(section, name)

    def check(self) -> None:
        every = {(section, name) for section, notes in self._notes.items() for name in notes}
        left = every - self._used
        if left:
            raise Unfit(f"notes about nothing: {sorted(left)}")


# --- the tables ---


def fields_table(cls: type[Any], notes: Notes) -> str:
    info = types.type_info(cls)
    assert isinstance(info, types.StructType)
    rows = [
        (
            f"`{field.encode_name}`",
            kind_of(field.type),
            default_of(field),
            notes.field(cls, field.encode_name),
        )
        for field in info.fields
    ]
    return table(("field", "type", "default", ""), rows) if rows else "No fields."


def section(cls: type[Any], title: str, notes: Notes) -> str:
    return f"#### {title}\n\n{prose(cls)}\n\n{fields_table(cls, notes)}\n"


def ways(cls: type[Message]) -> list[str]:
    """Who may send it to whom."""
    return [
        way
        for way, allowed in (
            ("agent to master", messages.AGENT_TO_MASTER),
            ("master to agent", messages.MASTER_TO_AGENT),
            ("client to master", messages.CLIENT_TO_MASTER),
            ("master to client", messages.MASTER_TO_CLIENT),
        )
        if cls in allowed
    ]


def kinds_table(_notes: Notes) -> str:
    rows = [
        (
            str(kind),
            f"[{wire_name(cls)}](#{wire_name(cls).lower()})",
            "no" if cls in UNSEQUENCED else "yes",
            ", ".join(ways(cls)),
        )
        for kind, cls in KINDS.items()
    ]
    return table(("kind", "message", "sequenced", "who to whom"), rows)


def messages_text(notes: Notes) -> str:
    return "\n".join(
        section(cls, wire_name(cls), notes).replace(
            "\n\n", f"\n\nKind {kind}, {', '.join(ways(cls))}. ", 1
        )
        for kind, cls in KINDS.items()
    )


def records_text(notes: Notes) -> str:
    return "\n".join(section(cls, cls.__name__, notes) for cls in SHARED)


def enums_table(_notes: Notes) -> str:
    rows = [(cls.__name__, ", ".join(f'"{one}"' for one in cls)) for cls in ENUMS]
    return table(("type", "values"), rows)


def events_table(notes: Notes) -> str:
    given = dict(notes.all("events"))
    if list(given) != [str(kind) for kind in states.EventKind]:
        raise Unfit("[events] must list every EventKind, in their order")
    return table(("kind", "what has happened"), [(f'"{k}"', text) for k, text in given.items()])


def answers_table(notes: Notes) -> str:
    rows = []
    for cls in KINDS.values():
        if not issubclass(cls, messages.Request):
            continue
        answer = notes.of("answers", cls.__name__)
        if not issubclass(getattr(messages, answer), messages.Reply):
            raise Unfit(f"{answer} is no answer")
        kept = "yes" if cls in messages.MUTATING else "no"
        rows.append((wire_name(cls), wire_name(getattr(messages, answer)), kept))
    return table(("request", "answer", "remembered"), rows)


def spec_table(notes: Notes) -> str:
    values = {name: f"{value:g}" if isinstance(value, float) else str(value)
              for name, value in vars(limits).items()}  # fmt: skip
    rows = []
    for field in dataclasses.fields(BackgroundWorker):
        default: Any = field.default
        if default is dataclasses.MISSING:
            made = field.default_factory
            default = None if made is dataclasses.MISSING else made()
        text = "required" if field.name == "name" else shown(default)
        rule = re.sub(r"\{(\w+)\}", lambda m: values[m[1]], notes.of("spec", field.name))
        rows.append((f"`{field.name}`", spec_type(field.type), text, rule))
    return table(("field", "type", "default", "rule"), rows)


def spec_type(annotation: Any) -> str:
    text = annotation if isinstance(annotation, str) else str(annotation)
    for pattern, word in (
        (r"Mapping\[str, str\]", "map of text to text"),
        (r"Mapping\[str, int\]", "map of text to integer"),
        (r"tuple\[int, float\]", "array of 2"),
        (r"tuple\[str", "array of text"),
        (r"Any", "any value") if "Callable" not in text else ("Callable", "text"),
        (r"StartTime", "StartTime"),
        (r"bool", "boolean"),
        (r"bytes", "bytes"),
        (r"float", "number"),
        (r"int", "integer"),
        (r"str|Main", "text"),
    ):
        if re.search(pattern, text):
            return word + (" or nil" if "None" in text else "")
    raise Unfit(f"no word for {text}")


def options_table(_notes: Notes) -> str:
    found: dict[tuple[str, str], list[str]] = {}
    for role, options in transport.OPTIONS.items():
        for option in options:
            value = option.value
            text = f"random {value[0]} to {value[-1]}" if isinstance(value, range) else str(value)
            found.setdefault((option.name, option.why), ["", "", ""])[
                list(transport.OPTIONS).index(role)
            ] = text
    rows = [(name, *cells, why) for (name, why), cells in found.items()]
    return table(("option", "agents' ROUTER", "clients' ROUTER", "DEALER", "why"), rows)


def limits_table(_notes: Notes) -> str:
    text = Path(limits.__file__).read_text()
    reasons = dict(re.findall(r"^(\w+): Final = .*?# (.*)$", text, re.MULTILINE))
    rows = [(f"`{name}`", f"{getattr(limits, name):,}", reasons[name]) for name in WIRE_LIMITS]
    return table(("limit", "value", "why"), rows)


def codes_table(name: str) -> Callable[[Notes], str]:
    def make(notes: Notes) -> str:
        return table(("code", "meaning"), [(f'"{code}"', t) for code, t in notes.all(name)])

    return make


def errors_table(notes: Notes) -> str:
    rows = []
    local = dict(notes.all("errors"))
    for name in errors.__all__:
        cls = getattr(errors, name)
        if not isinstance(cls, type) or cls is errors.PosthouseError:
            continue
        parent = cls.__bases__[0].__name__
        made_by = local.pop(cls.code, "master")
        rows.append((f'"{cls.code}"', name, parent, made_by, str(cls.exit_status), prose(cls)))
    if local:
        raise Unfit(f"[errors] has codes that no error has: {sorted(local)}")
    rows.sort()
    return table(("code", "class", "is a", "made by", "exit status", ""), rows)


# --- worked examples ---


def golden(name: str) -> bytes:
    lines = (GOLDEN / f"{name}.hex").read_text().splitlines()
    return bytes.fromhex("".join(line for line in lines if not line.startswith("#")))


def walk(data: bytes, at: int, role: str, depth: int) -> Iterator[tuple[int, int, str]]:
    """(from, to, meaning) of each msgpack head or scalar. Only what the examples contain."""
    byte = data[at]
    sized = {0xC4: (1, "bytes"), 0xD9: (1, "text"), 0xDE: (2, "map"), 0xDC: (2, "array")}
    ints = {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}
    if byte < 0x80:
        yield at, at + 1, f"{role}: {byte}"
        return
    if byte in ints:
        end = at + 1 + ints[byte]
        yield at, end, f"{role}: {int.from_bytes(data[at + 1 : end])}"
        return
    if byte in sized:
        width, what = sized[byte]
        count, head = int.from_bytes(data[at + 1 : at + 1 + width]), 1 + width
    elif 0x80 <= byte < 0x90:
        what, count, head = "map", byte & 0x0F, 1
    elif 0x90 <= byte < 0xA0:
        what, count, head = "array", byte & 0x0F, 1
    elif 0xA0 <= byte < 0xC0:
        what, count, head = "text", byte & 0x1F, 1
    else:
        raise Unfit(f"byte {byte:#x} in an example")
    start = at + head
    if what in ("bytes", "text"):
        raw = data[start : start + count]
        value = f'"{raw.decode()}"' if what == "text" else f"{count} bytes"
        yield at, start + count, f"{role}: {value}"
        return
    yield at, start, f"{role}: {what} of {count}"
    envelope = ("kind", "session", "epoch", "sequence", "acknowledged", "body")
    for index in range(count * (2 if what == "map" else 1)):
        inner = envelope[index] if depth == 0 else ("field", "value")[index % 2]
        last = start
        for found in walk(data, start, inner, depth + 1):
            yield found
            last = max(last, found[1])
        start = last


def example(name: str) -> Callable[[Notes], str]:
    def make(_notes: Notes) -> str:
        data = golden(name)
        lines = []
        for start, end, meaning in walk(data, 0, "frame", 0):
            chunk = data[start:end].hex()
            while len(chunk) > 40:
                lines.append(chunk[:40])
                chunk = chunk[40:]
            lines.append(f"{chunk:<42}{meaning}")
        if lines[-1].split(None, 1)[0] != data[-len(lines[-1].split()[0]) // 2 :].hex():
            raise Unfit(f"{name} was not read to its end")
        return "```text\n" + "\n".join(lines) + "\n```"

    return make


# --- the states of a registration ---

LIVES = {
    Life.SUBMITTED: (
        "registered; waits for a phase, a host, or its first start",
        "not yet started",
    ),
    Life.STARTING: (
        "an incarnation and its token are durable; START may have left",
        "not yet started; stopped, if an earlier incarnation ran",
    ),
    Life.RUNNING: ("its host has said that the process exists", "started"),
    Life.WAITING: ("it ended, or could not be started; it will be started again", "stopped"),
    Life.HELD: ("an operator keeps it from running until it is released", "stopped, not final"),
    Life.RETIRED: ("unregistered; listed with its last exit until trimmed", "stopped, final"),
}
STEPS = {
    Step.START: "it can be placed and its delay is over",
    Step.STARTED: "the host says that the process exists",
    Step.READY: "the worker says that it is ready",
    Step.STOP: "a stop is asked for",
    Step.FAIL: "the start led to no process",
    Step.FAIL_FOR_GOOD: "the start led to no process; never restarted, or terminated",
    Step.FAIL_HELD: "the start led to no process, while a hold was asked for",
    Step.EXIT: "the process ended; to be started again",
    Step.EXIT_FOR_GOOD: "the process ended: exit 0, never restarted, or terminated",
    Step.EXIT_HELD: "the process ended while a hold was asked for",
    Step.HOLD: "hold",
    Step.RELEASE: "release",
    Step.CANCEL: "terminate",
    Step.REVISE: "apply with other content",
    Step.PROVE: "its process of a new revision has run for long enough",
}


def lives(_notes: "Notes") -> str:
    rows = [(f"`{life}`", *LIVES[life]) for life in Life]
    return table(("state", "meaning", "a handle sees"), rows)


def transitions(_notes: "Notes") -> str:
    if set(STEPS) != set(Step):
        raise Unfit(f"steps without a word: {sorted(set(Step) - set(STEPS))}")
    rows = [(f"`{b}`", STEPS[step], f"`{a}`") for (b, step), a in TRANSITIONS.items() if b != a]
    return table(("from", "what happens", "to"), rows)


def diagram(_notes: "Notes") -> str:
    """Mermaid's words for the same table."""
    moves = [
        f"    {before} --> {after}: {step}"
        for (before, step), after in TRANSITIONS.items()
        if before is not after
    ]
    return "\n".join(("stateDiagram-v2", "    [*] --> submitted: register", *moves))


def conformance_table(_notes: "Notes") -> str:
    """Each case with a link to the section that it tests."""
    headings = re.findall(r"^#+ (.*)$", (REFERENCE / "protocol.in.md").read_text(), re.MULTILINE)
    rows = []
    for one in CASES.values():
        if one.section not in headings:
            raise Unfit(f"case {one.name}: protocol.in.md has no section {one.section!r}")
        anchor = re.sub(r"[^\w -]", "", one.section.lower()).replace(" ", "-")
        rows.append((one.name, f"[{one.section}](protocol.md#{anchor})", one.statement))
    return table(("case", "section", "what holds"), rows)


def rules_text(_notes: "Notes") -> str:
    """One table a section; of several tests for a rule the first is named."""
    tests = contract.first_tests()
    parts = []
    for letter, title in contract.SECTIONS.items():
        rows = []
        for name, rule in contract.rules().items():
            if name[0] != letter:
                continue
            test = tests.get(name)
            link = f"[{test.name}](../../{test.path})" if test else ""
            rows.append((name, rule.postgresql, rule.verdict, rule.posthouse, link))
        head = ("id", "PostgreSQL", "", "posthouse", "test")
        parts.append(f"## {title}\n\n{table(head, rows)}\n")
    return "\n".join(parts)


def ours(dotted: str) -> None:
    """Raises Unfit for a name that there is not, or that nobody is given."""
    if dotted in (
        "[[worker]]",
        posthouse.shmem.__name__.partition(".")[2],
        *(key.name for key in config_keys.KEYS["master"]),
    ):
        return
    owner, _, rest = dotted.partition(".")
    found: Any = getattr(posthouse, owner, None)
    fields = {field.name for field in dataclasses.fields(BackgroundWorker)}
    if found is BackgroundWorker and rest in fields:
        return
    if found is None or (rest and not hasattr(found, rest)):
        raise Unfit(f"posthouse has no {dotted}")


def from_postgresql(_notes: Notes) -> str:
    """Each name with ours, and the verdicts of the rules that they are under."""
    known = contract.rules()
    placed = [rule for _, under in contract.NAMES.values() for rule in under.split()]
    if sorted(placed) != sorted(known):
        odd = set(placed) ^ set(known) or {r for r in placed if placed.count(r) > 1}
        raise Unfit(f"rules that stand at no name, or at two: {sorted(odd)}")
    rows = []
    for theirs, (name, under) in contract.NAMES.items():
        ours(name)
        by_verdict = [
            " ".join(rule for rule in under.split() if known[rule].verdict == verdict)
            for verdict in ("kept", "healed", "not applicable")
        ]
        rows.append((f"`{theirs}`", f"`{name}`", *by_verdict))
    return table(("PostgreSQL", "posthouse", "kept", "healed", "not applicable"), rows)


TABLES: dict[str, Callable[[Notes], str]] = {
    "options": options_table,
    "kinds": kinds_table,
    "messages": messages_text,
    "records": records_text,
    "enums": enums_table,
    "events": events_table,
    "answers": answers_table,
    "spec": spec_table,
    "limits": limits_table,
    "refused": codes_table("refused"),
    "start_failed": codes_table("start_failed"),
    "errors": errors_table,
    "hello": example("hello.client"),
    "welcome": example("welcome"),
    "states": lives,
    "transitions": transitions,
    "diagram": diagram,
    "conformance": conformance_table,
    "rules": rules_text,
    "cli_global": lambda _: cli_page.global_options(),
    "cli_statuses": lambda _: cli_page.exit_statuses(),
    "cli_verbs": lambda _: cli_page.verbs(),
    "cli_fields": lambda _: cli_page.record_options(),
    "config_master": lambda _: configuration_page.table("master"),
    "config_phase": lambda _: configuration_page.table("phase"),
    "config_agent": lambda _: configuration_page.table("agent"),
    "config_runtime": lambda _: configuration_page.table("runtime"),
    "config_client": lambda _: configuration_page.table("client"),
    "config_variables": lambda _: configuration_page.variables(),
    "from_postgresql": from_postgresql,
}


def render() -> dict[Path, str]:
    """Every generated page. Raises Unfit."""
    notes = Notes(NOTES)
    used: set[str] = set()

    def put(match: re.Match[str]) -> str:
        used.add(match[1])
        return TABLES[match[1]](notes)

    pages = {}
    for source in sorted(REFERENCE.glob("*.in.md")):
        text = re.sub(r"^<!-- table: (\w+) -->$", put, source.read_text(), flags=re.MULTILINE)
        head = f"<!-- Generated by docs/generate.py from {source.name}: do not edit. -->\n\n"
        pages[source.with_name(source.name.replace(".in.md", ".md"))] = head + text
    notes.check()
    if used != set(TABLES):
        raise Unfit(f"tables that no page has: {sorted(set(TABLES) - used)}")
    return pages


def main(arguments: list[str]) -> int:
    try:
        pages = render()
    except Unfit as error:
        print(f"docs/generate.py: {error}", file=sys.stderr)
        return 1
    stale = False
    for path, text in pages.items():
        found = path.read_text() if path.exists() else ""
        if found == text:
            continue
        stale = True
        if "--check" in arguments:
            lines = difflib.unified_diff(
                found.splitlines(), text.splitlines(), str(path), "generated", lineterm="", n=1
            )
            print("\n".join(lines), file=sys.stderr)
        else:
            path.write_text(text)
    if stale and "--check" in arguments:
        print("run: uv run python docs/generate.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
