"""What the pictures show and how people would ask for them: scenes, captions, and what is held out.

A scene is one glyph, or two, on a background:

    Scene(items=[Item(glyph, size, x, y, role), ...], background)

`role` names the size and the place ("normal", "small top left", "above", ...). A scene whose
(glyph, background, role) hashes into one twentieth is held out: training never draws it, the
evaluation draws nothing else.
"""
import json
import zlib
from collections import defaultdict
from dataclasses import dataclass

import numpy as np

PICTURE = 256

# name: (colour at the top, colour at the bottom)
BACKGROUNDS = {
    "soft": ((248, 243, 234), (248, 243, 234)),      # the one a prompt gets that names none
    "white": ((255, 255, 255), (255, 255, 255)),
    "black": ((22, 22, 26), (22, 22, 26)),
    "grey": ((152, 154, 160), (152, 154, 160)),
    "red": ((214, 62, 62), (214, 62, 62)),
    "orange": ((242, 150, 64), (242, 150, 64)),
    "yellow": ((251, 216, 88), (251, 216, 88)),
    "green": ((96, 180, 98), (96, 180, 98)),
    "light green": ((190, 230, 180), (190, 230, 180)),
    "dark green": ((30, 92, 62), (30, 92, 62)),
    "teal": ((54, 152, 150), (54, 152, 150)),
    "light blue": ((166, 214, 247), (166, 214, 247)),
    "blue": ((66, 114, 214), (66, 114, 214)),
    "navy": ((26, 38, 86), (26, 38, 86)),
    "purple": ((134, 86, 190), (134, 86, 190)),
    "lavender": ((214, 200, 244), (214, 200, 244)),
    "pink": ((247, 176, 202), (247, 176, 202)),
    "brown": ((132, 90, 62), (132, 90, 62)),
    "beige": ((236, 220, 190), (236, 220, 190)),
    "sunset": ((92, 66, 148), (255, 166, 96)),
    "night sky": ((12, 16, 48), (62, 62, 128)),
    "sky": ((96, 176, 240), (214, 238, 252)),
    "sea": ((74, 190, 214), (18, 74, 140)),
    "meadow": ((206, 234, 160), (94, 170, 84)),
}
BACKGROUND_NAMES = list(BACKGROUNDS)
DEFAULT_BACKGROUND = 0
BACKGROUND_ALSO = {   # other ways to ask for one
    "sunset": ["at sunset"], "night sky": ["at night"], "sky": ["in the sky"],
    "sea": ["in the sea"], "meadow": ["in a meadow"], "grey": ["on a gray background"],
    "lavender": ["on a light purple background"], "navy": ["on a dark blue background"],
}

NORMAL, HUGE, SMALL = 176, 240, 112
NEAR, MIDDLE, FAR = 64, 128, 192
PLACES = {
    "middle": (MIDDLE, MIDDLE), "top left": (NEAR, NEAR), "top": (MIDDLE, NEAR), "top right": (FAR, NEAR),
    "left": (NEAR, MIDDLE), "right": (FAR, MIDDLE), "bottom left": (NEAR, FAR), "bottom": (MIDDLE, FAR),
    "bottom right": (FAR, FAR),
}
PLACE_WORDS = {
    "middle": ["", "", "in the middle", "in the center"],
    "top": ["at the top"], "bottom": ["at the bottom"],
    "left": ["on the left"], "right": ["on the right"],
    "top left": ["in the top left", "in the top left corner"],
    "top right": ["in the top right", "in the top right corner"],
    "bottom left": ["in the bottom left", "in the bottom left corner"],
    "bottom right": ["in the bottom right", "in the bottom right corner"],
}

