"""The settings of a run: tasks and presets, and how they are resolved with what a person sets."""
