"""Mixed precision that rounds no input."""

from __future__ import annotations

from typing import Any

from lightning_fabric.plugins.precision.amp import MixedPrecision


class UnroundedInput(MixedPrecision):
    """Autocast alone. Fabric's own plugin also casts whatever a model is given to half precision, and the objects'
    boxes with it, which in bfloat16 lie on whole multiples of 4 pixels beyond the 512th."""

    def convert_input(self, data: Any) -> Any:
        """``data`` as it is."""
        return data
