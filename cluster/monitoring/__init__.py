"""What goes with the metrics: Grafana dashboards, and a Prometheus beside a local cluster."""
