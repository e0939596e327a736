"""`tff-perfedavg advise`, from a checkout."""

from tff_perfedavg.commands.advise import define, main
from tff_perfedavg.experiments.settings import command

if __name__ == "__main__":
    command.run(main, define)
