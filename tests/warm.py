"""Imported by the server that `children` are forked from, and by nobody else."""

import children

children.warm_up()
