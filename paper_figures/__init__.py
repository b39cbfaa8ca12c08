"""Every figure and table of the paper, redrawn from committed data or from one's own runs.

The figures are functions from a sweep's record to a matplotlib Figure, for notebooks too: `figures.fig4(ds)`.
"""
