"""Word lists that the generators draw from."""

from __future__ import annotations

from random import Random


def words(text: str) -> list[str]:
    return text.split()


def phrases(text: str) -> list[str]:
    return [x.strip() for x in text.replace("\n", " ").split("|") if x.strip()]


def pairs(text: str) -> dict[str, str]:
    """`a:b|c:d` as a dictionary."""
    return dict(x.split(":", 1) for x in phrases(text))


NAMES = words("""Lily Tom Mia Ben Sara Max Anna Sam Lucy Jack Emma Leo Zoe Finn Ruby Oscar Nora Theo Ella Hugo Ivy Noah Amy Eli Rosa Kai Maya Dan Olga Omar Tara Nina Luis Alma
Otto Jill Pia Remy Gus June Carl Vera Abel Mina Hana Yuri Igor Lena Paul Rita Kofi Amara Ravi Priya Chen Mei Aiko Kenji Alice Bob Clara David Edith Frank Grace Henry Iris John Kate""")
ANIMALS = words(
    "dog cat rabbit mouse fox bear owl duck frog turtle horse cow pig sheep goat lion tiger elephant monkey whale penguin squirrel hedgehog crow bee ant snail wolf deer otter"
)
COLORS = words("red blue green yellow black white brown orange purple pink gray silver golden")
OBJECTS = words(
    "ball key map lamp hat book cup box bell kite drum rope coin ring shoe spoon basket bottle brush candle clock letter pencil stone towel umbrella whistle blanket mirror ticket"
)
PLACES = words(
    "kitchen garden forest school park market library castle attic barn cellar harbor cottage village museum stable tower temple meadow cave cabin office hallway bedroom bathroom"
)
FRUITS = words("apple banana cherry grape lemon mango orange peach pear plum melon fig strawberry")
VEGS = words("carrot potato onion cabbage tomato pea bean spinach garlic pumpkin radish beet")
TOOLSW = words("hammer saw drill rake shovel wrench axe ladder knife scissors")
VEHICLES = words("car bus train boat bicycle truck airplane tram ship van")
CATS = {
    "fruit": FRUITS,
    "vegetable": VEGS,
    "animal": ANIMALS,
    "color": COLORS,
    "tool": TOOLSW,
    "vehicle": VEHICLES,
}
CAPITALS = pairs("""France:Paris|Italy:Rome|Spain:Madrid|Germany:Berlin|Portugal:Lisbon|Greece:Athens|Austria:Vienna|Poland:Warsaw|Norway:Oslo|Sweden:Stockholm|Finland:Helsinki|
Denmark:Copenhagen|Ireland:Dublin|Belgium:Brussels|the Netherlands:Amsterdam|Hungary:Budapest|Japan:Tokyo|China:Beijing|India:New Delhi|Egypt:Cairo|Kenya:Nairobi|Ghana:Accra|Morocco:Rabat|Nigeria:Abuja|
Canada:Ottawa|Mexico:Mexico City|Cuba:Havana|Peru:Lima|Chile:Santiago|Brazil:Brasilia|Argentina:Buenos Aires|Colombia:Bogota|Turkey:Ankara|Iran:Tehran|Iraq:Baghdad|Thailand:Bangkok|Vietnam:Hanoi|
Australia:Canberra|New Zealand:Wellington|Russia:Moscow|Ukraine:Kyiv|Romania:Bucharest|Bulgaria:Sofia|Croatia:Zagreb|Serbia:Belgrade|the United Kingdom:London|the United States:Washington|South Korea:Seoul|Nepal:Kathmandu|Iceland:Reykjavik""")
OPP = pairs("""hot:cold|big:small|tall:short|fast:slow|happy:sad|light:dark|old:young|wet:dry|hard:soft|rich:poor|early:late|full:empty|open:closed|loud:quiet|clean:dirty|strong:weak|
deep:shallow|near:far|thick:thin|heavy:light|sweet:sour|brave:afraid|right:wrong|true:false|up:down|in:out|left:right|day:night|start:end|win:lose|buy:sell|give:take|push:pull|love:hate|always:never|first:last""")
PLURAL = pairs(
    "mouse:mice|child:children|man:men|woman:women|foot:feet|tooth:teeth|goose:geese|sheep:sheep|leaf:leaves|knife:knives|wolf:wolves|box:boxes|bus:buses|city:cities|baby:babies|dog:dogs|cat:cats|key:keys|boy:boys|fox:foxes|fish:fish|person:people"
)
PAST = pairs(
    "go:went|run:ran|see:saw|eat:ate|come:came|take:took|give:gave|sing:sang|swim:swam|write:wrote|read:read|buy:bought|think:thought|bring:brought|catch:caught|fly:flew|walk:walked|jump:jumped|play:played|make:made|find:found|know:knew|sleep:slept|speak:spoke|break:broke"
)
SOUND = pairs(
    "dog:woof|cat:meow|cow:moo|duck:quack|sheep:baa|pig:oink|horse:neigh|frog:croak|bee:buzz|lion:roar|owl:hoot|mouse:squeak|crow:caw|wolf:howl|snake:hiss"
)
YOUNG = pairs(
    "dog:puppy|cat:kitten|cow:calf|duck:duckling|sheep:lamb|pig:piglet|horse:foal|frog:tadpole|bear:cub|lion:cub|goat:kid|deer:fawn|hen:chick|goose:gosling"
)
HASCOL = pairs(
    "grass:green|the sky:blue|snow:white|coal:black|a banana:yellow|a tomato:red|an orange:orange|a carrot:orange|milk:white|blood:red|a lemon:yellow|a crow:black|chocolate:brown|a pea:green|the night sky:black|a flamingo:pink"
)
SIDES = dict(triangle=3, square=4, rectangle=4, pentagon=5, hexagon=6, octagon=8)
DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = words(
    "January February March April May June July August September October November December"
)
ORD = words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty"
)
SIZE = words("ant bee mouse frog cat dog sheep pig cow horse elephant whale")
DEFS = pairs("""moon:The moon is a ball of rock that goes around the Earth. It shines at night because it reflects the light of the sun.|sun:The sun is a star. It gives the Earth light and heat.|
rain:Rain is water that falls from clouds in small drops.|snow:Snow is frozen water that falls from clouds as white flakes.|river:A river is a long stream of water that flows to a lake or the sea.|bee:A bee is a small flying insect that makes honey.|
tree:A tree is a tall plant with a trunk, branches and leaves.|bread:Bread is a food made from flour and water and baked in an oven.|bridge:A bridge is a road over a river or a valley.|clock:A clock is a machine that shows the time.|
map:A map is a drawing that shows where places are.|boat:A boat is a small ship that travels on water.|book:A book is a set of pages with words to read.|school:A school is a place where children learn.|doctor:A doctor is a person who helps sick people.|
farmer:A farmer is a person who grows food and keeps animals.|computer:A computer is a machine that follows instructions very fast.|program:A program is a list of instructions for a computer.|function:A function is a named piece of a program that does one job.|
variable:A variable is a name for a value in a program.|loop:A loop is a part of a program that repeats.|list:A list is a sequence of values in a program.|file:A file is a named piece of data on a computer.|token:A token is a small piece of text that a language model reads.|
language model:A language model is a program that guesses the next piece of text.|cache:A cache keeps results so that they need not be computed again.|volcano:A volcano is a mountain that can throw out hot melted rock.|desert:A desert is a dry place with very little rain.|
island:An island is land with water on all sides.|forest:A forest is a large place with many trees.|winter:Winter is the coldest season of the year.|summer:Summer is the warmest season of the year.|friend:A friend is a person you like and trust.|
library:A library is a place where people can read and borrow books.|magnet:A magnet is a piece of metal that pulls iron.|ice:Ice is water that is frozen.|wind:Wind is moving air.|shadow:A shadow is the dark shape made when something blocks the light.|
rainbow:A rainbow is an arc of colors in the sky made by sun and rain.|planet:A planet is a large ball that goes around a star. The Earth is a planet.|star:A star is a huge ball of hot gas that gives light.""")

