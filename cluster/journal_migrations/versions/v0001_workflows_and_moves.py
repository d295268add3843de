"""Workflows, and the moves of those that have not ended."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "laban_workflows",
        sa.Column("workflow_id", sa.String(64), primary_key=True),
        sa.Column("rank", sa.BigInteger, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("idempotency_key", sa.Text),
        sa.Column("content", sa.Text, nullable=False),
        sa.Column("namespace", sa.Text, nullable=False),
        sa.Column("max_context", sa.Integer, nullable=False),
        sa.Column("seed", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.Float(53), nullable=False),
        sa.Column("document", sa.Text, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("finished_at", sa.Float(53)),
        sa.Column("archive", sa.Text),
        sa.UniqueConstraint("tenant", "idempotency_key", name="laban_workflows_key"),
    )
    op.create_index("laban_workflows_finished", "laban_workflows", ["finished_at"])
    op.create_table(
        "laban_moves",
        sa.Column("workflow_id", sa.String(64), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("at", sa.Float(53), nullable=False),
        sa.Column("applied", sa.Integer, nullable=False),
        sa.Column("event", sa.Integer, nullable=False),
        sa.Column("move", sa.Text, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("laban_moves")
    op.drop_index("laban_workflows_finished", "laban_workflows")
    op.drop_table("laban_workflows")
