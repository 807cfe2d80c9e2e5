"""Sessions that the command line keeps from one call to the next: where they lie, how they end."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .checks import file_path, shown
from .errors import GrebeError, InvalidArgumentError, StorageError

if TYPE_CHECKING:
    from .cache import Cache
    from .generate import Generation
    from .model import Model
    from .session import Session

__all__ = ["open_session", "save_session", "session_file"]

MAX_NAME_BYTES = 100  # with what is added a file's name stays below 255


def state_folder() -> Path:
    """Where named sessions lie."""
    try:
        if sys.platform == "darwin":
            return Path.home() / "Library" / "Application Support" / "grebe" / "sessions"
        base = Path(os.environ.get("XDG_STATE_HOME", ""))
        if not base.is_absolute():
            base = Path.home() / ".local" / "state"
        return base / "grebe" / "sessions"
    except RuntimeError:
        message = "there is no home folder for sessions; give --session a path"
        raise InvalidArgumentError(message) from None


def session_file(name: str) -> Path:
    """The file of a session, in a folder that can be written.

    Args:
        name: letters, digits, "-", "_" and "." for one in the user's state folder; with a "/" or
            ending in ".grebe" it is the path of a file.

    Raises:
        InvalidArgumentError: another character.
        StorageError: no folder, or one that cannot be written; better now than after an hour.
    """
    if os.sep in name or name.endswith(".grebe"):
        path = file_path(name)
    else:
        odd = next((c for c in name if not (c.isalnum() or c in "-_.")), "")
        if not name or odd or name[0] in "-." or len(os.fsencode(name)) > MAX_NAME_BYTES:
            raise InvalidArgumentError(
                f"session is {shown(name)}; letters, digits, '-', '_' and '.' are expected, up to "
                f"{MAX_NAME_BYTES} bytes, or a path that ends in .grebe"
            )
        path = state_folder() / f"{name}.grebe"
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            message = f"{path.parent}: cannot make the folder for sessions: {error.strerror}"
            raise StorageError(message, str(path.parent), error.errno or 0) from None
    folder = path.parent
    if not folder.is_dir():
        raise StorageError(f"{folder}: no such folder", str(folder), errno.ENOENT)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise StorageError(f"{folder}: cannot be written", str(folder), errno.EACCES)
    return path


def open_session(
    model: Model, path: Path, n_ctx: int | None, cache: Cache | None = None
) -> Session:
    """The session of a file, or a new one where there is none yet.

    Raises:
        InvalidArgumentError: the file is of another model or other settings.
        FormatError: it is damaged.
    """
    if not path.exists():
        return model.session(n_ctx, cache=cache)
    try:
        return model.restore(path, n_ctx=n_ctx, cache=cache)
    except InvalidArgumentError as error:
        raise InvalidArgumentError(
            f"{error}; use the model and the options that it was made with, or another session, "
            "or remove the file"
        ) from None


def save_session(session: Session, generation: Generation, path: Path) -> bool:
    """Saves a session with all that was delivered, but for an end-of-text token.

    Returns:
        False when the generation did not come to the end of its prompt: then a later call, which
        gives the prompt again, is to find the session as it was before. The file is left alone.

    Raises:
        StorageError: the file is as before.
    """
    text = generation.prompt + generation.tokens
    if session.pos < len(generation.prompt):
        return False
    if generation.tokens and text[-1] == session.model.config.eos_token:
        text.pop()
    with contextlib.suppress(GrebeError, KeyboardInterrupt):
        session.prefill(text)  # the newest token is not in the state yet
    session.save(path)
    return True
