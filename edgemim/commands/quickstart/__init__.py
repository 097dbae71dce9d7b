"""`edgemim quickstart`: the whole chain on real images in minutes, from photos to a benchmarked model and one report."""

from edgemim.commands.quickstart.chain import quickstart
from edgemim.commands.quickstart.config import QuickstartConfig

__all__ = ["QuickstartConfig", "quickstart"]
