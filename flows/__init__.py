"""Example flows and the functions they call. Read ``hello.yaml`` first, then ``stdlib_report``."""
