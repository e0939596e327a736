"""Five signs as a person would draw them: strokes of points, never twice the same."""

import itertools

import numpy as np


def _circle():
    angles = np.linspace(-1.4, 2 * np.pi - 1.5, 13)
    return [np.stack([0.5 + 0.35 * np.cos(angles), 0.5 + 0.35 * np.sin(angles)], 1)]


def _cross():
    return [_line((0.2, 0.2), (0.8, 0.8)), _line((0.8, 0.2), (0.2, 0.8))]


def _zigzag():
    return [_line((0.1, 0.4), (0.3, 0.65), (0.5, 0.35), (0.7, 0.65), (0.9, 0.35))]


def _hook():
    return [_line((0.55, 0.1), (0.55, 0.75), (0.45, 0.9), (0.3, 0.8))]


def _gate():
    return [
        _line((0.25, 0.9), (0.25, 0.15), (0.8, 0.15), (0.8, 0.9)),
        _line((0.25, 0.5), (0.8, 0.5)),
    ]


def _line(*corners):
    parts = [
        np.linspace(start, end, 3, endpoint=False)
        for start, end in itertools.pairwise(corners)
    ]
    return np.concatenate([*parts, [corners[-1]]])


SIGNS = {
    "Moon": _circle,
    "Crossing": _cross,
    "Waves": _zigzag,
    "Hook": _hook,
    "Gate": _gate,
}


def drawn(name, seed):
    """A drawing of a sign: turned, stretched, moved, and with an unsteady hand."""
    rng = np.random.default_rng([seed, list(SIGNS).index(name)])
    angle, (wide, high) = rng.normal(0, 0.1), rng.uniform(0.75, 0.95, 2)
    turn = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    strokes = []
    for stroke in SIGNS[name]():
        points = (stroke - 0.5) * [wide, high] @ np.array(turn).T + 0.5
        points = points + rng.normal(0, 0.008, points.shape) + rng.normal(0, 0.01, 2)
        strokes.append(np.clip(points, 0.03, 0.97).tolist())
    return strokes
