"""The documented Flax and TensorFlow classes."""
