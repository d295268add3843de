"""What Alembic runs to bring a journal's database up to date; see `cluster/journal_schema.py`."""
