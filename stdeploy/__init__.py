"""Compile compressed spiking transformers to ONNX and NIR, and prove the result spike for spike."""

__version__ = "0.1.0"
