"""Two kinds of benchmarks.

``python -m benchmarks`` times operations, layers and whole training steps against limits and rivals of the
same run. ``python -m benchmarks.methods`` and ``python -m benchmarks.accuracy`` train and compare accuracies,
``python -m benchmarks.language`` and ``python -m benchmarks.language_shots`` what language models write.
"""
