"""Whether text alone looks like something that somebody meant: no loops, no mangled words, no salad.

Text in any language passes; statistics of English are asked of Latin letters only, and leniently. Knows no model (see
`likelihood`), and nothing of what was asked.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

LOOP = 3
"""A phrase that stands so often in a row is a loop; a single word, one more."""

READ = 10_000
"""Characters of a text that are looked at."""

WINDOW, NEW_PAIRS = 60, 0.66
"""Of the neighbouring words at a text's beginning, so many are different pairs at least."""

ALIKE = 3
"""Sentences that begin with the same three words, from which on a text goes in circles, if most of them do."""

LONGEST_WORD = 30
"""Letters of a word that is one."""

LONGEST_PHRASE = 16
"""Words of a phrase that may loop."""

TOKEN = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*|\d+|[^\w\s]|_+")
WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
CODE = re.compile(
    r"```|^\s*(?:import|from|def|class|return|function|const|let|var|public|#include|using|print|if __name__)\b"
    r"|[;{}]\s*$|\w\(.*\)|^\s*(?:<\w+|#!/)|=>|==|</\w+>",
    re.MULTILINE,
)
AGAIN = re.compile(r"(?=[^\W\d_])(\w(?:[^\n]{3,40}?))\1{3,}")
"""The same characters four times in a row."""

GLUED = re.compile(r"\w*[a-z0-9][._]+[A-Z]\w*|\w*_\w*_\w*|\w+_\w*=\w+|\w+[a-z][A-Z]\w+[._(]|\b[a-z]+_[a-z]+\b")
"""Names as programs have them, which prose has not."""

LATIN = re.compile(r"[a-zà-öø-ÿ]+")

_COMMON = """
a about above after again all also always am among an and another any anyone are around as at away back be because
    become been before being below best better between both but by came can cannot can't case cases certain check come
    could create data day did different do does doesn't doing don't down due each either else end enough ensure even
    ever every example few find first follow following for form found from full get give given go going good great had
    has have having he help her here here's him his hope how however i i'd i'll i'm i've if important in include
    including information into involves is isn't it it's its just keep know known let let's like list long look made
    make makes making many may me means message might more most much must my name need needs never new next no not note
    now number of off often on once one only open or order other our out over own part people perform person place
    please point possible problem process provide provided purpose put question read really request right same say see
    set several shall she should show simple since so some someone something specific start step steps still such sure
    system take than that that's the their them then there there's these they thing things think this those through time
    to today together too try two under until up upon us use used user uses using various very want was way ways we
    well were what when where which while who why will with within without work world would write writing written you
    you'd you'll you're you've your yourself yes
"""
COMMON = frozenset(_COMMON.split())
"""Words that hold English text together."""

_RARE_PAIRS = """
bk bq bx bz cb cf cg cj cp cv cx dx fb fc fd fg fh fj fk fm fp fq fv fw fx fz gc gj gk gq gv gx gz hg hj hk hq hv
    hx hz jb jc jd jf jg jh jj jk jl jm jn jp jq jr js jt jv jw jx jy jz kj kq kv kx kz lq lx mj mq mx mz pq pv px pz qa
    qb qc qd qe qf qg qh qj qk ql qm qn qo qp qq qr qs qt qv qw qx qy qz rx sx sz tq vb vc vd vf vg vh vj vk vl vm vn vp
    vq vr vt vv vw vx vz wj wq wv wx wz xb xd xg xj xk xm xn xr xv xw xz yj yq yv zb zc zd zf zg zj zk zm zn zp zq zr zs
    zt zv zw zx
"""
RARE_PAIRS = frozenset(_RARE_PAIRS.split())
"""Neighbours that English hardly has within a word."""


def incoherence(text: str) -> str:
    """What is wrong with a text; empty where nothing is."""
    text = text[:READ]
    tokens = [token.lower() for token in TOKEN.findall(text)]
    words = [word.lower() for word in WORD.findall(text)]
    if not tokens:
        return "nothing is said"
    return (
        _loops(tokens)
        or _loops(words)
        or _circles(text)
        or _noise(text, tokens, words)
        or _scripts(words, text)
        or _salad(text, words)
    )


