"""Ground truth for the tokenizer: a byte-level BPE tokenizer and test strings.

Everything is generated from this file and from the Unicode 3.2 database that
Python carries in all versions (unicodedata.ucd_3_2_0), so that the result does
not depend on the Python version. No text of others is used.
"""

import base64
import json
import os
import random
from unicodedata import ucd_3_2_0 as unicode_3_2

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers

import tokenizer_files

VOCAB_SIZE = 8192

SENTENCES = [
    "The quick brown fox jumps over the lazy dog while the old farmer is watching.",
    "I don't think we'll see them again; they've gone, and she's sure you're late. I'd say I'm not.",
    "A detailed oil painting of a harbour at dawn, with fishing boats, gulls and heavy clouds.",
    "Please draw a small house with a red roof, a green door and two windows next to a river.",
    "Der alte Mann geht über die Brücke, weil er schöne Blumen für seine Großmutter kaufen möchte.",
    "Le garçon a mangé une pêche près de la fenêtre, où l'été paraît déjà très loin de l'hôtel.",
    "El niño pequeño compró un paraguas azul; ¿quién sabe cuándo volverá la lluvia? ¡Mañana!",
    "A menina não quer dormir, porque as estrelas são tão bonitas à noite e o coração não cansa.",
    "La città è più bella quando piove, perché le luci si riflettono sull'acqua della fontana.",
    "Zażółć gęślą jaźń, a potem pójdziemy nad rzekę, żeby zobaczyć łódź i źródło.",
    "Příliš žluťoučký kůň úpěl ďábelské ódy, když děti běžely kolem řeky.",
    "Een klein meisje fietst door de straat terwijl de zon langzaam ondergaat achter de huizen.",
    "Den gamla sjömannen åkte över fjärden för att köpa öl, mjölk och äpplen på ön.",
    "Vanha mies kävelee metsässä ja näkee järven, jossa ui kaksi valkoista joutsenta.",
    "Az öreg halász reggel kiment a tóhoz, hogy megnézze, mekkora hullámok gyűrűznek.",
    "Küçük çocuk ağacın altında oturuyor, çünkü güneş çok sıcak ve ışık gözünü alıyor.",
    "Cô bé nhỏ đang ngồi dưới gốc cây, đọc một quyển sách về những ngôi sao và mặt trăng.",
    "Старик идёт через мост, потому что хочет купить цветы для своей бабушки и хлеб.",
    "Маленька дівчинка їде на велосипеді вулицею, поки сонце повільно сідає за ґанком.",
    "Ο γέρος περπατά στη γέφυρα γιατί θέλει να αγοράσει λουλούδια για τη γιαγιά του.",
    "הזקן הולך על הגשר כי הוא רוצה לקנות פרחים לסבתא שלו, והילדה קוראת ספר.",
    "يمشي الرجل العجوز على الجسر لأنه يريد أن يشتري الزهور لجدته، والسماء زرقاء.",
    "پیرمرد از روی پل می‌گذرد چون می‌خواهد برای مادربزرگش گل بخرد.",
    "बूढ़ा आदमी पुल पर चल रहा है क्योंकि वह अपनी दादी के लिए फूल खरीदना चाहता है।",
    "বৃদ্ধ লোকটি সেতুর উপর দিয়ে হাঁটছেন কারণ তিনি ফুল কিনতে চান।",
    "முதியவர் பாலத்தின் மீது நடக்கிறார், ஏனெனில் அவர் பூக்கள் வாங்க விரும்புகிறார்.",
    "ముసలాయన వంతెన మీద నడుస్తున్నాడు, ఎందుకంటే అతను పూలు కొనాలనుకుంటున్నాడు.",
    "ชายชราเดินข้ามสะพานเพราะเขาอยากซื้อดอกไม้ให้คุณยายของเขา",
    "老人走过桥，因为他想给祖母买花。小女孩坐在树下看书，天空是蓝色的，云很白。",
    "老人走過橋，因為他想給祖母買花。小女孩坐在樹下看書，天空是藍色的，雲很白。",
    "一幅水彩画：秋天的橡树下睡着一只红色的狐狸，早晨的阳光柔和，细节丰富，高质量。",
    "おじいさんは祖母に花を買うために橋を渡っています。女の子は木の下で本を読んでいる。",
    "夕焼けの海辺を歩く猫のイラスト、アニメ風、高画質、カラフルなライト。",
    "노인은 할머니에게 꽃을 사 주려고 다리를 건너고 있다. 소녀는 나무 아래에서 책을 읽는다.",
    "მოხუცი ხიდზე გადადის, რადგან ბებიასთვის ყვავილების ყიდვა უნდა.",
    "Ծերունին անցնում է կամրջով, քանի որ ուզում է ծաղիկներ գնել։",
    "አዛውንቱ ለአያታቸው አበባ ለመግዛት ድልድዩን እየተሻገሩ ነው።",
    "for (int i = 0; i < n; i++) {\n    total += values[i] * 2;\n}\nreturn total;\n",
    "def area(width, height):\n    \"\"\"Return the area.\"\"\"\n    return width * height\n\n",
    "{\"name\": \"image\", \"size\": [1024, 768], \"steps\": 8, \"seed\": 42}\r\n",
    "<p class=\"note\">See https://example.org/a/b?c=d&e=f#g or mail me@example.org</p>",
    "😀 😂 🥰 👍🏽 🎉 ❤️ 👩‍🚀 🏳️‍🌈 👨‍👩‍👧‍👦 🇫🇷 🇯🇵 ✨🔥🌊🌲🦊",
]

