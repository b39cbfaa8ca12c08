"""Every figure and table of the paper, drawn again from committed data or from your own sweeps.

A figure is a function from a sweep's record to a matplotlib Figure, which notebooks can call too: `figures.fig4(ds)`.
"""
