"""Fleets for tests: a device class whose numbers are easy to reckon with."""

import dataclasses

import numpy as np

from tff_perfedavg.fleet import devices, population
from tff_perfedavg.fleet.cost import Work
from tff_perfedavg.fleet.fleet import Fleet

# A task of 1 s down, 2 + 10 * 0.5 s of training and 1 s up where the speed is 1 and
# the link has 8 Mbit/s: 9 s.
WORK = Work(steps=10, fixed_s=2.0, step_s=0.5, bytes_down=1_000_000, bytes_up=1_000_000)
LINK = devices.Link(
    down_mbps=8,
    up_mbps=8,
    sigma=0,
    receive_watts=devices.Estimate(0.5, 1, 2),
    send_watts=devices.Estimate(1, 2, 4),
)
DEVICE = devices.DeviceClass(
    name="phone",
    share=1.0,
    speed=1.0,
    speed_sigma=0.0,
    training_watts=devices.Estimate(1, 3, 6),
    battery_wh=devices.Estimate(10, 15, 20),
    wifi=LINK,
    mobile=LINK,
)


def spec_of(*classes, drop_outs_per_hour=0.0, zones=None, **conditions):
    """A fleet of these classes, by default of `DEVICE` alone."""
    return devices.FleetSpec(
        name="test",
        devices=classes or (DEVICE,),
        zones=zones or (devices.Zone(0, 1.0),),
        conditions=conditions,
        drop_outs_per_hour=drop_outs_per_hour,
    )


def fleet_of(spec, num_users, seed=0, trace=None):
    return Fleet(spec, population.draw_users(spec, num_users, seed), seed, trace)


def device(**changes):
    return dataclasses.replace(DEVICE, **changes)


def run(simulator, num_rounds):
    """All attempts of so many rounds."""
    return [s for number in range(num_rounds) for s in simulator.next_round(number)]


def tasks_of(steps):
    return np.concatenate([step.tasks for step in steps])
