"""`tff-perfedavg personalize-on-device`, from a checkout."""

from tff_perfedavg.commands.personalize_on_device import define, main
from tff_perfedavg.experiments.settings import command

if __name__ == "__main__":
    command.run(main, define)
