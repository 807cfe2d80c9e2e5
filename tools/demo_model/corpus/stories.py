"""Little stories with questions about them: a plot is a list of beats, a beat a few ways to say it."""

from __future__ import annotations

import re
from random import Random

from corpus.words import (
    ANIMALS,
    COLORS,
    CREATURES,
    FOODS,
    FRUITS,
    OBJECTS,
    PLACES,
    SKILLS,
    VEGS,
    VEHICLES,
    any_name,
    any_names,
    is_girl,
    phrases,
    with_article,
    words,
    words_num,
)

# A plot is a list of beats; a beat is alternatives parted by "|"; every plot has its questions.
INTRO = phrases("""Once upon a time, there was {who} named {n}. {n} lived near the {p1}.|{n} was {who} who lived close to the {p1}.|There once was {who} called {n}, who loved the {p1} more than any other place.|
In a small house by the {p1} lived {who}. {Her} name was {n}.|{n} was {who}. {S} was often {fl}.|Far away, near an old {p1}, there lived {who} whose name was {n}.|This is the story of {n}, {who} from the {p1}.""")
DAYB = phrases(
    "One day|One morning|One sunny day|One cold day|One rainy afternoon|Early one morning|One evening|On a windy day|On the first day of spring|One quiet afternoon|After breakfast"
)
PLOTS = [
    (
        "losing something",
        [
            "{n} had a {col} {ob}. {S} took it everywhere.|{Her} favorite thing was a {col} {ob}. It was a gift from {her} grandmother.|{S} had a {col} {ob} and never went out without it.",
            "{day}, the {col} {ob} was gone.|{day}, {n} woke up and could not find the {ob}.|But {day2}, the {ob} was not in its place.",
            "{n} looked in the {p1}, but it was not there.|{S} looked under the bed and behind the door. Nothing!|First {she} looked in the {p1}. No {ob}.",
            "{S} looked in the {p2}, but it was not there either.|Then {she} ran to the {p2} and looked behind every {ob2}.|In the {p2} {she} found only an old {ob2}.",
            'Then {n} met {a_an2} named {f}. "Why are you sad?" asked {f}.|{f}, {a_an2}, came by. "You look sad, {n}. What is wrong?"|A friendly {an2} named {f} heard {him} cry and came closer.',
            '"I lost my {col} {ob}," said {n}.|"My {ob} is gone, and I miss it so much," said {n}.|{n} told {f} about the {col} {ob}.',
            '"I saw it in the {p3}," said {f}. "Come with me."|"Let us look in the {p3}," said {f}.|{f} thought for a while. "Did you look in the {p3}?"',
            "They went to the {p3} together, and there it was, next to a {ob2}.|And really, the {ob} was in the {p3}, under a {ob2}.|In the {p3}, something {col} was on the floor. It was the {ob}!",
            '"Thank you, {f}!" said {n}. From that day on, they were good friends.|{n} was so happy that {she} hugged {f}.|{n} laughed and danced. "You are a true friend, {f}," {she} said.',
        ],
        [
            ("What did {n} lose?", "{n} lost a {col} {ob}."),
            ("Where was the {ob}?", "The {ob} was in the {p3}."),
            ("Who helped {n}?", "{f} helped {n}."),
        ],
    ),
    (
        "sharing",
        [
            "{day}, {n} had a big {food}.|{day}, {n} baked a {food}. It smelled very good.|{day}, {her} mother gave {n} a warm {food}.",
            "{f}, {a_an2}, came by and was hungry.|A hungry {an2} named {f} sat down next to {him}.|{Her} neighbor {f}, {a_an2}, had nothing to eat that day.",
            '"May I have some?" asked {f}.|"That looks nice," said {f}. "Could I have a small piece?"|"Please, can you share with me?" asked {f}.',
            '{n} did not want to share. {S} took the {food} and ran to the {p2}.|"No, it is mine!" said {n} and ran away to the {p2}.|{n} shook {her} head and hid in the {p2} with the {food}.',
            "But it was no fun to eat alone. {n} felt bad.|There {she} sat, all alone. The {food} did not taste good any more.|{S} took a bite, but {she} could only think of the sad face of {f}.",
            'So {she} went back and said, "I am sorry, {f}. Let us share."|{n} walked back. "I was not kind," {she} said. "Half of it is for you."|After a while {she} came back and cut the {food} in two.',
            '{f} smiled and gave {n} a {col} {ob}.|"Thank you!" said {f}. "I have something for you, too." It was a {col} {ob}.|{f} was so glad that {n} got a {col} {ob} as a present.',
            "They ate together, and it tasted much better.|The two friends sat in the sun and ate until nothing was left.|{n} learned that things are better when they are shared.",
        ],
        [
            ("Who was hungry?", "{f} was hungry."),
            ("What did {f} give to {n}?", "{f} gave {n} a {col} {ob}."),
            ("Where did {n} go with the {food}?", "{n} went to the {p2}."),
        ],
    ),
    (
        "being brave",
        [
            "{n} was afraid of the dark {p2}.|Everybody said that there was a monster in the {p2}, so {n} never went there.|At night, strange sounds came from the {p2}, and {n} was scared.",
            '{day}, {her} friend {f} was stuck there. "{n}, help me!" called {f}.|{day}, {n} heard a small voice from the {p2}. It was {her} friend {f}!|{day}, {f}, {her} best friend, did not come home from the {p2}.',
            '{n} was scared, but {she} took a {ob} and walked in slowly.|{n} took a deep breath, picked up a {ob}, and opened the door.|"I must help," thought {n}. With a {ob} in {her} hand {she} went inside.',
            "It was very quiet. Step by step, {n} came closer.|It was cold and dark, and {her} heart beat fast.|Something moved in the corner. It was only a little mouse.",
            "{S} found {f} under a big {ob2} and pulled hard. At last {f} was free.|{f} sat behind a {ob2} with a hurt foot. {n} carried {f} out.|There was {f}, caught between a wall and a {ob2}. {n} pushed until {f} could get out.",
            '"You are so brave!" said {f}.|"You came, even in the dark," said {f}. "Thank you!"|"I knew you would find me," said {f}.',
            '{n} smiled. The {p2} was not so bad after all.|From then on, {n} was not afraid of the {p2} any more.|"I was afraid," said {n}, "but you are my friend."',
        ],
        [
            ("What was {n} afraid of?", "{n} was afraid of the {p2}."),
            ("Who needed help?", "{f} needed help."),
            ("What did {n} take along?", "{n} took a {ob}."),
        ],
    ),
    (
        "being patient",
        [
            "{day}, {n} found a tiny seed in the {p2}.|{day}, a bird dropped a small seed in the {p2}, and {n} picked it up.|{day}, {n} bought one little seed at the market and took it to the {p2}.",
            '"What will it become?" {she} asked.|{S} did not know what it was.|"It is so small," {she} said.',
            '{f}, {a_an2}, said, "Give it water every day and wait."|"Put it in the ground and be patient," said {f}, {a_an2}.|{Her} friend {f}, {a_an2}, told {him} to plant it.',
            "{n} put the seed in the ground and gave it water with a {col} cup.|So {n} made a small hole and filled it with good earth. Every day {she} came with a {col} cup of water.|{n} planted it in the sun and carried water in a {col} cup.",
            'For many days nothing happened.|A week went by, and there was nothing to see.|{n} waited and waited. "It will never grow," {she} said.',
            '"Do not give up," said {f}.|"Good things take time," said {f}.|But {f} only smiled. "Wait a little more."',
            "Then a small green leaf came out. It grew and grew.|Then, after the rain, there was something green.|One morning, a little plant looked out of the ground.",
            'In the end there was {a_fr} on it. {n} and {f} ate it together and laughed.|When summer came, it gave {a_fr}, and {n} shared it with {f}.|It gave one big {fr}. "You were right, {f}," said {n}.',
        ],
        [
            ("What grew from the seed?", "{A_fr} grew from the seed."),
            ("Where was the seed found or planted?", "It was in the {p2}."),
            ("What color was the cup?", "The cup was {col}."),
        ],
    ),
    (
        "a trip",
        [
            '{day}, {n} wanted to see the {p2}. {S} packed a {ob} and a {ob2}.|{n} had never seen the {p2}. So {day2} {she} put a {ob} and a {ob2} into a bag.|"Today we go to the {p2}!" said {n}, and packed a {ob} and a {ob2}.',
            "{n} and {her} friend {f} went by {ve}.|{S} took the {ve} together with {f}.|{f} came along, and they went there by {ve}.",
            "On the way it began to rain, and the {ve} stopped.|But in the middle of the way the {ve} broke down.|Half way there, the {ve} made a loud noise and stood still.",
            '"What shall we do now?" asked {f}.|{f} began to cry. "Now we will never get there."|"Oh no!" said {f}. "It is still so far."',
            '"We can use my {ob}!" said {n}. It worked very well.|{n} had an idea. With the {ob} they could fix it.|{n} opened the bag, took out the {ob}, and in no time they could go on.',
            "In the evening they saw the {p2} at last. It was {col} in the light of the sun.|At last they came to the {p2}. Everything there was {col}.|When they came to the {p2}, it was more beautiful than they had thought.",
            '"This was the best day," said {f}, and {n} agreed.|They stayed until the stars came out.|Tired and happy, the two friends went home.',
        ],
        [
            ("How did they travel?", "They went by {ve}."),
            ("Where did they go?", "They went to the {p2}."),
            ("What did {n} pack?", "{n} packed a {ob} and a {ob2}."),
        ],
    ),
    (
        "telling the truth",
        [
            "{day}, {n} broke the {col} {ob} of {her} friend {f}.|{day}, {n} played with the {col} {ob} of {f}, and it fell down and broke.|{f} had a beautiful {col} {ob}. {day}, {n} dropped it by mistake.",
            '{n} was afraid and hid it in the {p2}.|Nobody had seen it, so {n} put the pieces in the {p2}.|"Nobody must know," thought {n} and hid it in the {p2}.',
            '"Have you seen my {ob}?" asked {f}. {n} said nothing.|Soon {f} came and looked for the {ob}. "I do not know where it is," said {n}.|When {f} asked about it, {n} looked at the floor.',
            "That night {n} could not sleep.|All day long, {n} had a bad feeling in {her} belly.|{n} did not want to eat and did not want to play.",
            'The next day, {n} went to {f}. "I broke your {ob}, and I hid it. I am sorry," {she} said.|In the morning {she} ran to {f} and told the truth.|At last {n} said, "It was me. I broke it, and I am very sorry."',
            '{f} was quiet for a while. Then {f} said, "Thank you for telling the truth. We can fix it together."|"I am sad about it," said {f}, "but I am glad that you told me."|{f} was not angry. "It is only a {ob}," {f} said. "You are my friend."',
            "They fixed the {ob} with some rope and put it in the {p3}.|Together they mended it, and it got a new place in the {p3}.|It took them all day to repair it in the {p3}.",
            "{n} learned that it is better to tell the truth.|And {n} slept very well that night.|From then on, {n} always told the truth.",
        ],
        [
            ("What did {n} break?", "{n} broke the {col} {ob} of {f}."),
            ("Where did {n} hide the {ob}?", "{n} hid it in the {p2}."),
            ("What is the lesson?", "It is better to tell the truth."),
        ],
    ),
    (
        "making a friend",
        [
            "{n} was new in town and knew nobody.|{n} had just moved to the {p1} and had no friends there.|Nobody played with {n}, because {she} was very shy.",
            "{day}, {she} sat alone in the {p2} with a {col} {ob}.|{day}, {n} took {her} {col} {ob} and went to the {p2}.|{day}, {she} saw some children in the {p2}. {S} held {her} {col} {ob} and did not dare to say hello.",
            '{a_an2C} named {f} looked at the {ob}. "That is nice," said {f}.|{f}, {a_an2}, stopped. "I like your {ob}," {f} said.|"What is that?" asked {a_an2}. "My name is {f}."',
            '"Do you want to try it?" asked {n}.|{n} smiled a little. "You can have a turn," {she} said.|"We could play with it together," said {n} in a small voice.',
            "They played until the sun went down.|Soon they were running and laughing all over the {p2}.|{f} showed {n} a secret place behind the {p2}, and they stayed there all day.",
            '"Will you come again tomorrow?" asked {f}.|"See you tomorrow!" called {f}.|"You are my first friend here," said {n}.',
            "That evening, {n} was not lonely any more.|{n} went home with a big smile.|And every day after that, the two played together.",
        ],
        [
            ("Where did {n} meet {f}?", "{n} met {f} in the {p2}."),
            ("What did {n} have?", "{n} had a {col} {ob}."),
            ("Who is {f}?", "{f} is {a_an2}."),
        ],
    ),
    (
        "not giving up",
        [
            "{n} wanted to learn to {skill}.|More than anything, {n} wanted to {skill}.|All {her} friends could {skill}, but {n} could not.",
            "{day}, {she} tried it for the first time, and it went wrong.|{S} tried it {day2}, but it did not work at all.|The first time, {she} fell right into the mud.",
            'Some children laughed. {n} felt {fl}.|"You will never learn it," said {a_an}.|{n} threw {her} {ob2} on the floor. "It is too hard!" {she} said.',
            'But {her} friend {f} said, "Try again. I will help you."|{f}, {a_an2}, sat down next to {him}. "I could not do it at first, either," said {f}.|"A little every day," said {f}, {her} friend. "That is the trick."',
            "So every day they went to the {p2} and practiced.|They practiced in the {p2}, in the sun and in the rain.|From then on, {n} practiced in the {p2} each morning.",
            "On the first day it was bad. On the third day it was better.|Little by little, it went better.|Some days {she} wanted to stop, but {f} did not let {him}.",
            'And then, one day, {n} could {skill}!|At the end of the month, {n} could {skill} better than anyone.|"Look, {f}!" called {n}. "I can {skill}!"',
            '{f} clapped and cheered.|"You did not give up," said {f}. "I am proud of you."|That night, {n} fell asleep with a smile.',
        ],
        [
            ("What did {n} want to learn?", "{n} wanted to learn to {skill}."),
            ("Who helped {n}?", "{f} helped {n}."),
            ("Where did they practice?", "They practiced in the {p2}."),
        ],
    ),
    (
        "helping",
        [
            "{day}, {n} saw {a_an2} in the {p2}. It had a hurt leg.|{day}, {n} heard a soft cry from the {p2}. There lay a little {an2}.|{day}, {n} found a small {an2} in the {p2}. It was wet and cold.",
            '"Poor thing!" said {n}. {S} took it home in a warm blanket.|{n} picked it up very gently and put it into a basket.|{n} carried it home in {her} arms and made a bed of straw.',
            "{S} gave it water and a little {food}.|{Her} mother brought some {food}, and it ate a little.|It was so hungry that it ate a whole {food}.",
            '{n} called it {f}.|"I will call you {f}," said {n}.|They named it {f}.',
            "Every day {f} got stronger.|After a week, {f} could walk again.|{n} stayed with {f} day and night, until it was well.",
            'Then it was time to say goodbye. {n} was sad, but {she} opened the door.|"You must go home now," said {n}, and tears ran down {her} face.|One morning, {n} took {f} back to the {p2}.',
            "{f} looked back one more time and ran off.|{f} gave {him} a soft push with the nose and was gone.|The little {an2} jumped into the grass.",
            "But next spring, {f} came back with a {col} {ob2} for {n}.|Some weeks later, {n} found a {col} {ob2} in front of the door. It was a present from {f}.|And sometimes, in the evening, {f} came to visit.",
        ],
        [
            ("What animal did {n} find?", "{n} found {a_an2}."),
            ("Where did {n} find it?", "{n} found it in the {p2}."),
            ("What was its name?", "Its name was {f}."),
        ],
    ),
    (
        "a race",
        [
            "Every year there was a big race from the {p1} to the {p2}.|{day}, all the animals met for a race to the {p2}.|The king gave a {col} {ob} to the one who came to the {p2} first.",
            '{f}, {a_an2}, was very fast. "I will win," said {f}.|"Nobody is as fast as I am," said {f}, {a_an2}.|{f}, {a_an2}, had won every year.',
            '{n} was slow, but {she} wanted to try.|"I will come, too," said {n}, and the others laughed.|{n} was small, but {she} was not afraid.',
            'They started. Soon {f} was far away.|"One, two, three, go!" {f} ran like the wind.|When the bell rang, {f} was out of sight at once.',
            "But in the {p3}, {f} stopped for some {food} and fell asleep.|In the {p3}, {f} saw a {ob2} and began to play with it.|{f} was so sure to win that {f} took a rest in the {p3}.",
            "{n} walked on and on, without a stop.|Step by step, {n} went past the {p3}.|{n} did not look left or right and kept going.",
            "When {f} came running, {n} was already there.|Everybody cheered when {n} came first.|{f} ran as fast as possible, but it was too late. {n} had won.",
            '"You won, because you did not stop," said {f}.|"Slow and steady wins the race," said {n}.|Since that day, nobody laughs at {n}.',
        ],
        [
            ("Who won the race?", "{n} won the race."),
            ("Where did {f} stop?", "{f} stopped in the {p3}."),
            ("Where did the race end?", "The race ended at the {p2}."),
        ],
    ),
    (
        "a secret door",
        [
            "{day}, {n} cleaned the {p1} and found a small {col} door.|Behind a {ob} in the {p1}, {n} saw a little {col} door.|{n} leaned on the wall of the {p1}, and a {col} door opened.",
            'It was locked. The key was under a {ob2}.|"Where does it go?" {she} asked. {S} looked for the key and found it in a {ob2}.|There was no key, but when {n} knocked with a {ob2}, the door opened.',
            "Behind it was a {p2} full of light.|{S} came into a {p2} where it was always summer.|On the other side {she} saw a strange {p2} with {col} trees.",
            '{a_an2C} was there and said, "Welcome! I am {f}."|"We have waited for you," said {a_an2}. "My name is {f}."|In the middle sat {a_an2} who was called {f}.',
            "{f} gave {him} {food} and told {him} an old story.|They danced, and they ate {food} together.|{f} showed {him} how to talk with the birds.",
            '"You must go before the clock strikes seven," said {f}.|"It is late," said {f}. "The door closes at night."|Then a bell rang, and {n} had to go home.',
            "{n} ran back, and the door closed behind {him}.|When {n} looked around, the door was gone.|{S} came back just in time for dinner.",
            "But in {her} pocket was a {ob} from {f}.|Nobody believed {him}, but {n} knew that it was true.|{n} looks for the {col} door every day.",
        ],
        [
            ("What color was the door?", "The door was {col}."),
            ("Who was behind the door?", "{f} was behind the door."),
            ("Where was the door?", "The door was in the {p1}."),
        ],
    ),
    (
        "a storm",
        [
            "{day}, dark clouds came over the {p1}.|{day}, the wind began to blow harder and harder.|{day}, a big storm came up.",
            "{n} was in the {p2} with {her} friend {f}.|{n} and {f} were playing in the {p2}.|{n} had gone to the {p2} with {f} to find a {ob}.",
            '"We must go home!" said {f}.|"I am scared," said {f}.|The rain fell so hard that they could not see the way.',
            '{n} saw a light in the {p3}. "This way!" {she} said.|"Quick, into the {p3}!" called {n}.|{n} took {f} by the hand, and they ran to the {p3}.',
            "There it was dry and warm. They sat under a {col} {ob2} and told stories.|They found a {col} {ob2} to keep warm and listened to the thunder.|Inside they lit a candle and shared the last {food}.",
            "At last the storm was over.|After an hour, the rain stopped.|In the morning, everything was quiet.",
            "A rainbow stood over the {p1}.|The sun came out, and the birds sang again.|The air smelled fresh and clean.",
            '"With you I am not afraid of storms," said {f}.|They went home hand in hand.|"That was a big adventure," said {n}.',
        ],
        [
            ("Where did they hide from the storm?", "They hid in the {p3}."),
            ("Who was with {n}?", "{f} was with {n}."),
            ("What color was the {ob2}?", "The {ob2} was {col}."),
        ],
    ),
    (
        "a surprise",
        [
            'It was the birthday of {f}, the best friend of {n}.|{day}, {n} remembered that {f} had a birthday.|"Tomorrow is the birthday of {f}," thought {n}, "and I have no present yet."',
            '{n} wanted to make a surprise, so {she} said nothing.|"Nobody may tell {f}," said {n} to all the neighbors.|{n} had an idea and kept it secret.',
            "First {she} baked a {food} in the {p1}.|In the {p1} {she} made a big {food}, and there was flour everywhere.|{Her} mother helped {him} to bake a {food}.",
            "Then {she} put a {ob} into {a_col} box.|For a present, {she} painted a {ob} {col}.|{S} took {her} best {ob} and tied {a_col} ribbon around it.",
            'But {f} came too early and knocked at the door. "Why do you hide from me?" asked {f}.|All day {f} was sad. "Everybody has forgotten me," {f} said.|{f} looked everywhere and could not find any of the friends.',
            '"Come with me to the {p2}," said {n} at last.|{n} took {f} by the hand and went to the {p2}.|"Close your eyes," said {n}, and they walked to the {p2}.',
            'There were all the friends with lights and songs. "Surprise!" they called.|"Surprise!" called everybody, and the {p2} was full of candles.|The whole {p2} was full of friends, and they began to sing.',
            '{f} laughed and cried at the same time. "I thought that you had forgotten me," said {f}.|"This is the best birthday of my life," said {f}.|They ate the {food} and danced until late at night.',
        ],
        [
            ("Where was the surprise?", "The surprise was in the {p2}."),
            ("What did {n} bake?", "{n} baked a {food}."),
            ("Who had a birthday?", "{f} had a birthday."),
        ],
    ),
    (
        "an old map",
        [
            "{day}, {n} found an old map inside a {ob}.|Under the floor of the {p1} lay an old map. {n} found it by chance.|{day}, the wind blew a piece of paper into the {p1}. It was a map!",
            'A {col} cross was drawn on it, right in the middle of the {p2}.|It showed the way to the {p2}, and there was a {col} cross.|"Look for the {col} cross in the {p2}," was written on it.',
            '{n} showed it to {f}, {a_an2}. "A treasure!" said {f}.|"What can it be?" asked {f}, {a_an2}, with big eyes.|{f}, {a_an2}, knew the {p2} well and wanted to come along.',
            "They took a {ob2} and some {food} and set out.|With a {ob2} and a bag of {food} they left before the sun was up.|{n} packed a {food}, and {f} carried a {ob2}.",
            "The way was long, and they had to cross a river.|On the way they lost the path, but a bird showed them where to go.|They climbed over a wall and crept under a fence.",
            'At the {col} cross they began to dig.|In the {p2} they counted ten steps and began to dig.|"Here it is!" called {f}, and they dug as fast as they could.',
            "They found a small chest. There was no gold in it, only a letter.|There was a box, and in the box was a letter.|It was not gold. It was a letter from long ago.",
            '"Who comes here with a friend has found the treasure already," it said.|It said, "The best treasure is a friend who comes along."|{n} read it out: "You have each other. That is worth more than gold."',
            "{n} looked at {f}, and both began to laugh.|They ate their {food} under the trees and agreed that it was true.|They put the letter back, so that others could find it, too.",
        ],
        [
            ("What color was the cross?", "The cross was {col}."),
            ("Where did they dig?", "They dug in the {p2}."),
            ("Who went with {n}?", "{f} went with {n}."),
        ],
    ),
    (
        "building something",
        [
            '{day}, {n} wanted to build a house for the birds.|{n} had a plan: a boat that can really swim.|"We will build a swing," said {n}, "the best one in the world."',
            "{S} needed wood, and there was plenty of it in the {p1}.|First {she} looked for wood in the {p1}.|In the {p1} {she} found some boards and a few nails.",
            "{n} worked all morning, but it fell apart.|It looked easy, but after an hour everything fell down.|{S} hit {her} thumb, and nothing would hold together.",
            '{f}, {a_an2}, watched for a while. "May I help?" asked {f}.|"You need somebody to hold it," said {f}, {a_an2}.|{a_an2C} named {f} came by. "Two can do more than one," {f} said.',
            "{f} held the boards, and {n} used the {ob}.|With the {ob} of {f} it went much better.|{f} fetched a {ob}, and that was just what they needed.",
            'They painted it {col} and let it dry in the sun.|At the end they made it {col} from top to bottom.|"It must be {col}," said {f}, and so it was.',
            "In the evening they carried it to the {p2}.|They put it up in the {p2}, where everybody could see it.|Then they brought it to the {p2}.",
            '"Alone I would never have done it," said {n}.|"We built it together," said {f} proudly.|{n} was tired, but very happy.',
        ],
        [
            ("Who helped to build?", "{f} helped {n}."),
            ("What color did they paint it?", "They painted it {col}."),
            ("Where did they put it?", "They put it in the {p2}."),
        ],
    ),
    (
        "a wish",
        [
            "{day}, {n} found a strange {ob} in the {p1}.|{day}, an old woman gave {n} a {ob}.|In the {p1} lay a {ob} that shone like a star.",
            '"I can give you one wish," said the {ob}. {n} nearly dropped it.|"It grants one wish, but only one," said a quiet voice.|When {n} touched it, a voice said, "You may wish for one thing."',
            '{n} thought of a mountain of {food}, or of a {col} {ve}.|"I could wish for a {col} {ve}," thought {n}.|{n} wanted a {col} {ve} more than anything else.',
            "But then {she} met {f}, {a_an2}, who was very ill.|On the way home {she} saw {f}, {a_an2}. {f} could not walk any more.|Just then {f}, {a_an2}, came by and cried, because {f} had lost the way home.",
            '"Nobody can help me," said {f}.|"I do not know what to do," said {f} and looked at the ground.|"Please do not worry about me," said {f}, but {f} looked very sad.',
            '{n} held the {ob} for a long time. Then {she} said, "I wish that {f} is well and happy."|"I know what I wish for," said {n}. "Let {f} be well again and safe at home."|{n} closed {her} eyes and used the wish for {f}.',
            "There was a flash of light, and {f} jumped up and laughed.|At once {f} was well and safe.|The {ob} became warm, and then the wish came true.",
            '"Why did you not wish for something for yourself?" asked {f}.|"You gave your only wish away!" said {f}.|{f} could not believe it. "For me?"',
            '"I have a friend now," said {n}. "That is what I wanted."|{n} smiled. "A {ve} cannot laugh with me."|And {n} never was sorry about it.',
        ],
        [
            ("Who got the wish?", "{n} used the wish for {f}."),
            ("What gave the wish?", "It was a {ob}."),
            ("What did {n} want first?", "{n} wanted a {col} {ve}."),
        ],
    ),
    (
        "a strange noise",
        [
            "{day}, {n} heard a strange noise. It came from the {p1}.|In the middle of the night something in the {p1} went bump.|Every night there was a noise in the {p1}: tap, tap, tap.",
            '"It is a ghost," said {f}, the friend of {n}.|{f} pulled the blanket up to the nose. "Do not go there!" said {f}.|"Maybe it is a thief," {f} said in a low voice.',
            '{n} wanted to know what it was. {S} took a lamp and a {ob}.|"I will have a look," said {n} and took a {ob}.|"There are no ghosts," said {n}, and {she} went ahead with a {ob}.',
            "They walked on the tips of their toes.|Slowly, very slowly, they opened the door.|The floor creaked, and their hearts beat fast.",
            "There it was again, behind the {ob2}!|Something moved behind the {ob2}.|The noise came from under a {ob2}.",
            "It was only {a_an2}, who was looking for {food}.|And what was it? {a_an2C} that had come in from the cold!|Two eyes looked at them. It was {a_an2}, and it was more afraid than they were.",
            '{f} began to laugh. "What a little ghost!" said {f}.|"So that is our ghost," said {n}, and they laughed until they had to sit down.|"Poor thing," said {n}. "It is hungry."',
            "They gave it some {food} and a warm place by the fire.|They made a bed for it in {a_col} basket.|From then on it came every night for a piece of {food}.",
            'And {f} was never afraid of a noise again.|Then they went back to bed and slept until noon.|"It is good to look before you are afraid," said {n}.',
        ],
        [
            ("Where did the noise come from?", "The noise came from the {p1}."),
            ("Who made the noise?", "It was {a_an2}."),
            ("Who thought that it was a ghost?", "{f} was afraid of it."),
        ],
    ),
]

