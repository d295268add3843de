"""Those who share the database, and which of them each workflow is with."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "laban_members",
        sa.Column("member_id", sa.String(32), primary_key=True),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("address", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("joined_at", sa.Float(53), nullable=False),
        sa.Column("expires_at", sa.Float(53), nullable=False),
    )
    op.add_column("laban_workflows", sa.Column("owner", sa.String(32)))
    op.create_index("laban_workflows_owner", "laban_workflows", ["state", "owner"])
    # Places in the order of submission are times now, which several can give: microseconds.
    op.execute("UPDATE laban_workflows SET rank = CAST(created_at * 1000000 AS BIGINT)")


def downgrade() -> None:
    op.drop_index("laban_workflows_owner", "laban_workflows")
    op.drop_column("laban_workflows", "owner")
    op.drop_table("laban_members")
