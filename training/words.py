"""The vocabulary: what can be drawn, what each thing is called, and the named colours.

One line per thing: the emoji it is drawn from, its names (first the everyday one, then synonyms), then flags after "|":
`+` drawn more often, `=` keeps its own colours (faces, many-coloured things), `m` a mass noun (no article, no plural),
`p` a noun that is already plural,
`2` one that comes in pairs. No name holds a colour, so "a green apple" is always colour plus thing.
"""

from __future__ import annotations

from dataclasses import dataclass

TABLE = """
🐱 cat, kitty, kitten | +
🐶 dog, puppy | +
🐭 mouse
🐰 rabbit, bunny
🦊 fox
🐻 bear
🐼 panda | =
🐨 koala
🐯 tiger | =
🦁 lion
🐮 cow | =
🐷 pig, piglet
🐸 frog, toad | +
🐵 monkey | =
🐔 chicken, hen | =
🐧 penguin | =
🐦 bird | +
🦆 duck
🦉 owl
🦇 bat
🐺 wolf
🐴 horse, pony | +
🦄 unicorn | =
🐝 bee, honeybee | =
🐛 caterpillar
🦋 butterfly
🐌 snail
🐞 ladybug, ladybird
🐜 ant
🕷️ spider
🐢 turtle, tortoise
🐍 snake
🦖 dinosaur, tyrannosaurus
🐙 octopus | +
🦑 squid
🦞 lobster
🦀 crab
🐡 pufferfish, blowfish
🐠 fish, tropical fish | +
🐬 dolphin
🐳 whale
🦈 shark
🐊 crocodile, alligator
🦓 zebra | =
🐘 elephant
🦒 giraffe
🐑 sheep, lamb
🦜 parrot | =
🦢 swan | =
🦩 flamingo
🐿️ squirrel, chipmunk
🦔 hedgehog
🐉 dragon
🐥 chick
🌵 cactus
🌲 pine tree, fir tree, evergreen
🌳 tree | +
🌴 palm tree, palm
🍀 clover, shamrock
🍁 maple leaf
🍄 mushroom, toadstool
🌹 rose
🌻 sunflower
🌷 tulip
🌼 flower, daisy | +
🍎 apple | +
🍐 pear
🍊 tangerine, mandarin
🍋 lemon
🍌 banana | +
🍉 watermelon | =
🍇 grapes | p
🍓 strawberry
🍒 cherries | p
🍑 peach
🍍 pineapple
🍅 tomato
🍆 eggplant, aubergine
🥑 avocado | =
🥦 broccoli | m
🌶️ chili, hot pepper
🌽 corn | m
🥕 carrot
🍞 bread | m=
🥐 croissant
🥨 pretzel
🧀 cheese | m
🥚 egg
🥞 pancakes | p=
🍔 burger, hamburger, cheeseburger | =
🍟 fries, french fries | p=
🍕 pizza, slice of pizza | +=
🌭 hot dog | =
🌮 taco | =
🍣 sushi | m=
🍦 ice cream cone | =
🍩 donut, doughnut
🍪 cookie, biscuit | =
🎂 birthday cake, cake | +=
🧁 cupcake, muffin
🥧 pie | =
🍭 lollipop
🍿 popcorn | m=
☕ coffee, cup of coffee | m=
🍺 beer, mug of beer | m=
🫖 teapot
🏠 house, home | +
🏰 castle | +
🌋 volcano | =
🏔️ mountain | =
⛺ tent
⛵ sailboat, boat
🚢 ship
🚗 car | +
🚕 taxi, cab
🚌 bus
🚑 ambulance | =
🚒 fire truck, fire engine
🚚 truck, lorry
🚜 tractor
🏎️ race car, racing car, sports car
🏍️ motorcycle, motorbike
🚲 bicycle, bike
🚂 train, steam train, locomotive
✈️ airplane, plane
🚁 helicopter
🚀 rocket, spaceship
🛸 ufo, flying saucer
⚓ anchor
🏝️ island, desert island | =
⚽ soccer ball, football | =
🏀 basketball
🎾 tennis racket, racket
🏆 trophy
🎸 guitar
🎹 piano, piano keyboard | =
🎺 trumpet
🎻 violin, fiddle
🥁 drum
🎁 gift, present
🎈 balloon | +
🎃 pumpkin, halloween pumpkin
🎄 christmas tree
⌚ watch, wristwatch
📱 phone, smartphone | =
💻 laptop, computer
📷 camera
📺 tv, television
☎️ telephone
💡 light bulb, lightbulb
🕯️ candle
💎 diamond, gem
🔑 key
🔒 lock, padlock
🔨 hammer
✂️ scissors | p2
🧲 magnet
🔭 telescope
💊 pill
🛋️ sofa, couch
🪑 chair
🚪 door
🛏️ bed | =
🛁 bathtub, bath | =
🧸 teddy bear, teddy
🧦 socks | p2
👕 shirt, t-shirt
👖 jeans, trousers | p2
👗 dress
👟 shoe, sneaker
👑 crown
🎩 top hat, hat
🧢 cap, baseball cap
🎒 backpack, school bag
👓 glasses | p2
🕶️ sunglasses | p2
☂️ umbrella
💍 ring
✏️ pencil
📖 book, open book
✉️ envelope, letter
⏰ alarm clock, clock
⌛ hourglass
🌍 globe, planet | =
🌙 moon, crescent moon
☀️ sun | +
⭐ star | +
☁️ cloud | =
🌈 rainbow | =
❄️ snowflake
⛄ snowman | =
🔥 fire | m
⚡ lightning, lightning bolt | m
💧 water drop, drop of water
❤️ heart | +
🎲 dice
🤖 robot
👻 ghost | =
👽 alien | =
💀 skull | =
😀 smiley, happy face, smiley face | =
😎 cool face, face with sunglasses | =
😢 crying face, sad face | =
😡 angry face | =
"""