# What the last paragraph of a long story says about a chapter.
RECAP = {
    "losing something": "the lost {ob}",
    "sharing": "the {food} that they had shared",
    "being brave": "the dark {p2}",
    "being patient": "the tiny seed",
    "a trip": "the trip to the {p2}",
    "telling the truth": "the broken {ob}",
    "making a friend": "the day in the {p2}",
    "not giving up": "how hard it had been to {skill}",
    "helping": "the little {an2}",
    "a race": "the race to the {p2}",
    "a secret door": "the {col} door",
    "a storm": "the storm",
    "a surprise": "the surprise in the {p2}",
    "an old map": "the old map",
    "building something": "what they had built",
    "a wish": "the wish",
    "a strange noise": "the noise in the {p1}",
}

LATER = phrases(
    "The next day|The next morning|A few days later|A week later|Some time after that|When spring came|Not long after that|On the following Sunday"
)
MORE = phrases(
    "But that was not all.|There is more to tell about {n}.|That was not the last adventure of {n}.|And the story goes on.|But soon there was something new."
)
CLOSING = phrases("""In the evening {n} sat in the {home} with {friends}. They talked about {recaps}, and they laughed until the moon came out.|
Many years later {n} still thought of {recaps}. And {friends} were friends for life.|When the first snow fell, {n} made tea for {friends}. They sat by the window and told each other about {recaps}.|
That night {n} lay in bed and thought of {recaps}. \"I am lucky to know {friends},\" {she} said. Then {she} fell asleep.|
And so {n} and {friends} stayed together. Whenever it rained, they sat in the {home} and told the old stories about {recaps}.""")

