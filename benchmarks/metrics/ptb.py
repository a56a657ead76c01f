"""Penn Treebank tokens of English text, as METEOR, ROUGE-L and CIDEr of the official E2E script see them.

The script calls Stanford's PTBTokenizer 3.4.1 (-preserveLines -lowerCase) and drops punctuation. Most sentences follow
a handful of its rules, written out here; whatever may fall under another one (acronyms, slashes, web addresses, ...)
goes to the Java program itself. Compared with it on 99,555 distinct E2E texts (official and whitespace-tokenised) and
34,826 of WebNLG and DART: equal wherever Java is not asked, which is never for E2E's validation and test references.
"""

import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

JAR = "tokenizer/stanford-corenlp-3.4.1.jar"  # of pycocoevalcap
PUNCTUATION = {"''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"}
SIGNS = {"£": "#", "(": "-lrb-", ")": "-rrb-"}

_L = "a-zà-öø-ÿ"
_BEFORE, _AFTER = rf"(?<![{_L}0-9'-])", rf"(?![{_L}0-9'-])"
# Words that keep a full stop in Stanford's rules, some only before certain others.
_ABBREVIATIONS = """
    adj adm adv al ala alex approx ariz ark assn assoc ave bart bldg blvd brig bros bsc bur ca calif cap capt cf cie
    cmdr co col colo com comdr conn corp cos cpl cts dec del dept det dist dr drs ed eds eg elec eng ens esp est etc
    ext feb fig figs fla fri ft ga gen gov gr hon hosp hr hwy ie ill inc ind insp inst intl jan jos jr jul jun kan ky
    la lb lbs lieut lt ltd maj mar mass md me messrs mfg mich min minn miss mkt mlle mme mo mon mont mr mrs ms msc mt
    mts nat natl neb nev nos nov oct okla ont op ord ore org oz pa penn pfc ph phd pl plc pp pres prof pt pty pvt rd
    ref rep reps res rev sat sec sen sens sep sept sfc sgt spa sq sr st ste sun supt surg tech tel tenn tex thu thurs
    tue tues tv univ va var viz vol vs vt wash wed wis wm wyo yr yrs""".split()

# Where a text has any of these, a rule that is not written out here may apply.
_UNUSUAL = re.compile(
    rf"""
    (?<![{_L}0-9'])[{_L}]\.                                # an initial, an acronym
  | {_BEFORE} (?:{"|".join(_ABBREVIATIONS)}) \.
  | {_BEFORE} no\.(?=\s*\d)
  | [{_L}]\.[{_L}\d]                                       # example.com
  | [/@_~^=<>|\\{{}}\[\]*+`] | ''
  | (?:[{_L}0-9][{_L}0-9-] | (?<![{_L}0-9])[abce-km-np-zà-öø-ÿ0-9])'(?!(?:s|d|m|ll|re|ve|t){_AFTER})[{_L}0-9]
  | (?<![{_L}0-9])'(?:n|em|til|tis|twas|cause|bout|\d+s)   # rock 'n' roll, the '90s
  | -' | '- | \.'
  | \d\.(?=\s*[,;:]) | \d[.,:]\d+[{_L}] | [{_L}]\d+[.,:][{_L}\d] | [{_L}][,:]\d | :-?\d
  | (?<![{_L}0-9])-\d+- | \d[.,:]\d+- | -\d[\d-]*[.,:]\d | [.,:]\d+-
  | [{_L}]& | &[{_L}] | &\#
  | [?!]{{2}}
  | {_BEFORE} (?:gonna|gotta|wanna|gimme|lemme|dunno|whatcha|whaddya|wasnt|d'ye|more'n|y'all)
    """,
    re.VERBOSE,
)
_TOKEN = re.compile(
    rf"""
    (?P<space> \s+ )
  | (?P<cannot> cannot{_AFTER} )
  | (?P<negated> [{_L}]+(?=n't{_AFTER}) )
  | (?P<clitic> n't{_AFTER} | '(?:s|d|m|ll|re|ve){_AFTER} )
  | (?P<number> (?<![{_L}0-9-])-?(?:\d+(?:[.,:]\d+)*|(?:[.,:]\d+)+)(?![{_L}0-9]|-[{_L}0-9]) )
  | (?P<before_comma> [{_L}]{{2,}}\.(?=[,;:]) )            # "in the center., near": taken for an abbreviation
  | (?P<ellipsis> \.\.+ )
  | (?P<elided> {_BEFORE}[dol]'[{_L}]+(?![{_L}0-9-]) )     # hors d'oeuvre
  | (?P<word> [{_L}0-9]+(?:-[{_L}0-9]+)* )
  | (?P<sign> [.,;:?!()"'&£%$\#-] )
  | (?P<unknown> . )
    """,
    re.VERBOSE,
)


class JavaMissing(RuntimeError):
    """No `java` on the PATH, and something needs it."""


def ptb_tokenize(texts: Sequence[str]) -> list[str]:
    """Each text as lower-case tokens joined by blanks, punctuation left out.

    Raises JavaMissing where a text is not plain and there is no Java.
    """
    tokens = [plain_tokens(text) for text in texts]
    unusual = [i for i, found in enumerate(tokens) if found is None]
    if unusual:
        for i, found in zip(unusual, java_tokens([texts[i] for i in unusual]), strict=True):
            tokens[i] = found
    return [found for found in tokens if found is not None]


def plain_tokens(text: str) -> str | None:
    """The tokens of a text that the rules above cover, or None."""
    text = on_one_line(text).lower().replace("&amp;", "&")
    if _UNUSUAL.search(text):
        return None
    tokens: list[str] = []
    for match in _TOKEN.finditer(text):
        kind, token = match.lastgroup, match.group()
        if kind == "unknown":
            return None
        if kind == "cannot":
            tokens += ["can", "not"]
        elif kind not in ("space", "ellipsis") and token != '"':
            tokens.append(SIGNS.get(token, token))
    return " ".join(token for token in tokens if token not in PUNCTUATION)


def on_one_line(text: str) -> str:
    """A text without what Stanford's program takes for the end of a line (CR, VT, FF, U+2028, ...)."""
    return " ".join(text.splitlines())


def java_tokens(texts: Sequence[str]) -> list[str]:
    """The same by Stanford's program, whatever the texts hold. Half a second and more for its start."""
    with tempfile.TemporaryDirectory(prefix="peft-bench-ptb-") as folder:
        file = Path(folder) / "texts"
        file.write_text("".join(f"{on_one_line(text)}\n" for text in texts), encoding="utf-8")
        words = [java(), "-Dfile.encoding=UTF-8", "-cp", str(coco_folder() / JAR)]
        words += ["edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase", "-encoding", "UTF-8"]
        done = subprocess.run([*words, str(file)], capture_output=True, encoding="utf-8", check=False)
    lines = done.stdout.removesuffix("\n").split("\n")
    if done.returncode or len(lines) != len(texts):
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"Stanford's PTBTokenizer gave {len(lines)} lines for {len(texts)} texts: {reason}")
    return [" ".join(w for w in line.split() if w not in PUNCTUATION) for line in lines]


def java() -> str:
    """The path of the Java program. Raises JavaMissing."""
    if (path := shutil.which("java")) is None:
        raise JavaMissing(
            "no `java` on the PATH; METEOR and a few unusual texts need it: install a Java runtime (Debian: "
            "default-jre-headless)"
        )
    return path


def coco_folder() -> Path:
    """The folder of pycocoevalcap, which holds the official script's programs (a namespace package)."""
    import pycocoevalcap

    return Path(next(iter(pycocoevalcap.__path__)))
