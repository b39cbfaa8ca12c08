"""A training run recorded along its steps: recorder (hooks), cadence, gauges, logged means, buffer, file."""
