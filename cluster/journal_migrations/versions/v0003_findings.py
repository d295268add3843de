"""What audits found of workflows, and the workflows that left their tolerance."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "laban_findings",
        sa.Column("tenant", sa.Text, primary_key=True),
        sa.Column("model", sa.Text, primary_key=True),
        sa.Column("workflow", sa.Text, primary_key=True),
        sa.Column("digest", sa.String(32), primary_key=True),
        sa.Column("step", sa.Text, primary_key=True),
        sa.Column("read", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("level", sa.String(16), primary_key=True),
        sa.Column("source", sa.String(16), primary_key=True),
        sa.Column("num_calls", sa.BigInteger, nullable=False),
        sa.Column("kl_sum", sa.Float(53), nullable=False),
        sa.Column("kl_squares", sa.Float(53), nullable=False),
        sa.Column("num_tokens", sa.BigInteger, nullable=False),
        sa.Column("num_agreed", sa.BigInteger, nullable=False),
        sa.Column("num_decisions", sa.BigInteger, nullable=False),
        sa.Column("num_flips", sa.BigInteger, nullable=False),
        sa.Column("at", sa.Float(53), nullable=False),
    )
    op.create_table(
        "laban_divergences",
        sa.Column("tenant", sa.Text, primary_key=True),
        sa.Column("model", sa.Text, primary_key=True),
        sa.Column("workflow", sa.Text, primary_key=True),
        sa.Column("since", sa.Float(53), nullable=False),
        sa.Column("kl", sa.Float(53), nullable=False),
        sa.Column("num_calls", sa.BigInteger, nullable=False),
        sa.Column("tolerance", sa.Float(53), nullable=False),
    )


def downgrade() -> None:
    op.drop_table("laban_divergences")
    op.drop_table("laban_findings")