def _loops(tokens: Sequence[str]) -> str:
    """The same phrase over and over, or hardly a new word."""
    n = len(tokens)
    for length in range(1, min(LONGEST_PHRASE, n // LOOP) + 1):
        needed = LOOP + 2 if length == 1 else LOOP
        run = 0
        for k in range(n - length):
            run = run + 1 if tokens[k] == tokens[k + length] else 0
            phrase = tokens[k - run + 1 : k - run + 1 + length]
            if run >= length * (needed - 1) and any(token.isalpha() for token in phrase):
                return f"{' '.join(phrase)!r} over and over"
    again = AGAIN.search(" ".join(tokens)[:2000])
    if again and any(letter.isalpha() for letter in again[1]):
        return f"{again[1].strip()!r} over and over"
    words = [token for token in tokens if token[0].isalpha()]
    pairs = [*pairwise(words[:WINDOW])]
    if len(pairs) >= 19 and len(set(pairs)) < NEW_PAIRS * len(pairs):
        return "the same words in the same order again and again"
    if len(words) >= 12:
        [(word, count)] = Counter(words).most_common(1)
        if count > 0.4 * len(words):
            return f"{word!r} over and over"
        if len(set(words)) < 0.3 * len(words) and len(words) < 120:
            return "hardly a new word"
    return ""


def _circles(text: str) -> str:
    """Sentences or lines that begin alike."""
    parts = [WORD.findall(part.lower())[:3] for part in re.split(r"[.!?]+\s|\n+|:\s", text)]
    begun = Counter(tuple(part) for part in parts if len(part) == 3)
    if begun:
        [(opening, count)] = begun.most_common(1)
        if count >= ALIKE and count >= 0.4 * sum(begun.values()) and sum(begun.values()) < 12:
            return f"{' '.join(opening)!r} at the beginning of {count} sentences"
    return ""


def _noise(text: str, tokens: Sequence[str], words: Sequence[str]) -> str:
    """More marks than words."""
    if "\ufffd" in text:
        return "broken characters"
    if not words:
        return "" if any(token.isdigit() for token in tokens) and len(tokens) < 12 else "no words"
    if re.search(r"([^\s\-=_*#.~/\\|+0-9])\1{7,}", text):
        return "a character over and over"
    if re.search(r"(?:```\s*){4,}", text):
        return "empty code"
    if any(word.isascii() and len(word) > LONGEST_WORD for word in words):
        return "mangled words"
    if len(re.findall(r"^\s*[\"'`]{1,2}\s*$", text, re.MULTILINE)) >= 2 or re.search(r"`{4,}|(?<!`)``[a-z]", text):
        return "stray marks"
    marks = sum(not token[0].isalnum() for token in tokens)
    if len(tokens) >= 12 and marks > 0.75 * len(tokens):
        return "more marks than words"
    return ""


def _scripts(words: Sequence[str], text: str) -> str:
    """Writing systems in one text that do not belong together."""
    found: Counter[str] = Counter()
    for letter in "".join(words):
        found[_script(letter)] += 1
    found.pop("", None)
    main = {"CJK", "HIRAGANA", "KATAKANA"}
    several = [name for name in found if name not in main]
    if len(several) + bool(main & set(found)) >= 3:
        return "several writing systems mixed"
    changes, before = 0, ""
    for word in re.findall(r"[^\W\d_]+", text):
        now = _script(word[0])
        now = "CJK" if now in main else now
        changes += bool(before) and now != before
        before = now
    if changes >= 3 and changes > 0.15 * len(words):
        return "writing systems that change from word to word"
    return ""


def _script(letter: str) -> str:
    if letter.isascii():
        return "LATIN"
    return unicodedata.name(letter, "").split(" ")[0]


def _salad(text: str, words: Sequence[str]) -> str:
    """Words that nothing holds together, or that are none."""
    latin = [word for word in words if LATIN.fullmatch(word.replace("'", "").replace("’", ""))]
    glued = len(GLUED.findall(text))
    if glued >= 3 and glued > 0.15 * len(text.split()) and "```" not in text:
        return "words glued together"
    if len(latin) < 8 or len(latin) < 0.7 * len(words):
        return ""
    if CODE.search(text):
        return ""
    mangled = sum(_mangled(word) for word in latin) + len(re.findall(r"[a-z][A-Z]", text))
    if mangled > 0.12 * len(latin) and mangled >= 3:
        return "mangled words"
    plain = all(word.isascii() for word in latin)
    held = sum(word.replace("’", "'") in COMMON for word in latin)
    few = held < 0.12 * len(latin) if len(latin) >= 12 else held == 0
    if plain and few and not _foreign(latin):
        return "words that nothing holds together"
    return ""


def _mangled(word: str) -> bool:
    bare = word.replace("'", "").replace("’", "")
    if len(bare) < 4 or not bare.isascii():
        return False
    pairs = sum(bare[k : k + 2] in RARE_PAIRS for k in range(len(bare) - 1))
    return pairs > 0 or len(bare) > 22 or not re.search(r"[aeiouy]", bare)


_FOREIGN = """
de la el en los las que un una es por con para no se del al como der die das und ist nicht ein eine zu mit auf
    für den dem le les des du et est une dans pour que qui il di che non per sono da os um uma não com em do na het een
    van ik niet te je suis mais ne pas vous nous avec ce cette ich sie wir nicht kann es aber oder wenn como mas eu pode
para este esta ser si più anche sono och att det som inte jag är ett
"""
FOREIGN = frozenset(_FOREIGN.split())
"""Words that hold Spanish, German, French, Italian, Portuguese and Dutch text together."""


def _foreign(words: Sequence[str]) -> bool:
    return sum(word in FOREIGN for word in words) >= 0.2 * len(words)
