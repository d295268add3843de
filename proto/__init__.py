"""The schema of the public API. Generated code; see laban.proto."""
