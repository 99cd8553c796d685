"""``python -m noisylightning``."""

from noisylightning.cli import main

if __name__ == "__main__":
    main()
