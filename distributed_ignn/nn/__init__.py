"""Layers for models and training loops of the user's own."""

from distributed_ignn.models.explicit.exact import exact

__all__ = ["exact"]
