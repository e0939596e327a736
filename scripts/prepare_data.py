"""`tff-perfedavg prepare-data`, from a checkout."""

from tff_perfedavg.commands.prepare_data import define, main
from tff_perfedavg.experiments.settings import command

if __name__ == "__main__":
    command.run(main, define)
