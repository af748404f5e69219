"""Copies of a run's metrics in the tools that people already use: TensorBoard, Weights & Biases, MLflow, trackio."""
