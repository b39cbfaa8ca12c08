"""The same measurements and schedules in other people's loops: transformers' (and adapters') and Lightning's."""
