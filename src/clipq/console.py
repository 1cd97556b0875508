"""What the two commands share: --fetch, and one-line errors with their exit code."""

from __future__ import annotations

import errno
import sys
from typing import Any

import click

from clipq.errors import ClipqError

INTERRUPTED = 130

fetch_option = click.option(
    "--fetch", "cache", is_flag=False, flag_value="~/.cache/clipq", metavar="[FOLDER]",
    help="Allow downloads of remote sources, kept in FOLDER [default: ~/.cache/clipq].",
)  # fmt: skip

# Full, forbidden, or not the kind of file the path was taken for.
_USERS_ERRORS = (
    errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM, errno.EISDIR, errno.EEXIST, errno.ENOTDIR,
)  # fmt: skip


class Group(click.Group):
    """A click group that turns a ClipqError, a full disk and Ctrl-C into one line on stderr and an exit code."""

    def invoke(self, context: click.Context) -> Any:
        """Run the command; never a traceback for what a user can act on."""
        try:
            return super().invoke(context)
        except ClipqError as error:
            click.echo(f"error: {error}", err=True)
            context.exit(error.exit_code)
        except (KeyboardInterrupt, click.Abort):
            click.echo("interrupted: what was finished is kept, run the same command again to go on", err=True)
            context.exit(INTERRUPTED)
        except BrokenPipeError:
            sys.stderr.close()
            context.exit(0)
        except OSError as error:
            if error.errno not in _USERS_ERRORS:
                raise
            # Of a rename the second name is the one that the user gave.
            name = error.filename2 or error.filename
            where = f" ({name})" if name else ""
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            way_out = "free space or choose another output" if full else "choose another output"
            click.echo(f"error: {error.strerror}{where}; {way_out}", err=True)
            context.exit(2)


class DefaultGroup(Group):
    """A group that is also a command: words that name none of its commands go to the one called ``default``."""

    def __init__(self, *arguments: Any, default: str, **attributes: Any):
        super().__init__(*arguments, **attributes)
        self._default = default

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        """Put the default command's name before words that begin with no command's and no help option."""
        if args and args[0] not in self.commands and args[0] not in context.help_option_names:
            args = [self._default, *args]
        return super().parse_args(context, args)
