"""Fine-tune one frozen model on many tasks at once with mixtures of adapters, on ordinary CPUs."""

__version__ = "0.1.0"
