"""The tables of protocol.md, from the messages that the code knows.

Owns: which messages, records and limits are told, and in which order. Must not know: frames.
Invariant: every kind of message is told, with each of its fields.
"""

import dataclasses
import re
from pathlib import Path
from typing import Any

from pages.fields import section, wire_name
from pages.notes import Notes, Tables, Unfit, shown, table
from posthouse import limits, messages, records, states, transport
from posthouse.messages import KINDS, UNSEQUENCED, Message
from posthouse.spec import BackgroundWorker

__all__ = ["TABLES"]

SHARED = (
    messages.WardenRef,
    messages.Running,
    messages.Exit,
    records.ExitFacts,
    records.Registrant,
    records.HandleRef,
    records.Status,
    records.WorkerInfo,
    records.HostInfo,
    records.HostUse,
    records.WorkerUse,
    records.UnclaimedWorker,
    messages.HostVerdict,
    messages.Missing,
    messages.Declared,
    messages.StructRequest,
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


def answers_table(notes: Notes) -> str:
    rows = []
    for cls in KINDS.values():
        if not issubclass(cls, messages.Request):
            continue
        answer = notes.of("answers", cls.__name__)
        if not issubclass(getattr(messages, answer), messages.Reply):
            raise Unfit(f"{answer} is no answer")
        kept = "yes" if cls in messages.MUTATING - messages.IDEMPOTENT else "no"
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


TABLES: Tables = {
    "options": options_table,
    "kinds": kinds_table,
    "messages": messages_text,
    "records": records_text,
    "enums": enums_table,
    "answers": answers_table,
    "spec": spec_table,
    "limits": limits_table,
}