# Ranges of letters from which random words are made, per script.
SCRIPTS = {
    "latin": [(0x61, 0x7A)],
    "latin-1": [(0xC0, 0xD6), (0xD8, 0xF6), (0xF8, 0xFF)],
    "latin-extended": [(0x100, 0x17F), (0x1CD, 0x1F5), (0x1E00, 0x1E9B), (0x1EA0, 0x1EF9)],
    "greek": [(0x391, 0x3A1), (0x3A3, 0x3CE)],
    "greek-extended": [(0x1F00, 0x1F15), (0x1F20, 0x1F45), (0x1F80, 0x1FB4)],
    "cyrillic": [(0x410, 0x44F), (0x450, 0x45F)],
    "armenian": [(0x531, 0x556), (0x561, 0x586)],
    "hebrew": [(0x5D0, 0x5EA)],
    "arabic": [(0x621, 0x63A), (0x641, 0x64A)],
    "syriac": [(0x710, 0x72C)],
    "devanagari": [(0x905, 0x939), (0x93E, 0x94D)],
    "bengali": [(0x985, 0x98C), (0x993, 0x9A8), (0x9BE, 0x9C4)],
    "gujarati": [(0xA93, 0xAA8), (0xABE, 0xAC5)],
    "tamil": [(0xB85, 0xB8A), (0xBAE, 0xBB5), (0xBBE, 0xBC2)],
    "telugu": [(0xC05, 0xC0C), (0xC12, 0xC28), (0xC3E, 0xC44)],
    "kannada": [(0xC85, 0xC8C), (0xC92, 0xCA8), (0xCBE, 0xCC4)],
    "malayalam": [(0xD05, 0xD0C), (0xD12, 0xD28), (0xD3E, 0xD43)],
    "sinhala": [(0xD85, 0xD96), (0xD9A, 0xDB1), (0xDCF, 0xDD4)],
    "thai": [(0xE01, 0xE30), (0xE32, 0xE3A), (0xE40, 0xE4E)],
    "lao": [(0xE94, 0xE97), (0xE99, 0xE9F), (0xEB0, 0xEB9)],
    "tibetan": [(0xF40, 0xF47), (0xF49, 0xF6A), (0xF71, 0xF7D)],
    "myanmar": [(0x1000, 0x1021), (0x102C, 0x1032)],
    "georgian": [(0x10D0, 0x10F0)],
    "hangul jamo": [(0x1100, 0x1112), (0x1161, 0x1175), (0x11A8, 0x11C2)],
    "ethiopic": [(0x1200, 0x1206), (0x1208, 0x1246), (0x12D8, 0x12EE)],
    "cherokee": [(0x13A0, 0x13F4)],
    "khmer": [(0x1780, 0x17B3), (0x17B6, 0x17C8)],
    "mongolian": [(0x1820, 0x1842)],
    "hiragana": [(0x3041, 0x3094)],
    "katakana": [(0x30A1, 0x30FA)],
    "bopomofo": [(0x3105, 0x312C)],
    "cjk": [(0x4E00, 0x4FFF), (0x5B50, 0x5C0F), (0x6C34, 0x6D6A), (0x9F00, 0x9FA5)],
    "cjk extension b": [(0x20000, 0x200FF)],
    "hangul": [(0xAC00, 0xAC8F), (0xB098, 0xB118), (0xC0AC, 0xC11C), (0xD558, 0xD5B0)],
    "gothic": [(0x10330, 0x10349)],
    "mathematical": [(0x1D400, 0x1D454), (0x1D7CE, 0x1D7FF)],
    "fullwidth": [(0xFF10, 0xFF19), (0xFF21, 0xFF3A), (0xFF41, 0xFF5A)],
}

