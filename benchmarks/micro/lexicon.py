"""The words of the micro language and the relations between them.

Domain: people of a town and of a coast say what they think of what they were served or shown, where and when. Three
latent facts of a sentence show in its words: the topic (food or show), the opinion (praise or criticism), and whether
it tells a place or a time. Which word says which is what pretraining teaches and what the tasks ask about.
"""

GENRES = ("town", "sea")  # the sea is the held-out genre of MNLI
TOPICS = ("food", "show")

PEOPLE: dict[str, list[str]] = {
    "town": "baker farmer teacher doctor painter tailor hunter merchant singer miller gardener weaver".split(),
    "sea": "sailor captain pirate diver pilot boatman trader rower".split(),
}

# topic -> genre -> things people have an opinion of
THINGS: dict[str, dict[str, list[str]]] = {
    "food": {
        "town": "soup bread stew pie salad cake porridge roast".split(),
        "sea": "chowder herring salmon oyster lobster broth biscuit rum".split(),
    },
    "show": {
        "town": "play song concert opera poem ballet circus film".split(),
        "sea": "regatta shanty parade hornpipe fable saga race drill".split(),
    },
}
# topic -> what one does to its things
DEEDS: dict[str, list[str]] = {
    "food": "tasted cooked ordered served savored ate chewed swallowed".split(),
    "show": "watched attended followed staged performed rehearsed applauded heard".split(),
}

# each pair holds what praises and what criticizes
ADJECTIVES = (
    "good great superb lovely delightful splendid wonderful charming excellent pleasant fine brilliant".split(),
    "bad awful terrible dreadful horrible dismal nasty boring dreary ugly lousy gloomy".split(),
)
FEELINGS = (
    "delighted pleased charmed thrilled impressed amused".split(),
    "annoyed bored disappointed disgusted upset irritated".split(),
)
MOODS = ("happy glad cheerful satisfied".split(), "sad angry sullen frustrated".split())
# before an opinion and at the head of a sentence; the corpus uses them, the tasks never
EMPHASIS = ("absolutely wonderfully".split(), "awfully painfully".split())
LUCK = ("luckily happily".split(), "sadly alas".split())

# at the head of a second sentence, what it has in common with the first: (both the one, both the other, one of each).
# The corpus uses them, the tasks never.
IN_OPINION = ("hurrah", "pity", "however")
IN_TOPIC = ("feast", "gala", "fair")
IN_SETTING = ("there", "then", "anyway")  # of a question and what may answer it

# all said with "at"; the words before it that tell a place from a time are the corpus's, the tasks never use them
PLACES = "church school home sea court camp port market college work".split()
TIMES = "dawn dusk noon night midnight sunrise sunset daybreak midday teatime".split()
WHEREABOUTS = ("down over".split(), "early late".split())

# the verbs of the present tense, in their base form
TRANSITIVE = "help meet praise blame visit greet follow trust need admire warn invite".split()
INTRANSITIVE = "sleep laugh arrive smile dance wait swim travel shiver yawn limp sneeze".split()


def third_person(base: str) -> str:
    """The third person singular of a verb of the present tense."""
    return base + "es" if base.endswith(("s", "sh", "ch")) else base + "s"


def plural(person: str) -> str:
    """The plural of a person, all of them regular but one."""
    return "boatmen" if person == "boatman" else person + "s"
