"""The trace: a PyTorch model to the graph, over torch.export, with no knowledge of any model family."""

from stdeploy.trace.model import TracedModel, trace

__all__ = ["TracedModel", "trace"]
