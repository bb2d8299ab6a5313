"""The grammar of the generated stories, as data: how tales begin, and the first half of the plots.

`stories_plots` has the other plots and the ends; `stories.Grammar` explains the format. Rules for writing plots:

- All words are lower case, punctuation marks are words of their own, and there are no apostrophes or hyphens. A
  tokenizer that folds case and splits at punctuation then gives the text back.
- A slot is drawn where a tale first mentions it. A line that refers back ("the {thing}") therefore has to come after a
  line that introduces the slot ("{shade.a} {thing}").
- "he" is the hero; the friend is referred to by name or kind.
- No tale may be longer than `stories.MAX_WORDS`; a test computes the length of the longest.
"""

from minigpt_jax.corpora.stories_plots import PLOTS_AND_ENDS

OPENINGS_AND_PLOTS = """
tale
    3 <opening> [ <habit> | ] <plot>
    <opening_home> <plot>
opening
    5 once upon a time , there was {trait.a} {kind} named {hero} .
    2 long ago , there was {trait.a} {kind} called {hero} .
    2 this is the story of {hero} , {trait.a} {kind} .
    do you know the tale of {hero} the {trait} {kind} ?
opening_home
    3 once upon a time , {trait.a} {kind} named {hero} lived {home} .
    2 {home} , there lived {trait.a} {kind} whose name was {hero} .
    when the world was young , {trait.a} {kind} named {hero} lived {home} .
habit
    3 every [ 2 morning | evening | day ] , {hero.he} [ liked | loved ] to {hobby} .
    2 more than anything , {hero.he} loved {hobby.ing} .
    2 {hero} was [ happiest | happy ] when {hero.he} could {hobby} .
    everyone said that {hero.he} was always {hobby.ing} .
one_day
    3 one day ,
    3 one {season} [ 2 morning | afternoon | evening ] ,
    2 one [ 2 sunny | windy | misty | cold ] day ,
    early one morning ,
    when [ the snow melted | leaves turned red | apples were ripe | the cuckoo called ] ,
plot
    4 <lost> | 4 <rescue> | 3 <journey> | 3 <storm> | 3 <contest> | 3 <gift> | 3 <treasure>
    5 <best_friend> [ 3 <quarrel> | 2 <secret> ]
    2 <night> | 2 <garden> | 2 <newcomer> | 2 <winter> | 2 <star>

# Ways to bring in the friend: met for the first time, or dear already.
new_friend
    2 {friend_kind.a} named {friend}
    {friend} the {friend_kind}
    {friend_trait.a} {friend_kind} named {friend}
best_friend
    2 {hero.his} best friend was {friend_kind.a} named {friend} .
    {hero} and {friend} the {friend_kind} were [ 2 best friends | neighbours ] .
    {hero} did everything with {friend} the {friend_kind} .

# Something dear is lost; a friend is found with it.
lost
    <lost_dear> <lost_gone> [ 2 <lost_cry> | ] <lost_friend> <lost_found> <after_there>
lost_dear
    2 {hero.his} [ greatest | only ] treasure was {shade.a} {thing} that {thing.did} .
    2 {hero.he} had {shade.a} {thing} , and it {thing.did} .
    {hero} loved {hero.his} {shade} {thing} , [ for | because ] it {thing.did} .
    {hero.his} [ 2 grandmother | grandfather | aunt ] had [ given | left ] {hero.him} {shade.a} {thing} .
lost_gone
    2 <one_day> {hero.he} lost it {place.in} .
    <one_day> it fell from {hero.his} [ bag | pocket | cart ] {place.in} .
    <one_day> {hero} came home from the {place} without it .
lost_cry
    2 " oh [ no | dear ] , where is my {thing} ? " [ cried | sobbed | wailed ] {hero} .
    {hero} looked [ high and low | everywhere ] and began to cry .
    " i will never see it again , " {hero.he} [ sighed | sobbed ] .
lost_friend
    2 " i [ will | can ] help you [ look | ] , " said <new_friend> .
    {hero.he} asked <new_friend> [ for help | what to do ] .
    luckily , <new_friend> [ was passing by | heard the news ] .
lost_found
    2 {friend} {friend_kind.seek} , and there , {place.spot} , lay the {shade} {thing} .
    {hero} [ called | waited ] while {friend} {friend_kind.seek} . at last they found it {place.spot} .
    back {place.in} , {friend} {friend_kind.seek} until it turned up {place.spot} .

# The hero helps somebody in trouble, and gets a present.
rescue
    <rescue_walk> <rescue_seen> <rescue_free> <rescue_thanks>
rescue_walk
    2 <one_day> {hero} {kind.went} to the {place} , where {place.view} .
    <one_day> {hero} was [ picking berries | gathering sticks | looking for mushrooms ] {place.in} .
    <one_day> {hero.he} went for a walk {place.in} .
rescue_call
    2 [ suddenly | then ] a [ small | sad | frightened ] voice [ called | cried ] , " [ help | help me ] ! "
    {hero.he} heard [ a cry for help | someone crying | a strange noise ] .
rescue_seen
    2 <rescue_call> it was {friend} the {friend_kind} , who {stuck} .
    <rescue_call> <new_friend> {stuck} and could not get out .
    there <new_friend> {stuck} . " [ hold still | do not be afraid | poor thing ] , " said {hero} .
    " i will get you out , " said {hero} to {friend} the {friend_kind} , who {stuck} .
rescue_free
    2 {hero} {kind.help} [ 2 | again and again | with great care ] until {friend} was free .
    it was [ hard | slow ] work , but {hero} {kind.help} [ and {friend} was free | until {friend} got out ] .
rescue_thanks
    2 " thank you , " said {friend} . " please take this {shade} {thing} . " <after_there>
    to say thank you , {friend} gave {hero.him} {shade.a} {thing} that {thing.did} . <after_there>
    the next day , {friend} brought {hero.him} some {food} and {shade.a} {thing} . <after_there>
    " thank you , " said {friend} . " now stay away from {stuck.it} , " [ laughed | answered ] {hero} . <the_end>
    {friend} never went near {stuck.it} again , and gave {hero} {shade.a} {thing} . <after_thing>

# A long way to a place dreamed of.
journey
    <journey_wish> <journey_pack> <journey_way> <journey_there>
journey_wish
    2 {hero.he} had always wanted to [ see | find | visit ] {goal} .
    one night , {hero} [ dreamed of | read about ] {goal} .
    " i want to see {goal} [ before i am old | ] , " {hero} said .
journey_pack
    2 so one morning {hero.he} packed some {food} and {shade.a} {thing} and set out .
    <one_day> {hero.he} took {shade.a} {thing} , [ locked | closed ] the door and left .
journey_way
    {hero.he} {kind.went} past the {place} , where {place.view} . <journey_met>
    for [ two | 2 three | seven ] days {hero.he} walked through [ rain | snow | mist ] and wind . <journey_met>
    2 <journey_met> <journey_night>
    2 " where is {goal} ? " {hero.he} asked <new_friend> . " follow me ! "
journey_met
    at a [ crossroads | bridge | village ] {hero.he} met <new_friend> , who knew the way .
    <new_friend> was going there too , so they [ walked | travelled ] together .
journey_night
    2 at night the {thing} {thing.did} .
    at night they [ slept under the stars | told each other stories ] , and {friend} kept watch .
    when they were tired , they rested and shared some {food} .
journey_there
    2 at last they [ stood before | came to | saw ] {goal} . {goal.saw} . <journey_home>
    they [ climbed | crossed ] one more hill , and there was {goal} . {goal.saw} . <journey_home>
journey_home
    2 " it was worth every step , " {hero} [ told | whispered to ] {friend} . <the_end>
    {hero} came home [ tired and happy | the next spring ] and told everyone about {goal} . <the_end>
    {hero} left the {shade} {thing} there as a gift . <the_end>
    <after_thing>
    <after_friend>

# A storm brings a guest.
storm
    <storm_comes> <storm_guest> <storm_warm> [ 2 <storm_pass> | ] <storm_morning>
storm_comes
    2 one {season} night , a [ great | terrible | wild ] storm [ came | blew ] [ over the hills | from the mountains ] .
    <one_day> the sky turned [ black | dark ] and the wind began to [ howl | blow ] .
    <one_day> [ 2 rain | hail | snow ] began to fall , and it fell [ for three days | without end ] .
storm_guest
    2 there was a knock at the door . it was <new_friend> .
    the wind blew the roof off the house of {friend} the {friend_kind} .
    {hero} saw <new_friend> [ shivering | shaking | hiding ] under a bush .
storm_warm
    2 " come in , " said {hero} . " there is room for two . "
    {hero} [ opened the door | lit a fire ] and made some {food} .
    " [ you can stay | come and live | wait here ] with me , {friend} , " said {hero} .
storm_pass
    2 they passed the time {hobby.ing} while the [ rain | hail | thunder ] went on .
    the thunder rolled all night , but they [ were not afraid | only laughed | slept soundly ] .
storm_morning
    in the morning a fallen tree blocked the door . {friend} {friend_kind.help} until it moved . <after_friend>
    when the sun came out , {place.in} , {place.spot} , they found {shade.a} {thing} . <after_there>
    the next [ day | week ] {hero} helped {friend} build a new house {place.in} . <after_friend>

# Winning is not everything.
contest
    <contest_news> <contest_boast> [ <contest_practice> | ] <contest_turn>
contest_news
    2 <one_day> there was {contest} {place.in} . the prize was {shade.a} {thing} that {thing.did} .
    <one_day> the [ king | queen | mayor ] held {contest} {place.in} . the winner would get {shade.a} {thing} .
contest_boast
    2 " nobody can beat me , " [ 2 bragged | laughed | boasted ] <new_friend> .
    everyone [ thought | said ] that {friend} the {friend_kind} would win .
    " you are too {trait} to win , " said {friend} the {friend_kind} .
contest_practice
    2 {hero} practised every [ day | night ] for a [ week | month ] .
    {hero} was so nervous that {hero.he} could not sleep .
contest_turn
    2 {friend} did well , but {hero} {contest.win} . even {friend} [ clapped | cheered ] . <after_there>
    but {friend} [ fell asleep | came too late ] , and {hero} {contest.win} and won the {thing} . <after_thing>
    2 but on the way {friend} {stuck} . {hero} {kind.help} until {friend} was free . <contest_share>
contest_share
    they came last , but the [ judges | others ] gave the {thing} to both of them . <the_end>
    " take the {thing} , " said {friend} . " no , we will share it , " said {hero} . <the_end>
    they came last , but what did it matter ? <after_friend>

# A friend has a secret.
secret
    <secret_away> [ <secret_ask> | ] <secret_follow> <secret_shown>
secret_away
    every [ night | evening ] , {friend} [ slipped away | went alone ] to the {place} .
    <one_day> {friend} began to hide something {place.in} .
secret_ask
    2 " where do you go ? " asked {hero} , but {friend} only smiled .
    " it is a secret , " [ said | whispered ] {friend} .
secret_follow
    at last {hero} followed [ on tiptoe | quietly | ] .
    {hero} could not sleep , so {hero.he} {kind.went} there .
secret_shown
    2 {place.spot} , {friend} was making {shade.a} {thing} . " it is for your birthday , " said {friend} . <secret_gift>
    {place.spot} [ sat | lay ] a [ baby bird | lost kitten | tiny bat ] with a [ broken | hurt ] foot . <secret_kept>
secret_gift
    " i [ promise | will try ] to look surprised , " laughed {hero} . <the_end>
    the {thing} {thing.did} . {hero} felt foolish and very happy . <the_end>
    <after_there>
secret_kept
    " tell no one , " said {friend} . {hero} promised , and brought some {food} every day . <the_end>
    from then on they cared for it together , and {hero} never told a soul . <the_end>
    together they made it well again . <after_friend>

# A present found or made.
gift
    <gift_day> <gift_made> [ <gift_doubt> | ] <gift_given> [ <after_friend> | <gift_after> ]
gift_day
    2 <one_day> it was the birthday of {friend} the {friend_kind} , but {hero} had no present .
    {hero} wanted to give something [ nice | special | beautiful ] to {friend} the {friend_kind} .
    winter was near , and {friend} the {friend_kind} was [ sad | ill | lonely ] .
gift_made
    2 {hero} {kind.went} to the {place} and traded some {food} for {shade.a} {thing} .
    {hero} worked all night and made {shade.a} {thing} out of [ wood | bits and pieces | old tin ] .
    {place.in} , {place.spot} , {hero} found {shade.a} {thing} and polished it .
gift_doubt
    " what if {friend} does not like it ? " {hero} [ wondered | worried ] .
    {hero.he} wrapped it in [ leaves | paper | moss ] and tied it with [ a ribbon | grass ] .
gift_given
    2 {friend} opened it slowly . the {thing} {thing.did} .
    " it is the [ best | loveliest ] present of all , " said {friend} . " i will {thing.use} . "
    {friend} [ laughed | cried | danced ] with joy . " now i can {thing.use} ! "
gift_after
    2 to this day , {friend} keeps the {shade} {thing} [ by the bed | near the window | in a box ] . <the_end>
    " i have something for you too , " said {friend} , and gave {hero.him} some {food} .
    then the {kind} and the {friend_kind} [ danced | sang | feasted ] until [ midnight | sunrise ] . <the_end>

"""

RULES = OPENINGS_AND_PLOTS + PLOTS_AND_ENDS