# Every White_Space character, and characters that only look like white space.
SPACES = (
    "\t\n\x0b\x0c\r \x85\xa0\u1680"
    + "".join(chr(code) for code in range(0x2000, 0x200B))
    + "\u2028\u2029\u202f\u205f\u3000"
)
NOT_SPACES = "\x1c\x1d\x1e\x1f\u180e\u200b\u200c\u200d\u2060\ufeff"

# Marks of different combining classes, for sequences that NFC has to reorder.
MARKS = (
    "\u0300\u0301\u0302\u0303\u0304\u0306\u0307\u0308\u030a\u030b\u030c\u0316\u0317\u031b"
    "\u0321\u0323\u0324\u0325\u0326\u0327\u0328\u032d\u0330\u0331\u0334\u0338\u0340\u0341"
    "\u0343\u0344\u0345\u0360\u05b0\u05b4\u05bc\u05c1\u064b\u0651\u0670\u093c\u094d\u3099\u309a"
    "\U0001d165\U0001d16e"
)

# Decimal digits, letter numbers and other numbers of many scripts.
NUMBERS = (
    "0123456789\u00b2\u00b3\u00b9\u00bc\u00bd\u0660\u0665\u0669\u06f3\u07c5\u0967\u09e8\u0a69"
    "\u0b6a\u0be7\u0bf0\u0c6d\u0e55\u0f24\u1045\u1369\u17e3\u1815\u2070\u2083\u2160\u2167\u216b"
    "\u2180\u2460\u2474\u2776\u3007\u3021\u3220\u3280\uff10\uff19\U00010320\U0001d7d8\U0001d7ff"
    "\U0001f100"
)

EMOJI = [
    "\U0001f600", "\U0001f602", "\u2764\ufe0f", "\u2764", "\U0001f44d\U0001f3fd",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466",
    "\U0001f469\u200d\U0001f680", "\U0001f3f3\ufe0f\u200d\U0001f308", "\U0001f3f4\u200d\u2620\ufe0f",
    "\U0001f1eb\U0001f1f7", "\U0001f1ef\U0001f1f5", "\U0001f1e9", "\U0001f1e9\U0001f1ea\U0001f1f8",
    "1\ufe0f\u20e3", "#\ufe0f\u20e3", "\U0001f9d1\U0001f3ff\u200d\U0001f91d\u200d\U0001f9d1\U0001f3fb",
    "\U0001f3f4\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f", "\u2600\ufe0e",
    "\U0001fae8", "\U0001f98a", "\u00a9\ufe0f", "\u3030\ufe0f",
]

