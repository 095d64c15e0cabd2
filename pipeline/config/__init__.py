"""Settings, presets, tasks, and what a person asked for made into one resolved config."""
