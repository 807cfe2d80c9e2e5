"""What ``grebe cache`` does: shows, checks and empties the directory of a KV cache."""

from __future__ import annotations

__all__: list[str] = []