ME = "I am a tiny demo language model with the DeepSeek V4 architecture. I can tell short stories, answer simple questions and call tools."


CREATURES = words(
    "robot dragon princess prince king queen witch wizard knight pirate giant fairy ghost farmer baker sailor doctor "
    "teacher painter dwarf mermaid unicorn monster snowman astronaut gardener shepherd clown kitten puppy"
)

# Most names come from the list; the others are put together, so that a name is something to copy and not to know.
_ONSETS = words("B D F G H J K L M N P R S T V W Z Ch Sh Br Dr Fl Gr Tr St")
_MIDDLES = words("b d l m n r s t v z k p f g ll mm nn rr ss tt nd rt lv nk")
_ENDS = words("a a a i i e o o y us in on el er is an en ia ie ette o u")
_VOWELS = words("a a e e i o o u ai ee oo")


def any_name(r: Random) -> str:
    if r.random() < 0.6:
        return r.choice(NAMES)
    name = r.choice(_ONSETS + list("AEIOU"))
    if name in "AEIOU":
        name += r.choice(_MIDDLES)
    else:
        name += r.choice(_VOWELS) + r.choice(_MIDDLES)
    if r.random() < 0.3:
        name += r.choice(_VOWELS) + r.choice(_MIDDLES)
    return name + r.choice(_ENDS)


def any_names(r: Random, n: int, but: str = "") -> list[str]:
    """n different names, none of them `but`."""
    names: list[str] = []
    while len(names) < n:
        name = any_name(r)
        if name != but and name not in names:
            names.append(name)
    return names


def is_girl(name: str) -> bool:
    return name in GIRLS or (name not in NAMES and name.endswith(("a", "i", "ie", "ette", "y")))


def with_article(word: str) -> str:
    return ("an " if word[0] in "aeiou" and word != "user" else "a ") + word


def words_num(n: int) -> str:
    """Numbers below 100 in words."""
    if n <= 20:
        return ORD[n]
    t = words("x x twenty thirty forty fifty sixty seventy eighty ninety")
    return t[n // 10] + ("-" + ORD[n % 10] if n % 10 else "")


ALLW = sorted(set(ANIMALS + OBJECTS + PLACES + FRUITS + VEGS + COLORS + TOOLSW + VEHICLES))
GIRLS = set(
    words(
        """Lily Mia Sara Anna Lucy Emma Zoe Ruby Nora Ella Ivy Amy Rosa Maya Olga Tara Nina Alma Jill Pia June Vera Mina Hana Lena Rita Amara Priya Mei Aiko Alice Clara Edith Grace Iris Kate"""
    )
)
FOODS = words("cake pie bread soup cookie pancake sandwich pudding muffin cheese")
SKILLS = phrases(
    "swim|dance|ride a bicycle|play the drum|sing|whistle|climb trees|draw horses|skate|fly a kite|bake bread|play chess"
)
