"""`python -m tff_perfedavg` is the command `tff-perfedavg`."""

from tff_perfedavg.commands.main import main

if __name__ == "__main__":
    main()
