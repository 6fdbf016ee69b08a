"""``python -m finescope``: the command, also where its script isn't on the path, and for ``torchrun -m``."""

from finescope.cli import main

if __name__ == "__main__":
    main(prog_name="finescope")
