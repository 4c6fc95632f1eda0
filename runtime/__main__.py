"""``python -m ds2ds`` is the command ``ds2ds``."""

from ds2ds.cli import main

if __name__ == "__main__":
    main()
