"""The errors that reach a person."""

import errno
import re

# What libraries that do not raise OSError make of the system's errors 27, 28 and 122.
_FULL_IN_WORDS = re.compile(r"os error (?:27|28|122)\b|database or disk is full")


class UserError(Exception):
    """A mistake that the user can mend; the message names the bad value and the mend.

    The command line prints it as one line and exits with 2.
    """


def is_disk_full(error: BaseException) -> bool:
    """Whether the error, or one behind it, is a disk, a quota or a file-size limit reached.

    torch, safetensors and SQLite each say it in a way of their own.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return True
        if _FULL_IN_WORDS.search(str(seen)):
            return True
        seen = seen.__cause__ or seen.__context__
    return False