STYLES = ("3d", "flat", "pencil")  # the first is the default look, drawn when the prompt names no style

# Backgrounds and object colours: exact sRGB values.
BACKGROUNDS = {
    "white": (255, 255, 255), "black": (18, 18, 20), "red": (216, 44, 44), "orange": (244, 138, 36), "yellow": (250, 214, 56),
    "green": (62, 166, 78), "blue": (52, 110, 222), "purple": (138, 76, 198), "pink": (246, 154, 192), "gray": (142, 142, 146),
}  # fmt: skip
# Colours of things: hue in degrees, mean saturation, mean brightness.
COLOURS = {
    "red": (0, 0.85, 0.85), "orange": (26, 0.88, 0.95), "yellow": (49, 0.85, 0.96), "green": (125, 0.70, 0.66),
    "blue": (215, 0.80, 0.85), "purple": (274, 0.65, 0.76), "pink": (334, 0.48, 0.96), "brown": (24, 0.68, 0.50),
}  # fmt: skip


@dataclass(frozen=True)
class Thing:
    """One drawable thing and its English grammar."""

    emoji: str
    names: tuple[str, ...]
    flags: str

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def code(self) -> str:
        """Code points joined by "-", without variation selectors: the join key of both icon sets."""
        return "-".join(f"{ord(c):x}" for c in self.emoji if c != "\ufe0f")

    @property
    def countable(self) -> bool:
        return not set("mp") & set(self.flags)

    @property
    def recolourable(self) -> bool:
        return "=" not in self.flags


def parse_table(table: str) -> list[Thing]:
    things = []
    for line in table.strip().splitlines():
        left, _, flags = line.partition("|")
        emoji, _, names = left.strip().partition(" ")
        things.append(Thing(emoji, tuple(n.strip() for n in names.split(",")), flags.strip()))
    return things


THINGS = parse_table(TABLE)