Questions = list[tuple[str, str]]


def fill_slots(text: str, slots: dict[str, str]) -> str:
    """Put the slots into {names} and mend the articles in front of them."""
    text = re.sub(r"\{(\w+)\}", lambda m: slots[m[1]], text)
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)


def _hero(r: Random) -> dict[str, str]:
    name = any_name(r)
    girl = is_girl(name)
    kind = r.choice(["girl" if girl else "boy"] * 3 + r.sample(ANIMALS, 2) + r.sample(CREATURES, 1))
    manner = r.choice(words("little young kind quiet brave curious small shy clever cheerful"))
    she, her, him = ("she", "her", "her") if girl else ("he", "his", "him")
    return dict(
        n=name,
        kind=kind,
        who=f"a {manner} {kind}",
        she=she,
        S=she.capitalize(),
        her=her,
        Her=her.capitalize(),
        him=him,
        fl=r.choice(words("happy sad curious tired excited lonely bored")),
    )


def _scene(r: Random, hero: dict[str, str], friend: str, home: str, day: str) -> dict[str, str]:
    """The hero's slots and those of one plot."""
    animal = r.choice([x for x in ANIMALS if x != hero["kind"]])
    thing, thing2 = r.sample(OBJECTS, 2)
    p2, p3 = r.sample([x for x in PLACES if x != home], 2)
    plant, color = r.choice(FRUITS + VEGS), r.choice(COLORS)
    return hero | dict(
        f=friend,
        an=animal,
        a_an=with_article(animal),
        an2=animal,
        a_an2=with_article(animal),
        a_an2C=with_article(animal).capitalize(),
        ob=thing,
        ob2=thing2,
        p1=home,
        p2=p2,
        p3=p3,
        col=color,
        a_col=with_article(color),
        ve=r.choice(VEHICLES),
        food=r.choice(FOODS),
        skill=r.choice(SKILLS),
        fr=plant,
        a_fr=with_article(plant),
        A_fr=with_article(plant).capitalize(),
        day=day,
        day2=day[0].lower() + day[1:],
    )


