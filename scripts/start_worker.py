"""`tff-perfedavg start-worker`, from a checkout."""

from tff_perfedavg.commands.start_worker import define, main
from tff_perfedavg.experiments.settings import command

if __name__ == "__main__":
    command.run(main, define)
