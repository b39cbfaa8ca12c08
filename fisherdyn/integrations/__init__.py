"""The same measurements and schedules for people who have a trainer: transformers' (and adapters') and Lightning's."""