def story(r: Random) -> tuple[list[str], str, Questions]:
    """A short story of one plot: prompts that ask for it, the text, questions with answers."""
    hero = _hero(r)
    friend = any_names(r, 1, but=hero["n"])[0]
    v = _scene(r, hero, friend, r.choice(PLACES), r.choice(DAYB))
    theme, beats, qa = r.choice(PLOTS)
    o = [fill_slots(r.choice(INTRO), v)] + [fill_slots(r.choice(b.split("|")), v) for b in beats]
    if r.random() < 0.35:
        text = " ".join(o)
    else:
        k = r.randrange(2, len(o) - 1)
        text = " ".join(o[:k]) + "\n\n" + " ".join(o[k:])
    n, f, who = v["n"], v["f"], v["who"]
    prompts = [
        *(_request(r, hero, r.choice(["", "", "short ", "little ", "nice "])) for _ in range(8)),
        f"Tell me a story about {n}.",
        f"Write a short story about {who} named {n}.",
        f"Write a story with {n} and {f}.",
        f"Tell me a story about {n} and {f}.",
        f"Tell me a story that takes place in the {v['p2']}."
        if v["p2"] in text
        else "Tell me a story.",
        "Tell me a short story.",
        f"Write a story about {theme}.",
        f"Tell me a story about {theme} with {with_article(v['kind'])} named {n}.",
        f"I would like to hear a story about {n}.",
        f"Write a bedtime story about {who}.",
        f"Tell me a story with a {v['ob']} in it." if v["ob"] in text else f"Tell me about {n}.",
    ]
    return (
        prompts,
        text,
        [(fill_slots(q, v), fill_slots(x, v)) for q, x in qa]
        + [("Who is the story about?", f"The story is about {n}.")],
    )


