"""The documented classes for other frameworks than torch.

flax.py: FlaxMistralModel and FlaxMistralForCausalLM, pure functions on the JAX executor. flax_params.py: their weights
as nested dictionaries. tensorflow.py: TFMistralModel, TFMistralForCausalLM and TFMistralForSequenceClassification,
which take and return TensorFlow's tensors, on any executor. Importing these modules imports no framework.
"""
