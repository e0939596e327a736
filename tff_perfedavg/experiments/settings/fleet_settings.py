"""Settings of a device fleet and of its round protocol.

Plain Python, so that a command checks its flags before anything else is loaded.
"""

from __future__ import annotations

import dataclasses
import pathlib

from tff_perfedavg import errors
from tff_perfedavg.fleet import names
from tff_perfedavg.settings import check_choices, setting, settings_of

# In the name of `fleet_work`: the method of the run whose tasks it tells of.
METHOD = "{method}"


# Settings of the round protocol.
_OF_PROTOCOL = (
    "over_selection",
    "round_deadline",
    "min_reports",
    "late_reports",
    "leaving_devices",
    "device_conditions",
    "battery_limit",
    "round_interval",
)


@dataclasses.dataclass(frozen=True)
class FleetSettings:
    """Settings of a device fleet and of its round protocol.

    See `tff_perfedavg.fleet.protocol.SyncRound`, whose goal are the users of a round.
    """

    fleet: str = setting(
        names.NONE,
        "none; or a fleet of phones with time, network and energy: ideal, mixed, or a "
        "directory with a fleet.toml.",
    )
    fleet_work: str = setting(
        "",
        "What a task costs: an exported .tflite file, whose meta_update is measured on "
        "this machine, or the .json of an earlier measurement. {method} in its name "
        "stands for the run's.",
    )
    upload_bits: float | None = setting(
        None,
        "Bits that a phone sends for each weight of its update; by default the 32 of "
        "float32, or what fleet_work says. Needed where updates are compressed.",
    )
    device_table: str = setting(
        "",
        "CSV of milliseconds measured on phones (class, fixed_ms, step_ms), in the "
        "place of this machine's.",
    )
    over_selection: float = setting(1.0, "Phones chosen for each report that is taken.")
    round_deadline: float | None = setting(
        None, "Seconds after which the server waits no longer; by default never."
    )
    min_reports: int | None = setting(
        None, "Reports without which a round is abandoned; by default all."
    )
    late_reports: str = setting(
        names.DROP,
        "drop: phones do all steps, and may come late; partial: they do as many as the "
        "deadline leaves time for.",
        names.LATE_REPORTS,
    )
    leaving_devices: str = setting(
        names.ABORT,
        "What phones do that go off in the middle: abort the task, or pause it.",
        names.LEAVING,
    )
    device_conditions: str = setting(
        "",
        f"When phones may work, some of {', '.join(names.CONDITIONS)}, with commas.",
    )
    battery_limit: float = setting(
        1.0, "Share of a full battery that a day's tasks may take; 1 for no limit."
    )
    round_interval: float = setting(
        0.0, "Seconds from a round's end to the choice of phones for the next."
    )
    fleet_schedule: str = setting(
        "",
        "A schedule.npz of simulate_fleet, whose rounds are replayed in the place of "
        "simulating them; how long they took is its own.",
    )
    device_assignment: str = setting(
        names.INDEPENDENT,
        "What a user's device class goes by: nothing, the number of rows (most rows, "
        "fastest phone), or the most frequent label.",
        names.ASSIGNMENTS,
    )

    def __post_init__(self):
        check_choices(self)
        bits = self.upload_bits
        if bits is not None and not 0 < bits <= 32:
            raise errors.ConfigError(
                f"upload_bits is {bits:g}; it must be above 0, at most 32."
            )
        for need in self.needs:
            errors.check_known("device_conditions", need, names.CONDITIONS)
        if self.is_on:
            self._check_replay()
            return
        for name, field in settings_of(type(self)).items():
            if getattr(self, name) != field.default:
                raise errors.ConfigError(
                    f"{name} is {getattr(self, name)}, but there is no fleet; give one "
                    "(fleet=mixed), or leave it out."
                )

    def _check_replay(self) -> None:
        fields = settings_of(type(self))
        for name in _OF_PROTOCOL if self.fleet_schedule else ():
            if getattr(self, name) != fields[name].default:
                raise errors.ConfigError(
                    f"{name} is {getattr(self, name)}, but rounds are those of "
                    f"fleet_schedule, {self.fleet_schedule}; leave out one of the two."
                )

    @property
    def is_on(self) -> bool:
        """Whether there is a fleet."""
        return self.fleet != names.NONE

    @property
    def files(self) -> list[pathlib.Path]:
        """The files that describe the fleet, if it is a directory, and its rounds."""
        found = [pathlib.Path(self.fleet_schedule)] if self.fleet_schedule else []
        if self.fleet not in (names.NONE, names.IDEAL, names.MIXED):
            directory = pathlib.Path(self.fleet)
            found += [directory / names.FILE_NAME, directory / names.TRACE_NAME]
        return found

    @property
    def needs(self) -> tuple[str, ...]:
        """The conditions under which phones may work."""
        given = (need.strip() for need in self.device_conditions.split(","))
        return tuple(need for need in given if need)
