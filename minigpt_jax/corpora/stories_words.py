"""The words of the generated stories, as data: the entries that each slot can stand for, and their forms.

Each block is a lexicon. Its first line has the name of the lexicon and the names of the forms. Each row has an entry
and the words of its forms. `{place}` is replaced by an entry, and `{place.spot}` by that form of it; `stories.Grammar`
explains the rest. The forms of different entries may be unrelated (how an animal helps, what a bell does): a tale
refers back to them, so a model has to learn them.
"""

_HE = "3 tom, 2 jack, 2 ben, sam, leo, finn, oscar, hugo, otto, felix, henry, theo, toby, milo, rufus, jasper"
_SHE = "3 mia, 2 lily, 2 anna, rosie, clara, daisy, ella, molly, poppy, hazel, ivy, nora, tilly, luna, stella, greta"

_NAMES = "\n".join(
    ["name | he | him | his"]
    + [f"    {name} | he | him | his" for name in _HE.split(", ")]
    + [f"    {name} | she | her | her" for name in _SHE.split(", ")]
)

SLOTS = {"hero": "name", "friend": "name", "friend_kind": "kind", "friend_trait": "trait"}
"""The lexicon of each slot that is not named after its lexicon."""

LEXICONS = f"""
{_NAMES}
kind           | went      | seek                             | help
    3 fox      | trotted   | followed a faint smell           | dug with quick paws
    3 rabbit   | hopped    | listened with both ears          | kicked the earth away
    2 bear     | ambled    | turned over every stone          | lifted the heavy stones
    3 mouse    | scurried  | crept into the smallest holes    | nibbled through the roots
    2 owl      | flew      | watched from a high branch       | pulled with strong claws
    2 squirrel | scampered | searched from tree to tree       | threw down a long vine
    frog       | leaped    | peered into every puddle         | pushed from below
    2 duck     | waddled   | looked behind every bush         | flapped and pulled
    2 hedgehog | shuffled  | rustled through the leaves       | rolled the rocks away
    badger     | plodded   | sniffed along the path           | dug with broad paws
    goat       | skipped   | climbed up to look around        | pushed with two hard horns
    cat        | padded    | stared into the shadows          | tugged with soft paws
    crow       | flapped   | circled high above the ground    | let down a piece of string
    turtle     | wandered  | looked slowly and carefully      | pushed like a little rock
    donkey     | jogged    | asked everyone on the road       | pulled on a long rope
    lamb       | pranced   | looked in every corner           | made a rope of wool
    deer       | bounded   | stepped softly through the ferns | bent down a green branch
trait
    3 brave
    2 kind
    2 shy
    2 curious
    2 clever
    lazy
    proud
    cheerful
    gentle
    quiet
    lonely
    clumsy
    merry
    polite
    stubborn
    sleepy
    old
    hungry
home
    3 in a hollow tree
    2 under a green hill
    2 beside a quiet stream
    2 in a tiny cottage
    near the old village
    under a mossy oak
    in a snug burrow
    behind the windmill
    in a round house
    on a small island
hobby                    | ing
    2 sing old songs     | singing old songs
    2 watch the clouds   | watching the clouds
    2 count the stars    | counting the stars
    bake fresh bread     | baking fresh bread
    paint small pictures | painting small pictures
    tell funny stories   | telling funny stories
    pick wild flowers    | picking wild flowers
    collect pebbles      | collecting pebbles
    climb tall trees     | climbing tall trees
    write long letters   | writing long letters
    dance in puddles     | dancing in puddles
    read fairy tales     | reading fairy tales
    fish for trout       | fishing for trout
    invent riddles       | inventing riddles
season
    2 spring
    2 summer
    2 autumn
    winter
place          | in              | spot                       | view
    3 forest   | in the forest   | under a fallen log         | the leaves whispered
    2 river    | by the river    | between two smooth stones  | the water sang
    2 mountain | on the mountain | behind a grey rock         | the air was clear
    2 meadow   | in the meadow   | in the tall grass          | the bees hummed
    2 lake     | beside the lake | among the reeds            | the water shone like glass
    2 market   | at the market   | under a wooden table       | the air smelled of spice
    orchard    | in the orchard  | beneath a basket of apples | the branches hung low
    2 beach    | on the beach    | inside a pink shell        | the waves rolled in
    2 garden   | in the garden   | beneath a rose bush        | the butterflies played
    cave       | in the cave     | on a dusty ledge           | the shadows were deep
    marsh      | in the marsh    | on a patch of moss         | the mist was thick
    castle     | at the castle   | behind a broken door       | the towers touched the sky
    harbour    | at the harbour  | inside an empty barrel     | the boats rocked gently
    farm       | at the farm     | in a pile of hay           | the corn grew high
    valley     | in the valley   | near a crooked pine        | every sound had an echo
shade
    3 red
    3 blue
    2 green
    2 golden
    2 silver
    yellow
    purple
    white
    orange
    pink
    striped
    spotted
thing         | did                          | use
    3 bell    | rang like a happy bird       | ring it at supper time
    2 lantern | glowed like a small moon     | light the path with it
    3 kite    | danced on the wind           | fly it on windy days
    2 drum    | boomed like distant thunder  | play it at parties
    2 flute   | sounded like a lark          | play it at sunset
    ring      | sparkled like morning dew    | wear it every day
    cup       | kept the tea warm            | drink tea from it
    2 scarf   | felt like a cloud            | wear it in the snow
    2 hat     | had a feather on top         | wear it on sundays
    whistle   | could be heard for miles     | call everyone with it
    spoon     | made every soup taste better | stir the soup with it
    2 ball    | bounced up to the roof       | play with it all day
    blanket   | was warmer than a hug        | sleep under it
    clock     | ticked like a little heart   | wake up with it
    basket    | smelled of summer grass      | fill it with plums
    umbrella  | opened like a flower         | stay dry under it
    teapot    | hummed when it was full      | make tea in it
    boat      | floated like a swan          | sail it on the pond
food
    3 honey cake
    2 berry pie
    2 warm bread
    onion soup
    apple tart
    mushroom stew
    ginger biscuits
    walnut cookies
    toasted cheese
    hot porridge
stuck                            | it
    2 was stuck in the mud       | the mud
    2 had fallen into a hole     | that hole
    was trapped under a branch   | that tree
    was tangled in the thorns    | the thorns
    was caught between two rocks | those rocks
    had slipped into a ditch     | that ditch
goal                    | saw
    3 the sea           | it was wide and blue
    the rainbow         | every colour shone
    the oldest tree     | its leaves touched the sky
    the ice palace      | its walls were made of snow
    the great waterfall | it roared like a lion
    the whale island    | the whales were singing
    the lighthouse      | its lamp lit the waves
contest                 | win
    3 a race            | ran faster than the wind
    2 a singing contest | sang like an angel
    a cooking contest   | made the best pancakes
    a dancing contest   | danced until dawn
    a painting contest  | painted the loveliest picture
    a riddle contest    | knew every answer
fear
    2 the dark
    2 thunder
    deep water
    strange noises
    big shadows
    ghosts
    the moon
plant           | dish           | big
    3 pumpkin   | pumpkin soup   | as round as the moon
    turnip      | turnip stew    | as heavy as a wagon
    strawberry  | strawberry jam | as sweet as honey
    2 carrot    | carrot cake    | as long as a fence
    cherry tree | cherry pie     | as red as a sunset
    melon       | melon salad    | as big as a house
    bean        | bean stew      | as tall as a tower
"""
