"""The architectures of the papers' tables, as the published code builds them."""

from __future__ import annotations

from typing import Any

from stdeploy.models.spikformer import SpikformerConfig


def _stem(width: int, pooled: tuple[bool, bool, bool, bool]) -> tuple[tuple[int, bool], ...]:
    widths = (width // 8, width // 4, width // 2, width)
    return tuple(zip(widths, pooled, strict=True))


def spikformer_cifar10(**changes: Any) -> SpikformerConfig:
    """Spikformer-4-384-1536: 32x32 images, 64 tokens, 12 heads, every Linear biased."""
    settings: dict[str, Any] = {
        "depth": 4,
        "embed_dim": 384,
        "mlp_dim": 1536,
        "num_heads": 12,
        "steps": 4,
        "stem": _stem(384, (False, False, True, True)),
        "legacy_norms": True,
    }
    return SpikformerConfig(**{**settings, **changes})


def spikformer_imagenet(**changes: Any) -> SpikformerConfig:
    """Spikformer-8-512-2048: 224x224 images, 196 tokens, 8 heads, q, k and v without bias."""
    settings: dict[str, Any] = {
        "depth": 8,
        "embed_dim": 512,
        "mlp_dim": 2048,
        "num_heads": 8,
        "steps": 4,
        "stem": _stem(512, (True, True, True, True)),
        "image_size": (224, 224),
        "num_classes": 1000,
        "qkv_bias": False,
        "legacy_norms": True,
    }
    return SpikformerConfig(**{**settings, **changes})


def spikformer_cifar10_dvs(**changes: Any) -> SpikformerConfig:
    """Spikformer-2-256-1024: 16 frames of 2x128x128 events, 64 tokens, 16 heads, scale 0.25."""
    settings: dict[str, Any] = {
        "depth": 2,
        "embed_dim": 256,
        "mlp_dim": 1024,
        "num_heads": 16,
        "steps": 16,
        "stem": _stem(256, (True, True, True, True)),
        "in_channels": 2,
        "image_size": (128, 128),
        "input_kind": "event_frames",
        "scale": 0.25,
        "qkv_bias": False,
        "legacy_norms": True,
        "legacy_position": True,
    }
    return SpikformerConfig(**{**settings, **changes})
