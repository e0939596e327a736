"""Records of a fleet's users: device class, speed, link and time zone.

One record of 16 bytes a user, in memory or mapped from a file. A user's record depends
on the fleet, the seed and the user's number alone, not on how many users there are.
"""

from __future__ import annotations

import os
import pathlib

import numpy as np

from tff_perfedavg import errors
from tff_perfedavg.files import atomic_write
from tff_perfedavg.fleet import draws
from tff_perfedavg.fleet.devices import FleetSpec

# device: place among the spec's classes; quarters: of an hour, local time minus UTC;
# speed, down, up: the user's over its class's median.
RECORD = np.dtype(
    [
        ("device", "<u2"),
        ("quarters", "<i2"),
        ("speed", "<f4"),
        ("down", "<f4"),
        ("up", "<f4"),
    ]
)
# Users drawn at once, so that what draws need on the way does not count.
_CHUNK = 1 << 18


def draw_users(
    spec: FleetSpec, num_users: int, seed: int, ranks: np.ndarray | None = None
) -> np.ndarray:
    """Draws the records of a fleet's users.

    Args:
      spec: the fleet.
      num_users: how many.
      seed: the fleet's.
      ranks: float `[users]` from 0 to 1, where a user stands in an order that ties
        classes to data: the slowest class has the lowest ranks. None for classes
        drawn independently of all else.

    Returns:
      `RECORD` `[users]`.
    """
    found = np.empty([num_users], RECORD)
    for first in range(0, num_users, _CHUNK):
        users = np.arange(first, min(first + _CHUNK, num_users))
        mine = None if ranks is None else ranks[users]
        found[users] = _draw(spec, users, seed, mine)
    return found


def _draw(
    spec: FleetSpec, users: np.ndarray, seed: int, ranks: np.ndarray | None
) -> np.ndarray:
    by_speed = np.argsort([device.speed for device in spec.devices], kind="stable")
    if ranks is None:
        ranks = draws.uniform(seed, draws.DEVICE, users)
    device = by_speed[_chosen(ranks, [spec.devices[i].share for i in by_speed])]
    zone = _chosen(
        draws.uniform(seed, draws.ZONE, users), [zone.share for zone in spec.zones]
    )

    def spread(role, sigmas):
        return np.exp(np.array(sigmas)[device] * draws.normal(seed, role, users))

    links = [d.wifi.sigma for d in spec.devices]
    found = np.empty([len(users)], RECORD)
    found["device"] = device
    found["quarters"] = np.array([4 * z.utc_hours for z in spec.zones], int)[zone]
    found["speed"] = spread(draws.PACE, [d.speed_sigma for d in spec.devices])
    found["down"] = spread(draws.DOWN, links)
    found["up"] = spread(draws.UP, links)
    return found


def _chosen(uniform: np.ndarray, shares: list[float]) -> np.ndarray:
    """Returns which of several shares each number from 0 to 1 falls into."""
    limits = np.cumsum(shares)[:-1]
    return np.searchsorted(limits, uniform, side="right")


def write_users(users: np.ndarray, path: str | os.PathLike) -> None:
    """Writes users' records atomically.

    Args:
      users: `RECORD` `[users]`.
      path: of the file.
    """
    with atomic_write(pathlib.Path(path)) as file:
        for first in range(0, len(users), _CHUNK):
            file.write(users[first : first + _CHUNK].tobytes())


def open_users(path: str | os.PathLike) -> np.ndarray:
    """Opens users' records as a memory map.

    Raises:
      DataError: if the file is no such file.
    """
    path = pathlib.Path(path)
    size = path.stat().st_size if path.is_file() else 0
    if not size or size % RECORD.itemsize:
        raise errors.DataError(
            f"{path} is no file of a fleet's users: it has {size} bytes, and each user "
            f"takes {RECORD.itemsize}. Draw them again."
        )
    return np.memmap(path, RECORD, mode="r")
