"""Draws a synthetic person's face: polygons at twice the size, then downsampled and lit.

Coordinates are fractions of the frame from its centre, x to the right and y down. `Identity` describes the person,
`Scene` what is specific to one clip (pose, light, background).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from extract.talkers.canvas import CIRCLE, Canvas, Colour, arc, mirror, mix, oval
from extract.talkers.identity import (
    FRAME_COLOURS,
    HAIR_COLOURS,
    IRIS_COLOURS,
    SKIN_TONES,
    Identity,
)
from extract.talkers.scene import CLOTHES, SIZE, Scene, apply_light

_SUPERSAMPLING = 2
_INK = (26, 18, 18)
_GOLD = (206, 160, 52)
_WHITE = (238, 236, 232)

_EYE_Y, _MOUTH_Y, _EAR_Y = -0.02, 0.22, 0.03
_FACE_Y, _TOP, _CHIN = 0.02, 0.36, 0.35  # the widest line, and the heights above and below it


def render(identity: Identity, scene: Scene, openings: Sequence[float]) -> np.ndarray:
    """Draws one frame for each opening of the mouth, from 0 (closed) to 1: uint8 [openings, 160, 160, 3] RGB."""
    image = Image.new("RGB", (SIZE * _SUPERSAMPLING,) * 2, scene.background)
    canvas = Canvas(image, scene.shift, scene.angle, scene.scale)
    skin = SKIN_TONES[identity.palette.skin]
    hair = HAIR_COLOURS[identity.palette.hair]
    _hair_behind(canvas, identity, hair)
    _body(canvas, skin, CLOTHES[scene.clothes])
    _ears(canvas, identity, skin)
    _hair_cap(canvas, identity, hair)
    _head(canvas, identity, skin)
    _age_lines(canvas, identity, skin)
    _beard(canvas, identity, skin, hair)
    _nose(canvas, identity, skin)
    _eyes(canvas, identity, skin)
    _brows(canvas, identity, hair)
    _glasses(canvas, identity)
    frames = []
    for opening in openings:  # everything else is drawn only once
        frame = image.copy()
        _mouth(Canvas(frame, scene.shift, scene.angle, scene.scale), identity, skin, scene.smile, opening)
        frames.append(np.asarray(frame.reduce(_SUPERSAMPLING)))
    return apply_light(np.stack(frames), scene)


def _half_width(identity: Identity) -> float:
    return 0.27 + 0.006 * identity.face.jaw


def _outline(identity: Identity) -> np.ndarray:
    """Returns the outline of the face: points [48, 2]."""
    face = identity.face
    x, y = CIRCLE.T
    power = 1.0 - 0.13 * face.jaw  # how square the lower half is
    lower = np.sign(x) * np.abs(x) ** np.clip(power, 0.7, 1.3)
    wide = np.where(y > 0, lower, x) * _half_width(identity)
    chin = _CHIN + 0.012 * face.face_length
    return np.stack([wide, _FACE_Y + np.where(y > 0, chin, _TOP) * y], 1)


def _hair_behind(canvas: Canvas, identity: Identity, hair: Colour) -> None:
    style, dark = identity.palette.hair_style, mix(hair, _INK, 0.3)
    if style == "long":
        canvas.fill(oval(0.0, 0.07, 0.36, 0.5, 0.75), dark)
    elif style == "fringe":
        canvas.fill(oval(0.0, -0.06, 0.345, 0.37, 0.7), dark)


def _body(canvas: Canvas, skin: Colour, clothes: Colour) -> None:
    canvas.fill(oval(0.0, 0.62, 0.52, 0.24, 0.8), clothes)
    shade = mix(skin, _INK, 0.22)
    canvas.fill([(-0.13, 0.2), (0.13, 0.2), (0.14, 0.4), (0.0, 0.5), (-0.14, 0.4)], shade)
    canvas.line([(-0.15, 0.395), (0.0, 0.5), (0.15, 0.395)], mix(clothes, _INK, 0.35), 0.014)


def _ears(canvas: Canvas, identity: Identity, skin: Colour) -> None:
    width = _half_width(identity)
    for side in (-1, 1):
        canvas.oval(side * width, _EAR_Y, 0.042, 0.075, mix(skin, _INK, 0.18))
        canvas.oval(side * (width + 0.008), _EAR_Y, 0.02, 0.045, mix(skin, _INK, 0.34))


def _head(canvas: Canvas, identity: Identity, skin: Colour) -> None:
    """Draws earrings, skin below the hairline, cheeks and freckles."""
    outline, x = _outline(identity), _half_width(identity) + 0.016
    for side in (-1, 1) if identity.face.earrings else ():
        canvas.oval(side * x, _EAR_Y + 0.1, 0.026, 0.034, mix(_GOLD, _INK, 0.5))
        canvas.oval(side * x, _EAR_Y + 0.1, 0.019, 0.027, mix(_GOLD, _WHITE, 0.35))
    if identity.palette.hair_style != "receding":
        line = _hairline(identity)
        outline[:, 1] = np.maximum(outline[:, 1], np.interp(outline[:, 0], line[:, 0], line[:, 1]))
    canvas.fill(outline, mix(skin, _INK, 0.18))
    canvas.fill((outline - (0, _FACE_Y)) * (0.93, 0.965) + (0, _FACE_Y), skin)
    for side in (-1, 1):
        canvas.oval(side * 0.165, 0.13, 0.05, 0.036, mix(skin, (214, 84, 76), 0.16))
    if identity.face.freckles:
        dots = ((0.08, 0.07), (0.115, 0.095), (0.15, 0.07), (0.185, 0.1), (0.135, 0.125),
                (0.17, 0.14), (0.1, 0.13), (0.205, 0.065))  # fmt: skip
        for x, y in dots:
            for side in (-1, 1):
                canvas.oval(side * x, y, 0.011, 0.0095, mix(skin, (70, 26, 12), 0.7))


def _age_lines(canvas: Canvas, identity: Identity, skin: Colour) -> None:
    strength = identity.face.lines
    if strength < 0.15:
        return
    ink, width = mix(skin, (50, 22, 14), 0.25 + 0.45 * strength), 0.009 + 0.008 * strength
    rows = 0 if identity.palette.hair_style == "fringe" else 1 + round(2 * strength)
    for row in range(rows):
        canvas.line(arc(-0.12, 0.12, -0.165 - 0.035 * row, 0.012), ink, width)
    for side in (-1, 1):
        fold = np.array([(0.065, 0.115), (0.1, 0.15), (0.118, 0.19), (0.12, 0.235)])
        canvas.line(mirror(fold, side), ink, width)
        canvas.line(mirror(arc(0.075, 0.175, 0.035, -0.018), side), ink, width)
        for end in (-0.045, -0.015, 0.015):
            canvas.line([(side * 0.205, _EYE_Y), (side * 0.24, _EYE_Y + end)], ink, width)


def _beard(canvas: Canvas, identity: Identity, skin: Colour, hair: Colour) -> None:
    kind, dark = identity.face.beard, mix(hair, _INK, 0.5)
    if kind in ("full", "stubble"):
        outline = _outline(identity)
        lower = outline[outline[:, 1] > 0.12]
        lower = lower[np.argsort(lower[:, 0])] * (1.005, 1.01)
        inner = arc(lower[-1, 0], lower[0, 0], 0.12, -0.07)
        colour = dark if kind == "full" else mix(skin, dark, 0.32)
        canvas.fill(np.concatenate([lower, inner]), colour)
    if kind != "none":
        colour = mix(skin, dark, 0.4) if kind == "stubble" else dark
        top = arc(-0.115, 0.115, _MOUTH_Y + 0.01, 0.07)
        canvas.fill(np.concatenate([top, arc(0.115, -0.115, _MOUTH_Y + 0.015, 0.015)]), colour)


def _nose(canvas: Canvas, identity: Identity, skin: Colour) -> None:
    face = identity.face
    half = 0.048 + 0.014 * face.nose_width
    tip = 0.1 + 0.012 * face.nose_length
    shade, dark = mix(skin, _INK, 0.28), mix(skin, _INK, 0.75)
    canvas.fill([(-0.014, -0.03), (0.014, -0.03), (half * 0.8, tip), (-half * 0.8, tip)], shade)
    canvas.fill([(-0.01, -0.04), (0.01, -0.04), (0.02, tip), (-0.02, tip)], mix(skin, _WHITE, 0.12))
    canvas.oval(0.0, tip - 0.004, half * 0.62, 0.022, skin)
    for side in (-1, 1):
        canvas.oval(side * half * 0.75, tip + 0.002, half * 0.36, 0.018, shade)
        canvas.oval(side * half * 0.5, tip + 0.014, half * 0.34, 0.012, dark)


def _mouth(canvas: Canvas, identity: Identity, skin: Colour, smile: float, opening: float) -> None:
    face = identity.face
    half = 0.095 + 0.022 * face.mouth_width
    thick = 0.023 * np.exp(0.42 * face.lip_thickness)
    gap = 0.006 + 0.02 * float(np.clip(opening, 0.0, 1.0))
    rouge = 0.85 if identity.gender == "female" else 0.6
    lip = mix(skin, (150, 26, 38), rouge)
    y = _MOUTH_Y - smile
    along = np.linspace(-1.0, 1.0, 13)
    bend = (1 - along**2)[:, None] * (0.0, 1.0)
    base = np.stack([half * along, np.full(13, y)], 1) + smile * 1.5 * bend
    bow = (np.abs(along) < 0.1)[:, None] * (0.0, 0.25 * thick)
    upper, lower = base - thick * bend + bow, base + (gap + 1.25 * thick) * bend
    canvas.fill(np.concatenate([upper, lower[::-1]]), lip)
    inner = np.concatenate([base, (base + gap * bend)[::-1]]) * (0.86, 1.0)
    canvas.fill(inner, (70, 18, 24))
    canvas.line(lower[3:-3] + (0.0, 0.012), mix(skin, _INK, 0.25), 0.008)


def _hairline(identity: Identity) -> np.ndarray:
    """Returns the lower edge of the hair from left to right, including locks at the sides: points [n, 2]."""
    edge = _half_width(identity)
    style = identity.palette.hair_style
    if style == "short":
        right = [(0.0, -0.245), (0.1, -0.245), (0.21, -0.19), (edge - 0.02, -0.06), (edge, 0.0)]
    elif style == "fringe":
        right = [(0.0, -0.14), (0.22, -0.125), (edge - 0.03, 0.05), (edge + 0.01, 0.12)]
    else:
        right = [(0.0, -0.29), (0.16, -0.17), (edge - 0.035, 0.02), (edge + 0.02, 0.2)]
    points = np.array(right)
    return np.concatenate([mirror(points, -1)[:0:-1], points])


def _hair_cap(canvas: Canvas, identity: Identity, hair: Colour) -> None:
    """Draws the hair over the skull; the face is drawn over it later, up to the hairline."""
    width = _half_width(identity)
    if identity.palette.hair_style == "receding":
        for side in (-1, 1):
            canvas.oval(side * (width - 0.01), -0.09, 0.05, 0.13, hair)
        return
    half = np.linspace(np.pi, 2 * np.pi, 25)
    crown = np.stack([(width + 0.035) * np.cos(half), -0.05 + 0.4 * np.sin(half)], 1)
    ends = _hairline(identity)[[-1, 0]]
    _strands(canvas, np.concatenate([crown, ends]), hair, identity.face.hair_texture)


def _strands(canvas: Canvas, cap: np.ndarray, hair: Colour, texture: str) -> None:
    """Fills the cap, points [n, 2], with strands: radial for straight hair, concentric for wavy hair.

    The pattern is the same for every style, since the forehead is drawn over it. Dark and bright strands are balanced,
    so that both textures have the same colour at low resolution.
    """
    red, green, blue = hair
    dark = (max(0, red - 28), max(0, green - 28), max(0, blue - 28))
    bright = (min(255, red + 42), min(255, green + 42), min(255, blue + 42))
    canvas.fill(cap, dark)
    crown = cap[:25]
    if texture == "straight":
        for k in range(1, 24, 3):
            canvas.fill([crown[k - 1], crown[k], crown[k] * 0.5, crown[k - 1] * 0.5], bright)
    else:
        for step, scale in enumerate((0.91, 0.8, 0.69, 0.58)):
            ring = (crown - (0.0, -0.05)) * scale + (0.0, -0.05)
            canvas.fill(ring, dark if step % 2 else bright)


def _eyes(canvas: Canvas, identity: Identity, skin: Colour) -> None:
    face = identity.face
    x = 0.118 + 0.005 * face.eye_spacing
    half, tall = 0.055 + 0.01 * face.eye_size, 0.031 + 0.0085 * face.eye_size
    iris = IRIS_COLOURS[identity.palette.iris]
    socket, lid = mix(skin, _INK, 0.16), mix(skin, _INK, 0.8)
    for side in (-1, 1):
        lean = np.array([[1.0, -0.11 * face.eye_tilt * side], [0.0, 1.0]])  # outer corner up
        centre_x, centre_y = side * x, _EYE_Y
        centre = np.array([centre_x, centre_y])
        top = arc(-half, half, 0.0, tall, 11)
        white = np.concatenate([top, arc(half, -half, 0.0, -0.8 * tall, 11)]) @ lean + centre
        canvas.oval(centre_x, centre_y, half * 1.2, tall * 1.5, socket)
        canvas.fill(white, _WHITE)
        radius = min(0.028, 0.9 * tall)
        canvas.oval(centre_x, centre_y, radius, radius, mix(iris, _INK, 0.3))
        canvas.oval(centre_x, centre_y, 0.8 * radius, 0.8 * radius, iris)
        canvas.oval(centre_x, centre_y, 0.45 * radius, 0.45 * radius, (10, 8, 10))
        canvas.oval(centre_x + 0.008, centre_y - 0.008, 0.005, 0.005, _WHITE)
        thick = 0.015 if identity.gender == "female" else 0.009
        canvas.line(top @ lean + centre, lid, thick)


def _brows(canvas: Canvas, identity: Identity, hair: Colour) -> None:
    face = identity.face
    colour = mix(hair, _INK, 0.75)
    thick = 0.021 * np.exp(0.5 * face.brow_thickness)
    y = _EYE_Y - 0.092 - 0.008 * face.brow_height
    centre = 0.118 + 0.005 * face.eye_spacing
    for side in (-1, 1):
        upper = arc(-0.07, 0.07, 0.0, 0.016)
        lower = arc(0.07, -0.07, 0.0, 0.016) * (0.95, 1.0)
        taper = 0.5 * thick * np.interp(lower[:, :1] * side, (-0.07, 0.07), (1.0, 0.45)) * (0, 1)
        points = np.concatenate([upper - taper[::-1], lower + taper])
        points[:, 1] -= 0.17 * face.brow_angle * side * points[:, 0]
        canvas.fill(points + (side * centre, y), colour)


def _glasses(canvas: Canvas, identity: Identity) -> None:
    kind = identity.face.glasses
    if kind == "none":
        return
    colour = FRAME_COLOURS[identity.palette.frame]
    x, width = 0.126 + 0.003 * identity.face.eye_spacing, 0.026
    half, tall, power = (0.088, 0.085, 1.0) if kind == "round" else (0.094, 0.066, 0.4)
    for side in (-1, 1):
        rim = oval(side * x, _EYE_Y + 0.006, half, tall, power)
        canvas.line(np.concatenate([rim, rim[:2]]), colour, width)
        canvas.line([(side * (x + half), _EYE_Y), (side * 0.275, _EYE_Y - 0.01)], colour, width)
    canvas.line(arc(half - x, x - half, _EYE_Y, 0.012, 5), colour, width)
