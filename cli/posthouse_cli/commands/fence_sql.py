"""`posthouse fence-sql`: what a database needs for `spi.transaction(fenced=True)`."""

import click

from posthouse.spi_postgresql import FENCE_SQL as POSTGRESQL
from posthouse.spi_sqlite import FENCE_SQL as SQLITE
from posthouse_cli.context import Session

__all__ = ["fence_sql"]


@click.command("fence-sql")
@click.option("--role", metavar="NAME", multiple=True, help="Grant its use to this role.")
@click.option("--sqlite", is_flag=True, help="For the embedded database instead of PostgreSQL.")
@click.pass_obj
def fence_sql(session: Session, role: tuple[str, ...], sqlite: bool) -> None:
    """SQL for a database that is to refuse workers which were cut off.

    It makes a table and, on PostgreSQL, a function, by which `spi.transaction(fenced=True)` has the
    database itself refuse a worker once a later start of it has been there. A DBA installs it, once
    in each database: posthouse fence-sql --role app | psql. To run it again does no harm.
    """
    if sqlite:
        if role:
            raise click.UsageError("SQLite has no roles, so --role has no meaning")
        session.out.line(SQLITE.rstrip())
        return
    lines = [POSTGRESQL.rstrip()]
    for name in role:
        quoted = '"' + name.replace('"', '""') + '"'
        lines.append(f"GRANT USAGE ON SCHEMA posthouse TO {quoted};")
        lines.append(f"GRANT EXECUTE ON FUNCTION posthouse.check_fence(text, bigint) TO {quoted};")
    session.out.line("\n".join(lines))
