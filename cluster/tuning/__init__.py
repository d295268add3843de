"""From recorded runs to lessons: what an adapter is trained on. Never imports torch."""
