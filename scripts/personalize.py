"""`tff-perfedavg personalize`, from a checkout."""

from tff_perfedavg.commands.personalize import define, main
from tff_perfedavg.experiments.settings import command

if __name__ == "__main__":
    command.run(main, define)
