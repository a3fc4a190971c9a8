"""Event: one file that the event-driven CPU engine maps and runs (stdeploy.runtime.event)."""