# Added to Unicode after version 9.0: the reference's NFC ignores the combining
# class (or the decomposition) of such characters, while its regular expressions
# know the letters and numbers of Unicode 16.0.
LATER_MARKS = "\u1df6\u1df9\u0d3b\u0d3c\u09fe\u0c3c\u0898\u1ac1\u1abf\u08d3\ua82c\u1715\u0897"
LATER_SUPPLEMENTARY = (
    "\U00010d24\U00010eab\U00010f46\U00010f82\U00011070\U0001133b\U0001145e\U00011839\U0001193d"
    "\U00011943\U000119e0\U00011a34\U00011a47\U00011a99\U00011d42\U00011d44\U00011d97\U00016ff0"
    "\U0001e130\U0001e2ae\U0001e2ec\U00010efd\U0001e08f\U0001e4ee\U0001e5ee"
)
LATER_LETTERS = (
    "\u1c89\ua7cb\ua7da\u0870\u2c2f\ua7c0\ua7d0\u31bb\u9fd6\u9ffc\u9fff\u4db6\u4dbf\U0001c4ff"
    "\U000105c9\U00010d4a\U000113c5\U00011380\U00016d43\U00016d6a\U00011938\U0001e5d0\U00031350"
    "\U000323af\U0002ebf0\U000323b0\U0001e4d0\U00010d40\U000116d0\U0001ccf0\U0001e5f1\U0001fbf0"
)

SPECIAL = [content for content, _special in tokenizer_files.ADDED_TOKENS]


def random_word(rng, script, longest=9):
    """A word of random letters of one script."""
    letters = []
    for _ in range(rng.randint(1, longest)):
        first, last = rng.choice(SCRIPTS[script])
        letters.append(chr(rng.randint(first, last)))
    return "".join(letters)


def training_text():
    """Yield pieces of text on which the vocabulary is trained."""
    rng = random.Random(20260801)
    for _ in range(20):
        yield from SENTENCES
    # Names of characters are a good source of English-like words.
    for code in list(range(0x20, 0x3100)) + list(range(0xF900, 0x10000)):
        name = unicode_3_2.name(chr(code), "")
        if name:
            yield name.lower()
            if code % 3 == 0:
                yield name.title()
            if code % 7 == 0:
                yield name
    # Words of a fixed random vocabulary per script, the first ones more often.
    for script in SCRIPTS:
        words = [random_word(rng, script, 6) for _ in range(60)]
        for _ in range(150):
            count = rng.randint(2, 6)
            yield " ".join(words[int(len(words) * rng.random() ** 2)] for _ in range(count))
    for _ in range(400):
        yield " " * rng.randint(1, 12) + "\n" * rng.randint(0, 4) + "\t" * rng.randint(0, 3)
        yield rng.choice(["...", "----", "====", "()", "();", "{}", "->", "!=", "::", "//", "!!", "?!"])


def _random_text(rng):
    """A sentence that mixes scripts, numbers, punctuation and white space."""
    parts = []
    for _ in range(rng.randint(1, 5)):
        kind = rng.random()
        if kind < 0.5:
            parts.append(random_word(rng, rng.choice(list(SCRIPTS)), 6))
        elif kind < 0.65:
            parts.append(rng.choice(NUMBERS) * rng.randint(1, 3))
        elif kind < 0.8:
            parts.append(rng.choice("!?.,;:-_/\\()[]{}<>@#$%^&*+=~`|\"'\u2019\u201c\u3002\u2014\u20ac"))
        elif kind < 0.9:
            parts.append(rng.choice(EMOJI))
        else:
            parts.append(rng.choice(MARKS))
        parts.append(rng.choice(["", " ", " ", "  ", "\n", rng.choice(SPACES)]))
    return "".join(parts)


def _random_code_point(rng):
    while True:
        code = rng.choice(
            [
                rng.randint(0x01, 0x2FF),
                rng.randint(0x300, 0x33FF),
                rng.randint(0x3400, 0xFFFF),
                rng.randint(0x10000, 0x1FFFF),
                rng.randint(0x20000, 0x10FFFF),
            ]
        )
        if not 0xD800 <= code <= 0xDFFF:
            return chr(code)


