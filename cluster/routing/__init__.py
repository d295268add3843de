"""Where a call runs: pure policies over a frozen view of the cluster."""
