"""Leaves: functions of tensors, each fast one beside a plain-torch reference."""
