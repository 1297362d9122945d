"""Render examples/picture.png: a mountain lake in evening light, computed and not photographed.

    python examples/render_picture.py [OUT.png]

Purpose: a picture of our own with what photographs have (soft sky, sharp ridges, fine needles and
grass), for the README and for trying the codec. NumPy and Pillow only, no input, fixed seed;
about twenty seconds on one core.

How: a terrain made of gradient noise is seen by a camera over a lake. For each column the first
terrain sample along the ray is found in a running minimum over depth, which gives every pixel a
point in the world; it is shaded there by slope, sun, shadow and haze. Trees are drawn over it, the
lake mirrors the result, and the near shore with grass and pines comes last. Everything is drawn at
twice the size and averaged down.

Units: kilometres; x to the right, y up, z away from the camera. Colours are linear RGB, 0..1,
until `encode` turns them into display values, 0..255.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SCALE = 2
WIDTH, HEIGHT = 768 * SCALE, 512 * SCALE
HORIZON = 0.50 * HEIGHT
FOCAL = 1.05 * WIDTH
EYE = 0.012

SUN = np.array([0.84, 0.30, -0.30]) / np.linalg.norm([0.84, 0.30, -0.30])
SUNLIGHT = np.array([3.9, 1.95, 0.84])
SKYLIGHT = np.array([0.17, 0.24, 0.40])

RNG = np.random.default_rng(20240607)
PERMUTATION = np.tile(RNG.permutation(512), 3).astype(np.int32)
ANGLES = np.arange(512) * (2 * np.pi / 512)
GRADIENTS = np.stack([np.cos(ANGLES), np.sin(ANGLES)]).astype(np.float32)


def noise(x, y):
    """Gradient noise, about -0.7..0.7, one feature a unit."""
    x, y = np.asarray(x, np.float32), np.asarray(y, np.float32)
    column, row = np.floor(x), np.floor(y)
    fx, fy = x - column, y - row
    column, row = column.astype(np.int32) & 511, row.astype(np.int32) & 511

    def corner(dx, dy):
        index = PERMUTATION[PERMUTATION[column + dx] + row + dy]
        return GRADIENTS[0, index] * (fx - dx) + GRADIENTS[1, index] * (fy - dy)

    u, v = (t * t * t * (t * (t * 6 - 15) + 10) for t in (fx, fy))
    top = corner(0, 0) * (1 - u) + corner(1, 0) * u
    bottom = corner(0, 1) * (1 - u) + corner(1, 1) * u
    return top * (1 - v) + bottom * v


def fractal(x, y, octaves, *, gain=0.5, ridged=False):
    """Sum of octaves of noise; `ridged` folds each one into sharp crests (then 0..1)."""
    total, weight, amplitude, scale = 0.0, 1.0, 1.0, 1.0
    for octave in range(octaves):
        # each octave is turned, so that the grids of the octaves do not line up
        c, s = np.cos(octave * 1.1), np.sin(octave * 1.1)
        value = noise((c * x - s * y) * scale + 17.3 * octave, (s * x + c * y) * scale - 9.1)
        if ridged:
            value = (1 - np.abs(value) * 1.6) ** 2 * weight
            weight = np.clip(value * 1.6, 0, 1)
        total = total + amplitude * value
        amplitude, scale = amplitude * gain, scale * 2.03
    return total * (1 - gain) if ridged else total


def smooth(low, high, value):
    """0 below `low`, 1 above `high`, smooth in between."""
    t = np.clip((value - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def mix(a, b, share):
    """From colour `a` to colour `b` by `share`, an array of one value a pixel."""
    a, b = np.asarray(a), np.asarray(b)
    return a + (b - a) * np.asarray(share)[..., None]


def terrain(x, z, octaves=9):
    """Height of the ground at (x, z); below 0 lies the lake."""
    bend = 0.35 * fractal(x * 0.5 + 40, z * 0.5, 3)
    peaks = fractal(x * 0.30 + 3.7 + bend, z * 0.30 + 1.2 - bend, octaves, gain=0.44, ridged=True)
    rolling = fractal(x * 0.9 - 5.0, z * 0.9 + 8.0, max(octaves - 3, 2))
    massif = 1.45 + 0.75 * np.exp(-(((x - 1.9) / 1.7) ** 2))
    far = massif * smooth(4.2, 10.5, z + 0.20 * np.abs(x))
    sides = smooth(0.75, 3.4, np.abs(x + 0.35) - 0.12 * z + 0.5 * rolling) * 0.62
    shore = smooth(3.0, 5.0, z + 1.4 * rolling) * 0.13
    return peaks * far + (sides + shore) * (0.6 + 0.8 * rolling + 0.5 * peaks) - 0.06


def sky(azimuth, elevation):
    """Colour of the sky; azimuth = x / z and elevation = y / z of the ray."""
    toward_sun = smooth(-0.9, 0.9, azimuth)
    zenith = (0.10, 0.20, 0.42)
    middle = mix((0.38, 0.47, 0.66), (0.62, 0.55, 0.58), toward_sun)
    low = mix((0.86, 0.58, 0.46), (1.25, 0.78, 0.40), toward_sun)
    colour = mix(low, middle, smooth(0.0, 0.22, elevation))
    colour = mix(colour, zenith, smooth(0.10, 0.62, elevation))

    # a sheet of clouds seen in perspective, lit from the side of the sun
    distance = 1 / (np.maximum(elevation, 0) + 0.10)
    u, v = azimuth * distance * 0.62, distance * 0.85
    warp = fractal(u * 0.7 + 4, v * 0.7, 3)
    density = fractal(u * 0.9 + 0.9 * warp, v * 1.3 + 0.5 * warp + 31, 7, gain=0.53)
    toward = fractal((u + 0.16) * 0.9 + 0.9 * warp, v * 1.3 + 0.5 * warp + 31 - 0.05, 6, gain=0.53)
    cover = smooth(0.0, 0.36, density + 0.10 * smooth(0.05, 0.3, elevation))
    light = np.clip(0.55 + 1.9 * (density - toward), 0, 1.2)
    light = light * (1 - 0.45 * smooth(0.2, 0.7, density))
    shade = mix((0.36, 0.33, 0.42), (0.52, 0.38, 0.38), toward_sun)
    bright = mix((1.02, 0.66, 0.55), (1.35, 0.88, 0.54), toward_sun)
    clouds = mix(shade, bright, light)
    return mix(colour, clouds, cover * smooth(0.015, 0.10, elevation))


def trace():
    """Depth z of the first ground at each pixel, inf where there is none, and x / z of columns."""
    z = np.geomspace(0.3, 24, 1500).astype(np.float32)[:, None]
    slope = ((np.arange(WIDTH) + 0.5 - WIDTH / 2) / FOCAL).astype(np.float32)[None, :]
    rows = HORIZON - FOCAL * (terrain(slope * z, z) - EYE) / z
    nearest = np.minimum.accumulate(rows, axis=0)
    depth = np.full((HEIGHT, WIDTH), np.inf, np.float32)
    centres = np.arange(HEIGHT) + 0.5
    for column in range(WIDTH):
        # the rows fall as z grows; the first sample at or above a pixel's centre is what it sees
        seen = np.searchsorted(-nearest[:, column], -centres)
        hit = (seen < len(z)) & (seen > 0)
        after = seen[hit]
        r0, r1 = nearest[after - 1, column], nearest[after, column]
        share = np.clip((r0 - centres[hit]) / np.maximum(r0 - r1, 1e-6), 0, 1)
        depth[hit, column] = z[after - 1, 0] + share * (z[after, 0] - z[after - 1, 0])
    return depth, slope


def ground(x, z):
    """Colour of the ground at points (x, z), before haze."""
    step = 0.0012 * z + 0.001
    height = terrain(x, z, 11)
    normal = np.stack(
        [
            (height - terrain(x + step, z, 11)) / step,
            np.ones_like(height),
            (height - terrain(x, z + step, 11)) / step,
        ],
        axis=-1,
    )
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    steep = 1 - normal[..., 1]

    lit = np.ones_like(height)
    for distance in np.geomspace(0.03, 3.0, 18):
        above = height + SUN[1] * distance
        blocked = terrain(x + SUN[0] * distance, z + SUN[2] * distance, 6) - above
        lit = np.minimum(lit, 1 - smooth(-0.03 * distance, 0.05 * distance, blocked))

    patches = fractal(x * 6, z * 6, 5)
    fine = fractal(x * 60, z * 60, 3)
    rock = mix((0.30, 0.27, 0.25), (0.17, 0.155, 0.155), smooth(-0.4, 0.4, fine))
    forest = mix((0.030, 0.055, 0.028), (0.075, 0.095, 0.035), 0.5 + 0.7 * fine)
    meadow = mix((0.17, 0.17, 0.055), (0.10, 0.13, 0.04), 0.5 + patches)
    albedo = mix(meadow, forest, smooth(-0.25, 0.15, patches + 0.6 * smooth(0.02, 0.25, height) - 0.2))
    albedo = mix(albedo, rock, smooth(0.42, 0.68, height + 0.30 * patches + 0.5 * steep))
    snow = smooth(0.75, 1.15, height + 0.30 * patches)
    snow = snow * (1 - smooth(0.34, 0.62, steep + 0.12 * fine))
    albedo = mix(albedo, (0.86, 0.88, 0.92), snow)

    sunlight = np.clip(normal @ SUN, 0, None) * lit
    skylight = 0.55 + 0.45 * normal[..., 1]
    return albedo * (sunlight[..., None] * SUNLIGHT + skylight[..., None] * SKYLIGHT * 1.5)


def haze(colour, azimuth, z):
    """Air in front of something at depth z."""
    air = mix((0.42, 0.47, 0.64), (0.80, 0.63, 0.56), smooth(-0.7, 0.8, azimuth))
    return mix(colour, air, 0.70 * (1 - np.exp(-np.maximum(z - 1.0, 0) / 26.0)))


def encode(linear):
    """Linear light to display values 0..255 (float), with soft highlights and some contrast."""
    x = np.maximum(linear, 0) * 0.66
    curve = x * (2.51 * x + 0.03) / (x * (2.43 * x + 0.59) + 0.14)
    grey = curve.mean(axis=-1, keepdims=True)
    curve = np.clip(grey + 1.12 * (curve - grey), 0, 1)
    return 255 * curve ** (1 / 2.2)


def lake(image, water, azimuth, z):
    """`image` with the water filled in: the scene above, mirrored in small waves."""
    rows, columns = np.nonzero(water)
    z = z[rows, columns]
    x = azimuth[rows, columns] * z
    # calm and gusty stretches; waves shrink with distance as far as a pixel can show them
    gust = smooth(-0.05, 0.40, fractal(x * 1.6 + 3, z * 2.6, 4))
    waves = fractal(x * 60, z * 22, 3, gain=0.6) + 0.8 * fractal(x * 230, z * 90 + 7, 3, gain=0.6)
    tilt = waves * (0.30 + 1.6 * gust)
    reach = FOCAL * 0.018 * tilt * np.clip(0.4 / z, 0.12, 1.6)
    mirrored = np.clip(2 * HORIZON - rows - np.abs(reach) * 1.2 + 0.6 * reach, 0, HORIZON - 1)
    sideways = np.clip(columns + 0.15 * reach, 0, WIDTH - 1)
    reflection = image[mirrored.astype(int), sideways.astype(int)]
    facing = EYE / np.hypot(EYE, z) + 0.03 * tilt
    fresnel = 0.10 + 0.90 * (1 - np.clip(facing, 0, 1)) ** 3.5
    body = (22.0, 48.0, 58.0)
    result = image.copy()
    result[rows, columns] = mix(body, reflection * np.array([0.90, 0.94, 0.97]), fresnel * 0.94)
    return result


def tint(colour, factor=1.0):
    """A colour for drawing: `colour` (0..255) times `factor`."""
    return tuple(int(v) for v in np.clip(np.asarray(colour) * factor, 0, 255))


def conifer(draw, x, y, height, dark, lit):
    """A conifer seen from afar: a jagged cone, its right side in the light."""
    levels = int(np.clip(height / 5, 3, 9))
    left, right = [], []
    for level in range(levels):
        for inset, drop in ((0.45, 0.0), (1.0, 0.9)):
            share = (level + drop) / levels
            half = height * 0.19 * (0.08 + share) * inset * RNG.uniform(0.75, 1.2)
            left.append((x - half, y - height * (1 - share)))
            right.append((x + half * RNG.uniform(0.8, 1.2), y - height * (1 - share)))
    top = (x, y - height)
    draw.polygon([top, *left, *right[::-1]], fill=dark)
    draw.polygon([top, *right, (x + height * 0.02, y)], fill=lit)


def forest(image, depth):
    """Draw conifers on the slopes around the lake, far ones first."""
    picture = Image.fromarray(image.astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    count = 60000
    z = 0.9 * (7.5 / 0.9) ** RNG.random(count)
    x = RNG.uniform(-0.62, 0.62, count) * z
    ground_height = terrain(x, z, 11)
    groves = fractal(x * 2.6, z * 2.6, 4) + 0.25 * RNG.standard_normal(count)
    keep = (ground_height > 0.001) & (ground_height < 0.42) & (groves > -0.02)
    for i in np.argsort(-z):
        if not keep[i]:
            continue
        column = WIDTH / 2 + FOCAL * x[i] / z[i]
        row = HORIZON - FOCAL * (ground_height[i] - EYE) / z[i]
        if not (0 <= column < WIDTH and 0 <= row < HEIGHT):
            continue
        if depth[max(int(row) - 3, 0), int(column)] < z[i] * 0.93:
            continue
        height = FOCAL * RNG.uniform(0.014, 0.026) / z[i]
        air = 0.62 * (1 - np.exp(-z[i] / 9.0))
        grey = np.array([150, 140, 150]) * air
        light = RNG.uniform(0.75, 1.25)
        dark = tuple((np.array([20, 34, 28]) * (1 - air) * light + grey).astype(int))
        lit = tuple((np.array([86, 84, 34]) * (1 - air) * light + grey).astype(int))
        conifer(draw, column, row + 1, height, dark, lit)
    return np.asarray(picture).astype(float)


def bank(x):
    """Row where the near shore begins, at column x."""
    t = x / WIDTH
    rise = 0.20 * np.exp(-((t / 0.30) ** 2)) + 0.085 * np.exp(-(((1.02 - t) / 0.25) ** 2)) + 0.028
    return HEIGHT * (1 - rise) - 6 * SCALE * fractal(x / (60 * SCALE), x * 0 + 5, 4)


def pine(draw, x, y, height):
    """A pine close by: a trunk, and drooping branches with needles, the lowest first."""
    for share in np.linspace(0, 0.97, 80):
        half, row = height * 0.014 * (1.04 - share), y - height * share
        bark = RNG.uniform(0.7, 1.2)
        draw.rectangle([x - half, row - height / 70, x + half, row], fill=tint((30, 24, 22), bark))
        draw.rectangle([x + half * 0.4, row - height / 70, x + half, row], fill=tint((84, 60, 42), bark))
    unit = height / 330
    for share in np.sort(RNG.random(150) ** 0.85)[::-1] * 0.88:
        # seen from the front, a branch is as long as its angle to the line of sight lets it be
        reach = height * 0.24 * (0.06 + share) * np.sin(RNG.uniform(-np.pi / 2, np.pi / 2)) * 1.05
        start, droop = y - height * (1 - share * 0.97), RNG.uniform(0.12, 0.36)
        bend = droop * (abs(reach) + 0.2 * height * 0.24 * share)
        for t in np.linspace(0.02, 1, int(8 + abs(reach) / (1.8 * SCALE))):
            px, py = x + reach * t, start + bend * t * t * (1.6 - 0.6 * t)
            for _ in range(5):
                length = (2.6 + 4.0 * (1 - t)) * unit * RNG.uniform(0.6, 1.4)
                angle = RNG.uniform(0.15, np.pi - 0.15)
                light = np.clip(0.10 + 0.9 * (reach > 0) * t * RNG.random() + 0.12 * RNG.random(), 0, 1)
                colour = mix((13.0, 25.0, 21.0), (126.0, 116.0, 52.0), light)
                end = (px + length * np.cos(angle), py + length * np.sin(angle) * 0.8)
                draw.line([(px, py), end], fill=tint(colour), width=SCALE // 2 + 1)


def grass(draw, count):
    """Blades of grass and flowers on the near shore, from the back to the front."""
    columns = RNG.uniform(-10, WIDTH + 10, count)
    edge = bank(columns)
    bases = edge + (HEIGHT + 14 * SCALE - edge) * RNG.random(count)
    flowers = fractal(columns / (50 * SCALE), bases / (25 * SCALE), 3)
    for i in np.argsort(bases):
        near = (bases[i] - HEIGHT * 0.78) / (HEIGHT * 0.22)
        length = SCALE * (9 + 20 * max(near, 0)) * RNG.uniform(0.55, 1.3)
        lean = RNG.normal(0.12, 0.30)
        start = np.array([columns[i], bases[i]])
        tip = start + length * np.array([np.sin(lean), -np.cos(lean)])
        knee = (start + tip) / 2 + [-lean * length * 0.18, 0]
        light = RNG.random() ** 1.6
        low = mix((16.0, 26.0, 12.0), (52.0, 62.0, 20.0), light)
        high = mix((44.0, 62.0, 22.0), (212.0, 176.0, 84.0), light)
        thick = SCALE if near > 0.4 else max(SCALE // 2, 1)
        draw.line([tuple(start), tuple(knee)], fill=tint(low), width=thick)
        draw.line([tuple(knee), tuple(tip)], fill=tint(high), width=max(thick - 1, 1))
        if flowers[i] > 0.22 and RNG.random() < 0.16:
            size = SCALE * (0.9 + 1.2 * max(near, 0))
            petals = [(236, 226, 214), (238, 190, 70), (150, 110, 190)][int(RNG.integers(3))]
            tone = RNG.uniform(0.7, 1.05)
            box = [tip[0] - size, tip[1] - size * 0.8, tip[0] + size, tip[1] + size * 0.8]
            draw.ellipse(box, fill=tint(petals, tone))


def foreground(image):
    """The near shore with its plants, drawn over the lake."""
    rows = np.arange(HEIGHT)[:, None]
    edge = bank(np.arange(WIDTH, dtype=float))[None, :]
    soil = mix(
        (30.0, 30.0, 18.0),
        (70.0, 66.0, 30.0),
        0.5 + fractal(np.arange(WIDTH)[None, :] / 14, rows / 7, 4),
    )
    image = mix(image, soil, smooth(-2, 6, rows - edge))
    picture = Image.fromarray(np.clip(image, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for share, height in ((0.145, 0.50), (0.02, 0.66), (0.085, 0.83), (0.965, 0.30)):
        x = share * WIDTH
        pine(draw, x, bank(np.array([x]))[0] + 10 * SCALE, height * HEIGHT)
    grass(draw, 9000)
    return picture


def main(path):
    """Render the picture and save it at `path`."""
    depth, slope = trace()
    rows = np.arange(HEIGHT)[:, None] + 0.5
    azimuth = np.broadcast_to(slope, depth.shape)
    elevation = np.broadcast_to((HORIZON - rows) / FOCAL, depth.shape)
    water_depth = np.broadcast_to(EYE * FOCAL / np.maximum(rows - HORIZON, 1e-3), depth.shape)
    water = (rows > HORIZON) & (water_depth < depth)
    land = np.isfinite(depth) & ~water
    z = depth[land]

    image = sky(azimuth, elevation)
    image[land] = haze(ground(azimuth[land] * z, z), azimuth[land], z)
    image = forest(encode(image), np.where(water, water_depth, depth))
    picture = foreground(lake(image, water, azimuth, water_depth))
    picture.reduce(SCALE).save(path, optimize=True)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).with_name("picture.png"))