def _whitespace_cases(rng):
    for space in SPACES + NOT_SPACES:
        yield space
        yield "a" + space + "b"
        yield "a" + space + space + "1"
        yield " " + space + "\n" + space + "x"
    for _ in range(150):
        run = "".join(rng.choice(SPACES + " \n\n\r") for _ in range(rng.randint(2, 6)))
        yield rng.choice(["", "a", "1", ".", "\u4e00"]) + run + rng.choice(["", "b", "2", "!", "'s", "\u0301"])
    for first in ("\r", "\n", "\r\n", "\n\r", "\r\r\n", " \n", "\n ", "\t\n\t", "\n\n\n \n"):
        for text in ("%s", "a%s", "%sb", "a%sb", "!%s!", "1%s2", "a %s b"):
            yield text % first
    for count in (2, 3, 7, 16, 33, 100):
        yield " " * count
        yield " " * count + "end"
        yield "\t" * count + "5"
        yield "\n" * count + "x"


def _contraction_cases(rng):
    endings = ["s", "t", "re", "ve", "m", "ll", "d", "S", "T", "RE", "Ve", "vE", "M", "LL", "lL", "D",
               "\u017f", "r", "v", "l", "x", "sx", "rex", "'s", ""]
    for ending in endings:
        for quote in ("'", "\u2019"):
            yield "it" + quote + ending
            yield "x " + quote + ending + " y"
            if quote == "'":
                yield "1" + quote + ending + "z"
                yield quote + quote + ending
                yield "'" + ending + "'" + ending
    for _ in range(20):
        yield "'".join(rng.choice(endings) for _ in range(4))


