"""`tff-perfedavg reproduce-paper`, from a checkout."""

from tff_perfedavg.commands.reproduce_paper import define, main
from tff_perfedavg.experiments.settings import command

if __name__ == "__main__":
    command.run(main, define)
