"""A training run recorded along its steps: recorder (the hooks), cadence, gauges, ranks, ledger, and the growing store."""
