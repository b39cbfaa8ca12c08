"""A training run recorded along its steps: recorder (the hooks), cadence, gauges, logged means, buffer, and the run's file."""
