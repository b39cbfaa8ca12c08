"""tr(F) per layer: one estimator a file; each answers per-example squared gradient norms, a layer."""
