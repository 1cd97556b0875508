"""What the two commands share: --fetch, and one-line errors with their exit code."""

from __future__ import annotations

import errno
import re
import sys
from typing import Any, NoReturn

import click
from click.core import ParameterSource

from clipq.errors import ClipqError
from clipq.given import as_file, as_folder, is_unicode, shown

INTERRUPTED = 130

fetch_option = click.option(
    "--fetch", "cache", is_flag=False, flag_value="~/.cache/clipq", metavar="[FOLDER]",
    help="Allow downloads of remote sources, kept in FOLDER [default: ~/.cache/clipq].",
)  # fmt: skip

# A disk's end, a quota's, and a file system's largest file (4 GB on a USB stick): errors of writing name no file.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


# Of what is written somewhere, by one command or another.
_ENDINGS = (".html", ".md", ".json", ".csv", ".pdf", ".toml", ".xml")


class RenamedOption(click.Option):
    """An option that had another name, which still works and which no help shows."""

    def __init__(self, *arguments: Any, formerly: str, **attributes: Any):
        super().__init__(*arguments, **attributes)
        self._formerly = formerly

    def add_to_parser(self, parser: Any, ctx: click.Context) -> None:
        """Let the parser know both names."""
        shown, self.opts = self.opts, [*self.opts, self._formerly]
        super().add_to_parser(parser, ctx)
        self.opts = shown


class OutputFolder(click.Path):
    """A folder that a command writes to: refused before the command begins where that cannot be."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The folder's path."""
        return as_folder(value, param.opts[0] if param else "-o")


class OutputFile(click.Path):
    """A file that a command writes: refused before the command begins where that cannot be.

    ``ending`` is that of what is written, where there is no choice: names that end in another format's are refused.
    """

    def __init__(self, ending: str = "") -> None:
        super().__init__()
        self._ending = ending

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The file's path."""
        option = param.opts[0] if param else "-o"
        path = as_file(value, option)
        ending = path.suffix.lower()
        if self._ending and ending in _ENDINGS and ending != self._ending:
            raise ClipqError(
                f"{option} {path}: what is written is no {ending}; give a name that ends in {self._ending}"
            )
        return path


class Command(click.Command):
    """A command that refuses a second value for what takes one: of two, click takes the last without a word.

    Nor does it hint at the former name of an option.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Raise ClipqError for an option that is given twice and is not repeatable."""
        try:
            found = self.make_parser(ctx).parse_args(list(args))[2]
        except click.NoSuchOption as error:
            raise click.NoSuchOption(error.option_name, possibilities=self._shown(), ctx=ctx) from None
        order = [one for one in found if isinstance(one, click.Option)]
        for option in order:
            if not (option.multiple or option.is_flag or option.count) and order.count(option) > 1:
                raise ClipqError(f"{option.opts[0]} is given twice and takes one value; give it once")
        return super().parse_args(ctx, args)

    def _shown(self) -> list[str]:
        return [name for one in self.params for name in one.opts if name.startswith("--")]


class Group(click.Group):
    """A click group that turns what a user can act on into one line on stderr and an exit code.

    That is a ClipqError, what the file system says of a path, a full disk or memory, and Ctrl-C.
    """

    command_class = Command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Refuse what no command can take: an empty word, and one that is not UTF-8, as results are."""
        for place, word in enumerate(args):
            if not word or re.fullmatch(r"--[\w-]+=", word):
                after = f" after {shown(args[place - 1])}" if place and not word else f" in {word}" if word else ""
                _end(ctx, ClipqError(f"an empty value{after}; give one, or leave it out"))
            if not is_unicode(word):
                wrong = f"{shown(word)} is not UTF-8; rename the file or folder, or lead there by a link"
                _end(ctx, ClipqError(wrong))
        return super().parse_args(ctx, args)

    def invoke(self, context: click.Context) -> Any:
        """Run the command; never a traceback for what a user can act on."""
        try:
            return super().invoke(context)
        except ClipqError as error:
            _end(context, error)
        except (KeyboardInterrupt, click.Abort):
            click.echo("interrupted: what was finished is kept, run the same command again to go on", err=True)
            context.exit(INTERRUPTED)
        except BrokenPipeError:
            sys.stderr.close()
            context.exit(0)
        except OSError as error:
            # Of a rename the second name is the one that the user gave.
            name = error.filename2 or error.filename
            if name is None and error.errno == errno.ENOENT:
                # Python asks where it is, and that was deleted.
                name = "the folder that the command was called in"
            if name is None and error.errno not in _FULL:
                raise
            where = f" ({name})" if name else ""
            way_out = "free space or choose another output" if error.errno in _FULL else "check or choose another path"
            _end(context, ClipqError(f"{error.strerror}{where}; {way_out}"))
        except MemoryError as error:
            reason = f"out of memory ({error or 'no reason given'}); give less at once, or a larger machine"
            _end(context, ClipqError(reason))


def refuse_idle(why: str, *names: str) -> None:
    """Raise ClipqError where one of these parameters was given, which beside the others would change nothing.

    ``why`` ends the line that begins with the option.
    """
    context = click.get_current_context()
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if parameter.name in names and source is not ParameterSource.DEFAULT:
            raise ClipqError(f"{parameter.opts[0]} {why}")


def _end(context: click.Context, error: ClipqError) -> NoReturn:
    click.echo(f"error: {error}", err=True)
    context.exit(error.exit_code)


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
