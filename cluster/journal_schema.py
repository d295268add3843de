"""The journal's tables, and how a database comes to have them."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

from laban.actors.errors import FailedPrecondition

METADATA = MetaData()
VERSION_TABLE = "laban_schema"

WORKFLOWS = Table(
    "laban_workflows",
    METADATA,
    Column("workflow_id", String(64), primary_key=True),
    Column("rank", BigInteger, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("idempotency_key", Text),
    Column("content", Text, nullable=False),
    Column("namespace", Text, nullable=False),
    Column("max_context", Integer, nullable=False),
    Column("seed", BigInteger, nullable=False),
    Column("created_at", Float(53), nullable=False),
    Column("document", Text, nullable=False),
    Column("state", String(16), nullable=False),
    Column("finished_at", Float(53)),
    Column("archive", Text),
    Column("owner", String(32)),  # the member that runs it, or did
    UniqueConstraint("tenant", "idempotency_key", name="laban_workflows_key"),
    Index("laban_workflows_finished", "finished_at"),
    Index("laban_workflows_owner", "state", "owner"),
)

MOVES = Table(
    "laban_moves",
    METADATA,
    Column("workflow_id", String(64), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("at", Float(53), nullable=False),
    Column("applied", Integer, nullable=False),
    Column("event", Integer, nullable=False),
    Column("move", Text, nullable=False),
)

MEMBERS = Table(
    "laban_members",
    METADATA,
    Column("member_id", String(32), primary_key=True),
    Column("host", Text, nullable=False),
    Column("address", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("state", String(16), nullable=False),
    Column("joined_at", Float(53), nullable=False),
    Column("expires_at", Float(53), nullable=False),
)

FINDINGS = Table(
    "laban_findings",
    METADATA,
    Column("tenant", Text, primary_key=True),
    Column("model", Text, primary_key=True),
    Column("workflow", Text, primary_key=True),
    Column("digest", String(32), primary_key=True),
    Column("step", Text, primary_key=True),
    Column("read", Integer, primary_key=True, autoincrement=False),  # -1: the whole step
    Column("level", String(16), primary_key=True),
    Column("source", String(16), primary_key=True),
    Column("num_calls", BigInteger, nullable=False),
    Column("kl_sum", Float(53), nullable=False),
    Column("kl_squares", Float(53), nullable=False),
    Column("num_tokens", BigInteger, nullable=False),
    Column("num_agreed", BigInteger, nullable=False),
    Column("num_decisions", BigInteger, nullable=False),
    Column("num_flips", BigInteger, nullable=False),
    Column("at", Float(53), nullable=False),  # when something was added to it
)

DIVERGENCES = Table(
    "laban_divergences",
    METADATA,
    Column("tenant", Text, primary_key=True),
    Column("model", Text, primary_key=True),
    Column("workflow", Text, primary_key=True),
    Column("since", Float(53), nullable=False),
    Column("kl", Float(53), nullable=False),
    Column("num_calls", BigInteger, nullable=False),
    Column("tolerance", Float(53), nullable=False),
)


def migrate(connection: Connection) -> None:
    """Bring a database to this version's schema. Raises FailedPrecondition for one that a newer version has written."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "journal_migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    scripts = ScriptDirectory.from_config(config)
    known = {script.revision for script in scripts.walk_revisions()}
    there = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}).get_current_heads()
    newer = [revision for revision in there if revision not in known]
    if newer:
        raise FailedPrecondition(
            f"the database was written by a newer Laban: its schema is {newer[0]}, expected at most "
            f"{scripts.get_current_head()}. Run that version, or name another database",
            field="journal.url",
        )
    if there != (scripts.get_current_head(),):
        command.upgrade(config, "head")
