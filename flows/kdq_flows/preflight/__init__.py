"""The preflight of a recipe, which `kdq check` runs: everything that can be known in seconds, without training."""
