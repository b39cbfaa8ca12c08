"""A training run recorded along its steps: recorder (the hooks), cadence, gauges, ledger, and the growing store."""
