"""The grammar of the generated stories, as data: the second half of the plots, and how tales end."""

PLOTS_AND_ENDS = """\
# Two friends fall out, and make it up.
quarrel
    <quarrel_find> <quarrel_words> <quarrel_sad> <quarrel_sorry>
quarrel_find
    <one_day> they found {shade.a} {thing} {place.in} .
    <one_day> {place.in} , they saw {shade.a} {thing} .
quarrel_words
    2 " i saw it first ! " [ shouted | said ] {hero} . " no , it is mine ! " [ shouted | said ] {friend} .
    they pulled and pulled until they [ fell over | were tired ] .
    " give it to me ! " said {friend} . " never ! " [ said | cried ] {hero} .
quarrel_sad
    2 they went home angry . {hero} tried to {hobby} , but it was no fun alone .
    that night {hero} [ lay awake | cried ] {home} and missed {friend} .
quarrel_sorry
    2 " i am sorry , " {hero} [ said | whispered ] . " we can {thing.use} together . " <after_friend>
    in the morning {friend} came with some {food} . " you keep the {thing} , " said {friend} . <after_thing>
    but soon {hero.he} {kind.went} back to {friend} . " i was [ wrong | unfair ] , " {hero.he} said . <after_there>

# What makes a noise in the night?
night
    <night_fear> <night_noise> [ <night_hide> | ] <night_door> <night_talk> <night_after>
night_fear
    2 but {hero} was afraid of {fear} .
    nobody knew that {hero} was afraid of {fear} .
night_noise
    2 one {season} night , something went [ bump | tap tap tap | creak ] outside .
    one night , there was a [ scratching | rustling | moaning ] [ sound | noise ] at the window .
night_hide
    {hero} hid under the [ bed | table | blankets ] , but the sound came again .
    " who is there ? " whispered {hero} . nobody answered .
night_door
    2 at last {hero.he} took {shade.a} {thing} and opened the door .
    {hero.he} held {hero.his} {shade} {thing} tight and looked out .
night_talk
    2 it was only a little {friend_kind} . " i am {friend} , and i am afraid of {fear} . "
    there stood {friend} the {friend_kind} . " are you afraid of {fear} too ? " asked {friend} .
night_after
    2 they ate some {food} , and [ together | from then on ] {fear} did not seem so bad . <the_end>
    " then let us be brave together , " said {hero} . <after>
    {hero} walked home with {friend} , and was not afraid of {fear} at all . <after_thing>

# A seed grows, whatever they say.
garden
    <garden_seed> <garden_laugh> <garden_care> <garden_grown> [ 2 <garden_wrong> | ] <garden_feast>
garden_seed
    one [ 3 spring | summer ] day , {hero} found a {plant} seed {place.in} and planted it .
    <one_day> {hero.he} planted a {plant} seed and waited .
garden_laugh
    2 " nothing will grow [ there | from that ] , " [ laughed | said ] <new_friend> .
    {friend} the {friend_kind} came by every day and [ laughed | shook a wise head ] .
garden_care
    2 but {hero} watered it every morning and [ sang | talked ] to it every night .
    but {hero} was {trait} and [ waited | did not give up ] .
    {hero.he} carried water from the {place} every [ morning | evening ] .
garden_grown
    [ weeks passed | the sun shone | the rain fell ] , and [ at last | by autumn ] the {plant} was {plant.big} !
    by harvest time the {plant} was {plant.big} .
garden_wrong
    " i was wrong , " said {friend} . " it is [ beautiful | wonderful ] . "
    {friend} could not believe it . " teach me how , " {friend} [ said | begged ] .
garden_feast
    2 {hero} made {plant.dish} for everyone , and {friend} had three helpings . <the_end>
    <after_friend>
    {hero} kept one {plant} seed for {friend} , to plant in the next spring . <the_end>
    that evening they ate {plant.dish} and told each other stories .

# A map, a cross and a chest.
treasure
    <treasure_map> <treasure_tell> <treasure_dig> <treasure_chest> <after_there>
treasure_map
    2 <one_day> {hero} found an old map [ in a bottle | inside a book | under the floor ] . it showed the {place} .
    <one_day> the wind blew an old map [ into the house | down the chimney ] . it led to the {place} .
treasure_tell
    2 {hero.he} ran to tell {friend} the {friend_kind} . " let us go [ at once | now ] ! " said {friend} .
    " i will come too , " said {friend} , {friend_kind.a} who loved adventures .
    {place.in} , where {place.view} , {hero.he} met <new_friend> .
treasure_dig
    2 {place.spot} they dug and dug until they hit [ a chest | an iron box ] .
    at last {friend} {friend_kind.seek} and found [ a chest | an iron box ] {place.spot} .
treasure_chest
    2 inside lay {shade.a} {thing} . it {thing.did} .
    there was no gold inside , only {shade.a} {thing} . " we can {thing.use} , " said {hero} .

# Somebody new next door.
newcomer
    <new_comes> <new_alone> <new_knock> <new_asks> <new_shows> <after>
new_comes
    2 <one_day> <new_friend> moved into the house next door .
    <new_friend> came from far away to live {place.in} .
new_alone
    2 nobody spoke to {friend} , because nobody [ knew | had ever seen ] {friend_kind.a} .
    {friend} was too shy to say [ hello | a word ] .
new_knock
    but {hero} knocked on the door with some {food} .
    {hero} knew how it feels to be alone , and {kind.went} to say hello .
new_asks
    " would you like to {hobby} with me ? " asked {hero} .
    " welcome , " said {hero} . " i like to {hobby} . "
new_shows
    2 {friend} smiled and showed {hero.him} {shade.a} {thing} . it {thing.did} .
    {friend} brought out {shade.a} {thing} . " we can {thing.use} ! "

# One works, one plays, and then the snow falls.
winter
    <winter_work> <winter_laugh> <winter_snow> <winter_knock> <winter_let_in>
winter_work
    all [ summer | autumn ] , {hero} gathered [ nuts and berries | corn and apples | roots and seeds ] for the winter .
    while the [ sun shone | days were long ] , {hero} [ filled the pantry | chopped wood | mended the roof ] .
winter_laugh
    2 {friend} the {friend_kind} only wanted to {hobby} . " winter is far away , " laughed {friend} .
    " why do you work so hard ? " asked {friend} the {friend_kind} . " come and {hobby} with me ! "
winter_snow
    then the snow came , and {friend} had nothing to eat .
    but winter came early , and the wind was [ bitter | icy ] .
winter_knock
    {friend} knocked at the door and [ said | whispered ] , " i was foolish . "
    {hero} found {friend} [ shivering | sitting sadly ] {place.in} .
winter_let_in
    2 " come in , " said {hero} , and gave {friend} some {food} . " now teach me to {hobby} . " <winter_after>
    {hero} shared everything , and {friend} [ promised | learned ] to work harder the next year . <the_end>
    " there is enough for two , " said {hero} . <after_friend>
winter_after
    and so they spent the long winter {hobby.ing} .
    by spring , nobody was better at {hobby.ing} than {hero} .

# A fallen star, and a wish.
star
    <star_falls> <star_asks> [ <star_carried> | ] <star_wish> <star_comes> <after_there>
star_falls
    2 one {season} night , a star fell from the sky and landed {place.in} .
    one night , {hero} [ saw | found ] a [ small | fallen | lost ] star {place.in} .
star_asks
    2 " please [ help | take ] me home , " [ said | begged ] the star .
    " i am cold , " said the star [ sadly | softly ] . {hero} picked it up .
star_carried
    {hero} carried it up the highest [ hill | tower | tree ] and threw it into the sky .
    {hero.he} let it sleep {home} until it could fly again .
star_wish
    2 " make a wish , " said the star . " i wish for a friend , " said {hero} .
    " what do you wish for ? " it asked . {hero} [ said | whispered ] , " a friend . "
star_comes
    the next morning <new_friend> came by with {shade.a} {thing} .
    and there at the door stood {friend} the {friend_kind} , holding {shade.a} {thing} .

# Ways to close: with the friend, with the thing, with the place.
after
    <after_friend> | 2 <after_thing>
after_there
    2 <after_friend> | 3 <after_thing> | 4 <after_place>
after_friend
    3 from that day on , {hero} and {friend} were [ 2 the best of friends | never apart ] . <the_end>
    that night , the {kind} and the {friend_kind} ate some {food} [ by the fire | under the moon ] . <the_end>
    the {kind} and the {friend_kind} [ talked until the moon rose | laughed until they fell asleep ] .
    the {trait} {kind} was never lonely again . <the_end>
    after that they met every [ day | sunday ] to {hobby} together . <the_end>
    and they lived happily ever after .
after_thing
    that night , {hero} fell asleep {home} with the {thing} [ by {hero.his} bed | under {hero.his} pillow ] .
    2 to this day , whenever {hero} sees the {shade} {thing} , {hero.he} thinks of {friend} . <the_end>
    if you visit the {kind} , you may see the {shade} {thing} [ above | beside ] the door . <the_end>
after_place
    2 {hero} and {friend} often went back to the {place} with the {thing} . <the_end>
    that evening they sat {place.in} , where {place.view} . <the_end>
    if you ever go to the {place} , you may still see the {shade} {thing} . <the_end>
    2 to this day , the {shade} {thing} reminds them of the {place} . <the_end>
    on quiet days , they meet {place.in} and {thing.use} . <the_end>
the_end
    the end .
    1
"""
