"""Sessions themselves, without a cluster around them: statements and values of every kind, races
for the fence, files and servers that fail."""

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from posthouse import spi
from posthouse.errors import (
    DatabaseError,
    FencedOff,
    PosthouseError,
    UsageError,
)
from posthouse.spi_postgresql import FENCE_SQL as POSTGRESQL_FENCE
from posthouse.spi_sqlite import FENCE_SQL as SQLITE_FENCE

Open = Callable[..., spi.Session]
ENGINES = ["postgresql", "sqlite"]
PATIENCE_S = 30.0
pytestmark = pytest.mark.timeout(180)  # whole servers, on a busy machine


def asked(database: Any = "app", role: Any = None, token: int = 1) -> spi.Asked:
    return spi.Asked(database=database, role=role, flags=0, name="w", token=token)


both = pytest.mark.parametrize("engine", ENGINES)

# --- placeholders --------------------------------------------------------------------------------

plain = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
tricky = st.sampled_from(
    ["$1", "$2", "'", "''", '"', "--", "/*", "*/", "$$", "$a$", ";", "\\", "\n"]
)
texts = st.lists(plain | tricky, max_size=5).map("".join)


def literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def name(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def comment(text: str) -> str:
    return "/* " + text.replace("*/", "").replace("/*", "") + " */"


def line_comment(text: str) -> str:
    return "-- " + text.replace("\n", "").replace("\r", "") + "\n"


def dollars(text: str) -> str:
    """For PostgreSQL alone."""
    return f"$quote${text}$quote$" if "$quote" not in text + "$" * text.endswith("$") else "''"


Part = tuple[str, Any]  # what is selected, and its value
literals = texts.map(lambda text: (literal(text), text))
placeholders = st.integers(1, 12).map(lambda number: (f"${number}", number))
escaped = texts.map(lambda text: ("E" + literal(text.replace("\\", "\\\\")), text))
quoted = plain.map(lambda text: (dollars(text), text if dollars(text) != "''" else ""))


def statement(parts: list[tuple[Part, str]], numbers: list[int], engine: str) -> str:
    cast = "" if engine == "sqlite" else "::text"
    shown = []
    for (sql, value), remark in parts:
        what = f"${numbers.index(value) + 1}{cast}" if isinstance(value, int) else f"{sql}{cast}"
        shown.append(f"{remark}{what} AS {name('$9')}")
    return "SELECT " + ", ".join(shown)


@both
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_placeholders_are_found_and_nothing_else_is_taken_for_one(
    kept: dict[str, spi.Session], engine: str, data: st.DataObject
) -> None:
    kinds = [literals, placeholders] + ([escaped, quoted] if engine == "postgresql" else [])
    remark = st.just("") | texts.map(comment) | texts.map(line_comment)
    parts = data.draw(st.lists(st.tuples(st.one_of(kinds), remark), min_size=1, max_size=14))
    numbers = sorted({value for (_, value), _ in parts if isinstance(value, int)})
    values = [f"value {number}" for number in numbers]
    session = kept[engine]
    with session.transaction():
        found = session.execute(statement(parts, numbers, engine), values)
    expected = tuple(
        f"value {value}" if isinstance(value, int) else value for (_, value), _ in parts
    )
    assert found.rows == [expected]


@both
def test_more_than_nine_placeholders_in_any_order(
    kept: dict[str, spi.Session], engine: str
) -> None:
    cast = "" if engine == "sqlite" else "::integer"
    numbers = [12, 1, 10, 2, 11, 3, 9, 10, 4, 5, 6, 7, 8]
    with kept[engine].transaction():
        sql = "SELECT " + ", ".join(f"${number}{cast}" for number in numbers)
        assert kept[engine].execute(sql, list(range(1, 13))).rows == [tuple(numbers)]


@both
@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(text=texts, number=st.integers(-(2**63), 2**63 - 1), data=st.binary(max_size=20))
@example(text="\ud7ff\ue000\U0010ffff", number=0, data=b"\0")
def test_values_come_back_as_they_went(
    kept: dict[str, spi.Session], engine: str, text: str, number: int, data: bytes
) -> None:
    casts = ("", "", "") if engine == "sqlite" else ("::text", "::bigint", "::bytea")
    sql = "SELECT " + ", ".join(f"${place}{cast}" for place, cast in enumerate(casts, 1))
    with kept[engine].transaction():
        assert kept[engine].execute(sql, [text, number, data]).rows == [(text, number, data)]


BAD_VALUES = {
    "too few": ("SELECT $1, $2", ["one"]),
    "too many": ("SELECT $1", ["one", "two"]),
    "a gap": ("SELECT $2", ["one", "two"]),
    "an object": ("SELECT $1", [object()]),
    "a lone surrogate": ("SELECT $1", ["\udcff"]),
    "too large a number": ("INSERT INTO numbers VALUES ($1)", [2**70]),
    "no statement": ("SELEKT 1", []),
    "two statements, one wrong": ("SELECT 1; SELEKT 1", []),
}


@both
@pytest.mark.parametrize("what", BAD_VALUES)
def test_bad_values_are_errors_of_ours_and_the_session_goes_on(
    connect: Open, engine: str, what: str
) -> None:
    session = connect(engine)
    sql, values = BAD_VALUES[what]
    with pytest.raises(DatabaseError), session.transaction():
        session.execute("CREATE TABLE numbers (n bigint)")
        session.execute(sql, values)
    with session.transaction():
        assert session.execute("SELECT 7").rows == [(7,)]


@both
@pytest.mark.parametrize(
    ("sql", "values"),
    [(7, []), ("SELECT '\0'", []), ("SELECT '\udcff'", []), ("SELECT $1", "x"), ("SELECT 1", {1})],
)
def test_what_is_no_statement_never_reaches_the_database(
    kept: dict[str, spi.Session], engine: str, sql: Any, values: Any
) -> None:
    with kept[engine].transaction():
        for call in (kept[engine].execute, kept[engine].cursor):
            with pytest.raises(UsageError):
                call(sql, values)
        assert len(kept[engine].execute("SELECT 1")) == 1


# --- results and transactions --------------------------------------------------------------------


def test_several_statements_give_the_last_ones_result(kept: dict[str, spi.Session]) -> None:
    session = kept["postgresql"]
    with session.transaction():
        assert session.execute("SELECT 1, 2; SELECT 3").rows == [(3,)]


@pytest.mark.parametrize(
    "sql",
    ["/* */ COMMIT", "SELECT 1; COMMIT", "SELECT 1; COMMIT; BEGIN", "SELECT 1; ROLLBACK; BEGIN"],
)
def test_a_hidden_commit_is_an_error(connect: Open, sql: str) -> None:
    session = connect("postgresql")
    with pytest.raises(DatabaseError, match="ended the transaction"), session.transaction():
        session.execute(sql)
    with session.transaction():
        assert session.execute("SELECT 1").rows == [(1,)]


def test_rows_without_columns_are_rows(kept: dict[str, spi.Session]) -> None:
    session = kept["postgresql"]
    with session.transaction():
        found = session.execute("SELECT FROM generate_series(1, 3)")
        assert (len(found), found.processed, found.columns) == (3, 3, ())
        assert not session.execute("SELECT WHERE false")


@both
def test_a_limit_is_for_rows_and_zero_is_all(kept: dict[str, spi.Session], engine: str) -> None:
    session = kept[engine]
    sql = "VALUES (1), (2), (3)"
    with session.transaction():
        assert [len(session.execute(sql, limit=limit)) for limit in (0, 1, 3, 4)] == [3, 1, 3, 3]
        plan = session.prepare(sql)
        assert [len(plan.execute(limit=limit)) for limit in (0, 1, 3, 4)] == [3, 1, 3, 3]
        for bad in (-1, True, 1.5, "1"):
            with pytest.raises(UsageError):
                session.execute(sql, limit=bad)  # type: ignore[arg-type]


@both
@pytest.mark.parametrize("fails", [False, True])
def test_a_cursor_ends_with_its_transaction(connect: Open, engine: str, fails: bool) -> None:
    session = connect(engine)
    with contextlib.suppress(ZeroDivisionError), session.transaction():
        cursor = session.cursor("VALUES (1), (2), (3)")
        assert cursor.fetch(1) == [(1,)]
        if fails:
            raise ZeroDivisionError
    with session.transaction():
        with pytest.raises(UsageError, match="the cursor is closed"):
            cursor.fetch(1)
        cursor.close()
        assert session.execute("SELECT 1").rows == [(1,)]


@both
def test_subtransactions_in_each_other(connect: Open, engine: str, table: str) -> None:
    session = connect(engine)
    with session.transaction():
        session.execute(f"CREATE TABLE {table} (n integer)")
        with session.subtransaction():
            session.execute(f"INSERT INTO {table} VALUES (1)")
            with pytest.raises(DatabaseError), session.subtransaction():
                session.execute(f"INSERT INTO {table} VALUES (2)")
                session.execute("SELECT nothing")
            with pytest.raises(ZeroDivisionError), session.subtransaction():
                with session.subtransaction():
                    session.execute(f"INSERT INTO {table} VALUES (3)")
                raise ZeroDivisionError
        assert session.execute(f"SELECT n FROM {table}").rows == [(1,)]
        session.execute(f"DROP TABLE {table}")


# --- the fence -----------------------------------------------------------------------------------


@both
def test_of_many_starts_that_write_at_once_no_older_one_comes_after_a_later_one(
    connect: Open, engine: str, table: str
) -> None:
    """Eight sessions with rising tokens, each as fast as it can: the database numbers the rows."""
    first = connect(engine)
    with first.transaction():
        for part in [POSTGRESQL_FENCE] if engine == "postgresql" else SQLITE_FENCE.split(";")[:1]:
            first.execute(part)
        number = "serial" if engine == "postgresql" else "integer"
        first.execute(f"CREATE TABLE {table} (id {number} PRIMARY KEY, token integer)")
    refused: list[int] = []

    def write(token: int, url: str) -> None:
        session = spi.connect({"app": url}, asked(token=token))
        for _ in range(30):
            try:
                with session.transaction(fenced=table):
                    session.execute(f"INSERT INTO {table} (token) VALUES ($1)", [token])
            except FencedOff:
                refused.append(token)
                break
        session._engine.close()

    url = URLS[engine]
    threads = [threading.Thread(target=write, args=(token, url)) for token in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    with first.transaction():
        tokens = [row[0] for row in first.execute(f"SELECT token FROM {table} ORDER BY id").rows]
    assert tokens == sorted(tokens)
    assert tokens.count(8) == 30
    assert 8 not in refused


URLS: dict[str, str] = {}


@pytest.fixture(autouse=True)
def _known(session_urls: dict[str, str]) -> None:
    URLS.update(session_urls)


def test_the_fence_is_for_the_roles_that_it_was_granted_to(connect: Open, served: Any) -> None:
    """They may call the function, and not touch its table."""
    role = 'odd "role"'
    told = subprocess.run(
        [sys.executable, "-P", "-m", "posthouse_cli", "fence-sql", "--role", role],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    with connect("postgresql").transaction() as session:
        session.execute(f"CREATE ROLE {name(role)} LOGIN; CREATE ROLE stranger LOGIN")
        session.execute(told.stdout)
        session.execute(told.stdout)  # once more does no harm
    url = served.url.replace("postgres@", "odd%20%22role%22@")
    one = connect("postgresql", token=5, url=url)
    with one.transaction(fenced="key of roles"):
        pass
    with pytest.raises(DatabaseError, match="permission denied"), one.transaction():
        one.execute("UPDATE posthouse.fence SET token = 0")
    older = connect("postgresql", token=4, url=url)
    with pytest.raises(FencedOff) as fenced_off, older.transaction(fenced="key of roles"):
        pytest.fail("it is let in")
    assert fenced_off.value.message == 'a later start of "key of roles" than 4 has been here'
    other = connect("postgresql", url=served.url.replace("postgres@", "stranger@"))
    with pytest.raises(DatabaseError) as caught, other.transaction(fenced=True):
        pytest.fail("it is let in")
    assert "permission denied" in caught.value.message
    assert "fence-sql" in caught.value.hint


# --- what is asked for ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("database", "role", "why"),
    [
        (1, None, "SQLite has no oids"),
        ("app", 10, "SQLite has no oids"),
        ("app", "me", "SQLite has no roles"),
    ],
)
def test_sqlite_says_what_it_has_not(
    session_urls: dict[str, str], database: Any, role: Any, why: str
) -> None:
    with pytest.raises(UsageError, match=why):
        spi.connect({"app": session_urls["sqlite"], "": "app"}, asked(database, role))


@pytest.mark.parametrize(
    "call", [lambda s: s.listen("c"), lambda s: s.notifications(), lambda s: s.fileno()]
)
def test_sqlite_has_no_notifications(kept: dict[str, spi.Session], call: Any) -> None:
    with pytest.raises(PosthouseError, match="SQLite has no"):
        call(kept["sqlite"])


def test_notifications_wait_for_the_end_of_the_transaction(connect: Open) -> None:
    one, two = connect("postgresql"), connect("postgresql")
    one.listen('odd "name"')
    with two.transaction():
        two.notify('odd "name"', "first")
        assert one.notifications() == []
    end_s = time.monotonic() + PATIENCE_S
    while not (told := one.notifications()):
        assert time.monotonic() < end_s
        time.sleep(0.01)
    assert [(found.channel, found.payload) for found in told] == [('odd "name"', "first")]
    with contextlib.suppress(ZeroDivisionError), two.transaction():
        two.notify('odd "name"', "undone")
        raise ZeroDivisionError
    with two.transaction():
        two.notify('odd "name"', "last")
    while not (told := one.notifications()):
        assert time.monotonic() < end_s
        time.sleep(0.01)
    assert [found.payload for found in told] == ["last"]


@pytest.mark.parametrize("shown", ["büro-" + "ü" * 40, "工人" * 20, "\N{SNOWMAN}" * 32])
def test_the_server_shows_a_name_of_many_bytes_within_its_bound(
    session_urls: dict[str, str], shown: str
) -> None:
    question = "SELECT application_name FROM pg_stat_activity WHERE pid = pg_backend_pid()"
    who = spi.Asked(database="app", role=None, flags=0, name=shown, token=1)
    session = spi.connect({"app": session_urls["postgresql"]}, who)
    with session.transaction():
        ((found,),) = session.execute(question).rows
    session._engine.close()
    assert found == spi.application_name(shown)
    assert len(found.encode()) <= 63
