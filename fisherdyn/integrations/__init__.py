"""Other people's training loops: transformers.Trainer and Lightning, each imported only where it is used."""
