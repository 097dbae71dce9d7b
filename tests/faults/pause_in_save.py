"""`python -m edgemim`, but a run stops dead at a named place inside one save, says so in a file, and waits to be killed.

Environment: PAUSE_AT (half_written, written, renamed), PAUSE_STEP (the step of that save), PAUSE_SIGN (file to make).
"""

import os
import sys
import time
from pathlib import Path

from edgemim.cli import main
from edgemim.training import checkpoint


def pause() -> None:
    """Show that the place is reached; nothing after it is ever done."""
    Path(os.environ["PAUSE_SIGN"]).touch()
    time.sleep(600)


def pausing(place: str) -> None:
    """Put the pause before the file operation that `place` names, for the save of one step."""
    step = f"step-{int(os.environ['PAUSE_STEP']):09d}"
    write, rename, replace = checkpoint._write_synced, Path.rename, Path.replace

    def write_synced(path: Path, content: bytes) -> None:
        if place == "half_written" and path.parent.name == f"{step}.tmp" and path.name == "optimizer.safetensors":
            path.write_bytes(content[: len(content) // 2])
            pause()
        write(path, content)

    def rename_to(self: Path, target: Path) -> Path:
        if place == "written" and self.name == f"{step}.tmp":
            pause()
        return rename(self, target)

    def replace_to(self: Path, target: Path) -> Path:
        # `latest` is pointed at the new checkpoint after that one has its name.
        if place == "renamed" and Path(target).name == "latest" and self.read_text().strip() == step:
            pause()
        return replace(self, target)

    checkpoint._write_synced = write_synced
    Path.rename = rename_to
    Path.replace = replace_to


if __name__ == "__main__":
    pausing(os.environ["PAUSE_AT"])
    sys.exit(main())
