"""Alembic's entry: migrations run on the connection that `journal_schema.migrate` has opened."""

from alembic import context

from laban.cluster.journal_schema import METADATA, VERSION_TABLE

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    transactional_ddl=True,
    version_table=VERSION_TABLE,
)
with context.begin_transaction():
    context.run_migrations()
