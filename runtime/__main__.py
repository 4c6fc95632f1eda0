"""``python -m ds2ds`` is the command ``ds2ds``."""

import sys


def main() -> None:
    """The command line, which takes half a second to import: Ctrl-C ends that as it ends what runs later."""
    try:
        from ds2ds.cli import main as command_line

        command_line()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
