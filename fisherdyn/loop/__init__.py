"""The rooms around fit()'s loop: what it reads, how it computes, what it writes down, and where it can go on from."""
