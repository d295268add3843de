"""The control plane: command line, configuration, gateway, executor, client. Never imports torch."""
