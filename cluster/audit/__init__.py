"""What a fidelity costs, measured: a run under `exact`, and the same run replayed under others on the same text."""
