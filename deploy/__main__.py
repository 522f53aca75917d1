"""The entry point: ``deploy`` and ``python -m deploy``."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; Ctrl-C is handled from the first import on."""
    try:
        from deploy.cli import execute

        code = execute()
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted\n")
        code = 1
    sys.exit(code)


if __name__ == "__main__":
    main()
