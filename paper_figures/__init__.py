"""Every figure and table of the paper, redrawn from committed data or from one's own runs."""
