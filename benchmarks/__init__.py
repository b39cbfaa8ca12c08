"""What things cost, as ratios measured side by side in one run; never as a timed test."""