def _request(r: Random, hero: dict[str, str], size: str) -> str:
    """One of many ways to ask for a story about the hero; `size` is an adjective or nothing."""
    n, kind, who = hero["n"], with_article(hero["kind"]), hero["who"]
    about = r.choice(
        [
            n,
            f"{n} the {hero['kind']}",
            f"{kind} named {n}",
            f"{kind} called {n}",
            f"{who} named {n}",
            f"{who} called {n}",
            f"{kind} whose name is {n}",
            who,
            kind,
        ]
    )
    ask = r.choice(
        phrases(
            "Tell me|Write|Please tell me|Please write|Write me|Make up|Can you tell me|Could you write|I want to hear"
        )
    )
    return f"{ask} a {size}story about {about}" + ("?" if ask.startswith("C") else ".")


def _list(items: list[str]) -> str:
    return " and ".join([", ".join(items[:-1]), items[-1]]) if len(items) > 1 else items[0]


def tale(r: Random) -> tuple[list[str], str, Questions]:
    """A long story: two to four plots of one hero, each with another friend, and an ending that comes back to them."""
    hero = _hero(r)
    home = r.choice(PLACES)
    n_chapters = r.choice([2, 2, 2, 3, 3, 4])
    friends = any_names(r, n_chapters, but=hero["n"])
    plots = r.sample(PLOTS, n_chapters)
    plots.sort(
        key=lambda plot: plot[0] != "making a friend"
    )  # the hero who knows nobody comes first
    paragraphs, recaps, asked = [], [], {}
    for i, ((theme, beats, qa), friend) in enumerate(zip(plots, friends, strict=False)):
        v = _scene(r, hero, friend, home, r.choice(LATER if i else DAYB))
        first = r.choice(beats[0].split("|"))
        lines = [fill_slots(x, v) for x in [first] + [r.choice(b.split("|")) for b in beats[1:]]]
        if i == 0:
            intro = fill_slots(r.choice(INTRO), v)
            if r.random() < 0.5:
                paragraphs.append(intro)
            else:
                lines.insert(0, intro)
        elif "{day" not in first:
            lines.insert(0, fill_slots(r.choice(MORE), v))
        n_parts = r.choice([1, 2, 2, 3])
        cuts = sorted(r.sample(range(2, len(lines) - 1), n_parts - 1))
        paragraphs += [
            " ".join(lines[a:b]) for a, b in zip([0, *cuts], [*cuts, None], strict=False)
        ]
        recaps.append(fill_slots(RECAP[theme], v))
        for q, answer in qa:
            asked.setdefault(fill_slots(q, v), []).append(fill_slots(answer, v))
    paragraphs.append(
        fill_slots(
            r.choice(CLOSING), hero | dict(home=home, friends=_list(friends), recaps=_list(recaps))
        )
    )
    n, who, themes = hero["n"], hero["who"], [p[0] for p in plots]
    prompts = [
        *(_request(r, hero, "long ") for _ in range(5)),
        f"Tell me a long story about {n}.",
        f"Write a long story about {who} named {n}.",
        f"Tell me a long story about {n}, {_list(friends)}.",
        "Tell me a long story.",
        f"Tell me a story in {words_num(n_chapters)} parts about {n}.",
        f"Write a story about {_list(themes)}.",
        f"I would like to hear a long bedtime story about {who}.",
        f"Tell me a story about the adventures of {n}.",
        f"Write a story with several paragraphs about {n}.",
        f"Tell me a long story about {_list(themes)} with {with_article(hero['kind'])} named {n}.",
    ]
    qa = [(q, answers[0]) for q, answers in asked.items() if len(answers) == 1]
    return (
        prompts,
        "\n\n".join(paragraphs),
        [*qa, ("Who is the story about?", f"The story is about {n}.")],
    )