# Words that many glyphs share, or that Unicode does not list, and the glyph meant by each.
EVERYDAY = {
    "tree": "deciduous tree", "pine": "evergreen tree", "flower": "tulip", "plant": "potted plant",
    "heart": "red heart", "love": "red heart", "sun": "sun", "moon": "crescent moon", "star": "star",
    "cloud": "cloud", "rain": "cloud with rain", "snow": "snowflake", "mountain": "snow-capped mountain",
    "beach": "beach with umbrella", "wave": "water wave", "earth": "globe showing europe-africa",
    "planet": "ringed planet", "apple": "red apple", "orange": "tangerine", "fruit": "grapes",
    "coffee": "hot beverage", "tea": "teacup without handle", "milk": "glass of milk", "beer": "beer mug",
    "wine": "wine glass", "cake": "birthday cake", "burger": "hamburger", "ice cream": "soft ice cream",
    "noodles": "steaming bowl", "rice": "cooked rice", "egg": "egg", "bread": "bread", "cheese": "cheese wedge",
    "face": "slightly smiling face", "smile": "smiling face with smiling eyes", "smiley": "grinning face",
    "happy face": "grinning face", "sad face": "slightly frowning face", "laughing face": "face with tears of joy",
    "angry face": "angry face", "crying face": "loudly crying face", "sleepy face": "sleeping face",
    "cool face": "smiling face with sunglasses", "ghost": "ghost", "alien": "alien", "skull": "skull",
    "monster": "alien monster", "dinosaur": "t-rex", "bird": "bird", "fish": "fish", "monkey": "monkey",
    "bear": "bear", "mouse": "mouse", "bug": "bug", "bee": "honeybee", "ladybug": "lady beetle",
    "turtle": "turtle", "whale": "spouting whale", "horse": "horse", "pig": "pig", "cow": "cow",
    "rabbit": "rabbit", "bunny": "rabbit face", "puppy": "dog face", "kitten": "cat face", "chick": "baby chick",
    "car": "automobile", "truck": "delivery truck", "train": "locomotive", "plane": "airplane",
    "boat": "sailboat", "ship": "ship", "bike": "bicycle", "bus": "bus", "house": "house", "home": "house with garden",
    "school": "school", "church": "church", "city": "cityscape", "phone": "mobile phone", "computer": "laptop",
    "television": "television", "clock": "alarm clock", "book": "open book", "pen": "pen", "key": "key",
    "lock": "locked", "money": "money bag", "mail": "envelope", "gift": "wrapped gift", "present": "wrapped gift",
    "balloon": "balloon", "ball": "soccer ball", "football": "american football", "music": "musical notes",
    "piano": "musical keyboard", "hat": "top hat", "shoe": "running shoe", "shirt": "t-shirt", "glasses": "glasses",
    "ring": "ring", "diamond": "gem stone", "umbrella": "umbrella with rain drops", "baby": "baby", "robot": "robot",
    "wizard": "mage", "princess": "princess", "santa": "santa claus", "angel": "baby angel", "cup": "teacup without handle",
    "shrimp": "shrimp", "flame": "fire", "water": "droplet", "lightning": "high voltage", "christmas tree": "christmas tree",
    "yes": "check mark button", "no": "cross mark", "question": "red question mark", "warning": "warning",
}

OPENINGS = ["a picture of", "an emoji of", "an icon of", "draw", "please draw", "a drawing of", "a cute picture of",
            "an illustration of", "show me", "make a picture of", "a simple drawing of", "i would like a picture of"]
ENDINGS = [" emoji", ", please", ", cute", ", simple and clean", ", high quality", ", emoji style", ", detailed",
           ", sharp", ", flat design", ", digital art", ", in the style of an emoji", ", nice and bright colours",
           ", best quality", ", beautiful", ", centered composition", ", 4k"]

HELD_OUT_SHARE = 20


@dataclass
class Item:
    glyph: int
    size: int
    x: int
    y: int
    role: str


@dataclass
class Scene:
    items: list
    background: int


class Glyphs:
    """The pictures and words that glyphs.py wrote."""

    def __init__(self, path):
        data = np.load(path)
        self.bitmaps = data["bitmaps"]
        self.words = json.loads(data["words"].tobytes())
        self.names = [w["name"] for w in self.words]
        index = {n: i for i, n in enumerate(self.names)}
        owners = defaultdict(set)
        for i, w in enumerate(self.words):
            for k in w["keywords"]:
                owners[k].add(i)
            if w["name"].endswith(" flag"):
                owners[w["name"][:-5]].add(i)          # "japan" for Japan's flag
        self.unique = defaultdict(list)                # keywords that only this glyph has
        self.shared = defaultdict(list)                # keywords of two or three glyphs
        for k, who in owners.items():
            if k in index or k in EVERYDAY or len(k) < 2:
                continue
            if len(who) == 1:
                self.unique[next(iter(who))].append(k)
            elif len(who) <= 3:
                for i in who:
                    self.shared[i].append(k)
        self.everyday = defaultdict(list)
        for word, name in EVERYDAY.items():
            if name in index and word not in index:
                self.everyday[index[name]].append(word)
        self.tags = [zlib.crc32(n.encode()) for n in self.names]

    def __len__(self):
        return len(self.names)

    def held_out(self, scene):
        background = BACKGROUND_NAMES[scene.background]
        return any(zlib.crc32(f"{background}|{it.role}".encode(), self.tags[it.glyph]) % HELD_OUT_SHARE == 0
                   for it in scene.items)


# ---- scenes

def single(glyph, background, size=NORMAL, place="middle"):
    word = {NORMAL: "normal", HUGE: "huge", SMALL: "small"}[size]
    role = word if place == "middle" else f"{word} {place}"
    return Scene([Item(glyph, size, *PLACES[place], role)], background)


def beside(a, b, background):
    return Scene([Item(a, SMALL, NEAR, MIDDLE, "left"), Item(b, SMALL, FAR, MIDDLE, "right")], background)


def above(a, b, background):
    return Scene([Item(a, SMALL, MIDDLE, NEAR, "above"), Item(b, SMALL, MIDDLE, FAR, "below")], background)


