"""The event-driven CPU engine: runs a `.sev` file (stdeploy.exporters.event)."""
