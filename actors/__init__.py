"""The data plane: the Ray shells and, in `engine`, what runs inside a worker."""
