"""Files whose names come from data that may be wrong, or made to do harm."""

import os
import stat
from pathlib import Path

from rpn_jax.data.faults import DataError, shown


class Folder:
    """A folder that file names start from, and may not lead out of.

    The folder may itself be a link, for the user has named it; a link or a `..` below
    it that ends elsewhere is a fault. A plain file costs one call of the system.

    Args:
        root: The folder.
    """

    def __init__(self, root: Path):
        self.root = root
        self._real = os.path.realpath(root)
        self._inside: dict[Path, str | None] = {}

    def find(self, name: str, where: str) -> Path | None:
        """Return the path of file `name`, None if there is none.

        Args:
            name: As the data has it.
            where: What named it, for the error.

        Raises:
            DataError: It lies outside of the folder.
        """
        path = self.root / name  # an absolute name stays as it is
        if path == self.root:
            return None
        try:
            if path.parent not in self._inside:
                self._inside[path.parent] = self._outside(path.parent)
            outside = self._inside[path.parent]
            mode = 0 if outside else os.lstat(path).st_mode
            if stat.S_ISLNK(mode):
                outside = self._outside(path)
                mode = os.stat(path).st_mode
        except (OSError, ValueError):  # ValueError: no name that a file can have
            return None
        if outside:
            raise DataError(
                f"{where}: the file name {shown(name)} leads out of the folder "
                f"{self.root}, to {shown(outside)}; name, or link, the whole folder "
                "that the files are in, or copy them",
                "file name that leads out of its folder",
            )
        return path if stat.S_ISREG(mode) else None

    def _outside(self, path: Path) -> str | None:
        """Return where `path` really is, None if that is inside."""
        real = os.path.realpath(path)
        inside = os.path.commonpath([real, self._real]) == self._real
        return None if inside else real
