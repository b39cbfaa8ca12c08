"""The rooms around fit()'s loop: what it reads, how it computes, when it stops, what it reached, and its checkpoints."""