def _special_token_cases(rng):
    for token in SPECIAL:
        yield token
        yield "a" + token + "b"
        yield " " + token + " \n" + token
        yield token[:-1]
        yield token[1:]
        yield token.upper()
        yield token[: len(token) // 2] + token
        yield token + token[len(token) // 2 :]
    yield "e<think>\u0301"
    yield "<|im_start|>user\nA cat<|im_end|>\n<|im_start|>assistant\n"
    yield "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    yield "<|im_start|im_start|>"
    yield "<|<|im_end|>|>"
    yield "<think></think></think><think"
    yield "< think>"
    yield "<|im\u200b_start|>"
    yield "<tool_call>{\"a\": 1}</tool_call>"
    for _ in range(60):
        yield "".join(
            rng.choice([rng.choice(SPECIAL), random_word(rng, "latin", 4), " ", "<", "|>", "\n", "<|"])
            for _ in range(rng.randint(2, 6))
        )


def _normalization_cases(rng):
    bases = "aeiouAEOUncsyK\u00e9\u01d5\u0435\u03b9\u03b1\u05e9\u0627\u0915\u304b\u30cf\u0b47\u0dd9\u0061"
    for _ in range(200):
        text = ""
        for _ in range(rng.randint(1, 3)):
            text += rng.choice(bases) + "".join(rng.choice(MARKS) for _ in range(rng.randint(0, 4)))
        yield rng.choice(["", " ", "x"]) + text
    # Singletons, exclusions and characters that decompose without composing again.
    for code in (0x212B, 0x2126, 0x212A, 0x340, 0x341, 0x343, 0x344, 0x374, 0x37E, 0x387, 0x958,
                 0x95F, 0x9DC, 0xA33, 0xB5C, 0xF43, 0xF73, 0xF75, 0xF81, 0x1F71, 0x1FBE, 0x1FEF,
                 0x2000, 0x2001, 0x2329, 0x2ADC, 0xF900, 0xFA10, 0xFB1D, 0xFB1F, 0xFB2C, 0xFB4E,
                 0x1D15E, 0x1D1BB, 0x2F800, 0x2FA1D, 0xFDFA, 0xFB01, 0x1E9B, 0x110AB, 0x1112E):
        yield chr(code)
        yield "a" + chr(code) + "\u0323\u0301"
    for _ in range(80):
        lead = chr(rng.randint(0x1100, 0x1112))
        vowel = chr(rng.randint(0x1161, 0x1175))
        tail = chr(rng.randint(0x11A7, 0x11C2))
        syllable = chr(0xAC00 + 28 * rng.randint(0, 398))
        yield rng.choice([lead + vowel, lead + vowel + tail, syllable + tail, syllable + tail + tail,
                          lead + "\u0301" + vowel, lead + lead + vowel, vowel + tail, "\u115f" + vowel,
                          syllable[0] + "\u11a7", lead + vowel + "\u11c3"])
    for mark in LATER_MARKS + LATER_SUPPLEMENTARY:
        yield "a\u0301" + mark
        yield mark + "\u0334x"
    yield "\U00011935\U00011930"
    yield "\U000105d2\u0307"
    yield "\u0061" + "\u0323\u0301" * 40


def _number_cases(rng):
    for number in NUMBERS:
        yield number
        yield "a " + number + number + "b"
    for _ in range(60):
        yield "".join(rng.choice(NUMBERS + " .,") for _ in range(rng.randint(2, 8)))


def _long_cases(rng):
    yield "a" * 700
    yield "ab" * 200
    yield "\u4e2d\u6587" * 60
    yield "".join(chr(rng.randint(0x61, 0x7A)) for _ in range(400))
    yield "abcdefgh" * 60 + "'s"
    yield "!" * 300
    yield "=-" * 100 + "\n\n"
    yield "\U0001f600" * 50
    yield "\u0e01\u0e33" * 60


def test_strings():
    """All strings, without repetitions, in a fixed order."""
    rng = random.Random(7)
    strings = ["", " ", "a", "Hello world", " Hello world", "user", "assistant", "\n", "\n\n"]
    strings += ["\x00", "a\x00b", "\x7f\x80\x9f", "\ufffd", "\ufffe\uffff", "\U0010ffff"]
    strings += SENTENCES
    strings += _whitespace_cases(rng)
    strings += _contraction_cases(rng)
    strings += _special_token_cases(rng)
    strings += _normalization_cases(rng)
    strings += _number_cases(rng)
    for emoji in EMOJI:
        strings += [emoji, "a " + emoji + emoji + "b", emoji + "\n"]
    for letter in LATER_LETTERS:
        strings += [letter, "1" + letter + " x" + letter + letter]
    for script in SCRIPTS:
        for _ in range(4):
            word = random_word(rng, script)
            strings += [word, " ".join([word, random_word(rng, script, 4)])]
    for _ in range(420):
        strings.append(_random_text(rng))
    for _ in range(200):
        strings.append("".join(_random_code_point(rng) for _ in range(rng.randint(1, 5))))
    strings += _long_cases(rng)
    return list(dict.fromkeys(strings))


def invalid_byte_strings():
    """Byte strings that are not UTF-8."""
    rng = random.Random(11)
    fixed = [
        b"\x80", b"\xbf", b"\xc0\x80", b"\xc1\xbf", b"\xc2", b"\xc2a", b"\xe0\x80\x80", b"\xe0\x9f\xbf",
        b"\xe0\xa0", b"\xe0\xa0a", b"\xe4\xb8", b"\xe4\xb8\xad\xe4", b"\xed\xa0\x80", b"\xed\xbf\xbf",
        b"\xed\xa0\x80\xed\xb0\x80", b"\xed\x9f", b"\xf0\x80\x80\x80", b"\xf0\x8f\xbf\xbf", b"\xf0\x90",
        b"\xf0\x90\x80", b"\xf0\x9f\x98", b"\xf0\x9f\x98a", b"\xf0\x9f\x98\xf0\x9f\x98\x80",
        b"\xf4\x90\x80\x80", b"\xf4\x8f\xbf", b"\xf5\x80\x80\x80", b"\xf8\x88\x80\x80\x80", b"\xfe\xff",
        b"\xff", b"a\xffb", b" \xff", b"\xff\n", b"\xffs'\xfft", b"<|im_\xff_start|>", b"<|im_end|>\xc3",
        b"\xc3<|im_end|>", b"e\xcc", b"e\xcc\x81\xcc", b"\xe1\x84\x80\xe1\x85", b"\x80\x80\x80", b"a\xe2\x82",
    ]
    seen = set(fixed)
    while len(seen) < 110:
        data = bytearray(random_word(rng, rng.choice(list(SCRIPTS)), 4).encode() + b" x")
        for _ in range(rng.randint(1, 2)):
            position = rng.randrange(len(data))
            if rng.random() < 0.5:
                data[position] = rng.randint(0x80, 0xFF)
            else:
                del data[position]
        data = bytes(data)
        try:
            data.decode("utf-8")
        except UnicodeDecodeError:
            if data not in seen:
                seen.add(data)
                fixed.append(data)
    return fixed


def _ranges(codes):
    """[[first, last], ...] of a sorted sequence."""
    result = []
    for code in codes:
        if result and result[-1][1] == code - 1:
            result[-1][1] = code
        else:
            result.append([code, code])
    return result


def _class_members(pattern, characters):
    """The code points that a regular expression for one character matches."""
    splitter = pre_tokenizers.Split(Regex(pattern), behavior="removed")
    rest = set(range(len(characters)))
    for _piece, (first, end) in splitter.pre_tokenize_str(characters):
        rest.difference_update(range(first, end))
    return [ord(characters[index]) for index in sorted(rest)]


def unicode_tables():
    """What the reference knows about each character.

    letter, number, space: the classes \\p{L}, \\p{N} and \\s of the regular
    expressions. nfc: code points that NFC changes when they stand alone.
    reordered: code points that NFC moves in front of a mark of class 240 (the
    largest one) or behind a mark of class 1 (the smallest), which are all
    characters with a combining class NFC knows of.
    """
    codes = [code for code in range(0x110000) if not 0xD800 <= code <= 0xDFFF]
    characters = "".join(chr(code) for code in codes)
    nfc = normalizers.NFC().normalize_str
    changed = []
    reordered = []
    for code in codes:
        character = chr(code)
        if nfc(character) != character:
            changed.append(code)
        before = "\u0345" + character
        behind = character + "\u0334"
        if nfc(before) == character + "\u0345" or nfc(behind) == "\u0334" + character:
            reordered.append(code)
        elif code in (0x334, 0x345):
            reordered.append(code)
    return {
        "letter": _ranges(_class_members(r"\p{L}", characters)),
        "number": _ranges(_class_members(r"\p{N}", characters)),
        "space": _ranges(_class_members(r"\s", characters)),
        "nfc": _ranges(changed),
        "reordered": _ranges(reordered),
    }


# Written as \\u escapes, so that no editor or line splitter trips over them.
_ESCAPED = set("\x7f\u2028\u2029\ufeff\ufffe\uffff") | {chr(code) for code in range(0x80, 0xA1)}


def _json_line(value):
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return "".join("\\u%04x" % ord(char) if char in _ESCAPED else char for char in text) + "\n"


def write(directory):
    """Write tokenizer/, strings.jsonl, invalid.jsonl and classes.json."""
    tokenizer = tokenizer_files.train(training_text(), VOCAB_SIZE)
    tokenizer_files.save(tokenizer, directory, merges_as_strings=True)
    # Ids come from the file that was written, not from the object in memory.
    tokenizer = Tokenizer.from_file(os.path.join(directory, "tokenizer.json"))

    def ids(text):
        return tokenizer.encode(text, add_special_tokens=False).ids

    strings = test_strings()
    with open(os.path.join(directory, "strings.jsonl"), "w", encoding="utf-8", newline="\n") as file:
        for text in strings:
            file.write(_json_line({"text": text, "ids": ids(text)}))
    invalid = invalid_byte_strings()
    with open(os.path.join(directory, "invalid.jsonl"), "w", encoding="utf-8", newline="\n") as file:
        for data in invalid:
            encoded = base64.b64encode(data).decode("ascii")
            file.write(_json_line({"bytes_b64": encoded, "ids": ids(data.decode("utf-8", "replace"))}))
    with open(os.path.join(directory, "classes.json"), "w", encoding="utf-8", newline="\n") as file:
        json.dump(unicode_tables(), file, separators=(",", ":"))
        file.write("\n")
    print("tokenizer: %d entries, %d strings, %d invalid byte strings"
          % (tokenizer.get_vocab_size(), len(strings), len(invalid)))