def random_scene(glyphs, rng, held_out=False):
    """A scene to train on, or one that training never sees."""
    while True:
        background = DEFAULT_BACKGROUND if rng.random() < 0.2 else rng.randrange(len(BACKGROUNDS))
        glyph, r = rng.randrange(len(glyphs)), rng.random()
        if r < 0.42:
            scene = single(glyph, background)
        elif r < 0.55:
            scene = single(glyph, background, HUGE)
        elif r < 0.73:
            scene = single(glyph, background, SMALL, rng.choice(list(PLACES)))
        else:
            other = rng.randrange(len(glyphs))
            scene = (beside if r < 0.9 else above)(glyph, other, background)
        if glyphs.held_out(scene) == held_out:
            return scene


def dense_scene(glyphs, rng):
    """Four glyphs in the corners: no caption, but more to learn for the autoencoder than flat ground."""
    while True:
        items = [Item(rng.randrange(len(glyphs)), SMALL, *PLACES[p], f"small {p}")
                 for p in ("top left", "top right", "bottom left", "bottom right")]
        scene = Scene(items, rng.randrange(len(BACKGROUNDS)))
        if not glyphs.held_out(scene):
            return scene


# ---- captions

def article(noun, rng):
    r = rng.random()
    if r < 0.28:
        return noun
    if r < 0.34:
        return "the " + noun
    if noun.endswith("s") and not noun.endswith(("ss", "us", "is")):
        return noun if r < 0.8 else "some " + noun
    vowel = noun[0] in "aeiou" and not noun.startswith(("uni", "uk", "us", "eu", "one"))
    return ("an " if vowel else "a ") + noun


def words_for(glyphs, glyph, rng):
    r = rng.random()
    if r < 0.62:
        return glyphs.names[glyph]
    if r < 0.74 and glyphs.everyday[glyph]:
        return rng.choice(glyphs.everyday[glyph])
    if r < 0.95 and glyphs.unique[glyph]:
        return rng.choice(glyphs.unique[glyph])
    if r >= 0.95 and glyphs.shared[glyph]:
        return rng.choice(glyphs.shared[glyph])
    return glyphs.names[glyph]


def plain_caption(scene, subjects, rng):
    """The caption of a scene whose glyphs go by `subjects`, in one of the ways people write it."""
    first = scene.items[0]
    if len(scene.items) == 1:
        subject = subjects[0]
        size = {NORMAL: "", HUGE: rng.choice(["huge ", "huge ", "big ", "large ", "giant "]),
                SMALL: rng.choice(["small ", "small ", "tiny ", "little "])}[first.size]
        place = first.role.split(" ", 1)[1] if " " in first.role else "middle"
        if first.size == SMALL and place != "middle" and rng.random() < 0.3:
            size = ""
        where = rng.choice(PLACE_WORDS[place]) if first.size == SMALL else ""
        text = article(size + subject, rng) + (" " + where if where else "")
    elif first.role == "left":
        a, b = (article(s, rng) for s in subjects)
        text = rng.choice([f"{a} and {b}", f"{a} and {b}", f"{a} and {b}", f"{a} next to {b}", f"{a} beside {b}",
                           f"{a} and {b} side by side"])
    else:
        a, b = (article(s, rng) for s in subjects)
        text = rng.choice([f"{a} above {b}", f"{a} above {b}", f"{a} on top of {b}", f"{b} below {a}",
                           f"{b} under {a}"])
    name = BACKGROUND_NAMES[scene.background]
    if scene.background != DEFAULT_BACKGROUND:
        a = "an" if name[0] in "aeiou" else "a"
        ways = [f" on {a} {name} background"] * 6 + [f" with {a} {name} background", f", {name} background",
                                                     f" on {name}"]
        ways += [" " + w for w in BACKGROUND_ALSO.get(name, [])] * 3
        text += rng.choice(ways)
    return text


def caption(glyphs, scene, rng, decorations=None):
    """A caption; `decorations` is how many extra phrases it carries (about one in six has one)."""
    text = plain_caption(scene, [words_for(glyphs, it.glyph, rng) for it in scene.items], rng)
    if decorations is None:
        decorations = int(rng.random() < 0.16)
    endings = rng.sample(ENDINGS, decorations)
    if decorations and rng.random() < 0.5:
        text = rng.choice(OPENINGS) + " " + text
        endings.pop()
    text += "".join(endings)
    r = rng.random()
    if r < 0.15:
        text = text[0].upper() + text[1:]
    elif r < 0.17:
        text = text.title()
    if rng.random() < 0.08:
        text += "."
    return text


class FirstWay:
    """In place of a random source: the first way of saying each thing, always with its article."""

    def random(self):
        return 0.5

    def choice(self, ways):
        return ways[0]


def prompt_for(glyphs, scene, word=None):
    """The plain caption that the evaluation asks for: "a small fox in the top left on a pink background"."""
    subjects = [word] if word else [glyphs.names[it.glyph] for it in scene.items]
    return plain_caption(scene, subjects, FirstWay())
