#!/usr/bin/env python3
"""Makes the preference pairs of the README's tutorial: deploy/tutorial/{pairs,validation,test}.jsonl.

    python tests/reference/tutorial_pairs.py [--out deploy/tutorial]

What is asked is how the day was; the better the day, the better the response. Events are good or bad, and frames tell
whether they happened ("I won a prize.") or not ("I almost won a prize."): what did not happen turns round, for a good
event that was missed is a pity, and a bad one that was escaped a relief. A linear head on a model that knows good
words from bad ones is right about half of the pairs at best where only the frame differs; to get them right, event and
frame have to be put together, which is what fine-tuning learns.

Each file has events of its own, and the test pairs have two frames that no other file has. Validation pairs decide which step
of a training is kept; so they do not judge what came out, which the test pairs do. The tutorial's settings were chosen on
halves of the training's own events, before a model had seen either. All sentences were written for this
project; the generator is Python's, whose numbers are the same in all versions for `random` and `randrange`.
"""
import argparse
import json
import pathlib
import random

PROMPT = "How was your day?"
PAIRS = {"pairs": 800, "validation": 480, "test": 480}
# of each list below, so many last events are those of the validation pairs
VALIDATION_EVENTS = 10

GOOD = """
won a prize; got the job; found my lost ring; passed the exam; met my best friend for lunch; got a raise; bought my first house;
fixed my bike; finished the marathon; slept until noon; saw a rainbow over the lake; baked a perfect cake; learned to swim;
got a letter from my grandmother; won the game; got tickets for the concert; made the whole class laugh; found twenty dollars;
got a puppy; beat my own record; paid off my loan; got an apology; saw a whale from the boat; was given flowers;
got the last seat on the train; sold my painting; was asked to dance; got a free dessert; heard that my sister is safe;
was told that I am healthy; got an upgrade to first class; made a new friend; solved the hard puzzle; had a day off;
won the spelling contest; had dinner with my whole family; got a hug from my son; had my song on the radio;
was chosen for the team; got home early
"""
BAD = """
lost my wallet; failed the test; broke my arm; missed the last bus; got fired; crashed the car; burned the dinner;
fell down the stairs; forgot my mother's birthday; got a parking ticket; dropped my phone in the sink; hurt my back; lost the game;
got food poisoning; spilled coffee on my boss; was bitten by a dog; had to pay a fine; lost my keys; was robbed on the train;
got lost in the woods; tore my new coat; missed my flight; flooded the kitchen; was stung by a wasp; deleted all my work;
lost my best friend; got sick on the boat; had an argument with my father; was sent home from school; hit my head on the door;
lost a tooth; broke the window; got locked out; was late for my own wedding; cut my finger; had to cancel my vacation;
got caught in the storm; lost my voice; stepped on a nail; was told that I have to move out
"""
GOOD_TEST = """
won the lottery; got a scholarship; found my cat; got a standing ovation; saw my daughter graduate; had breakfast in bed;
was invited to the party; caught a big fish; got a present from my neighbor; finished my book; was thanked by my teacher;
won a trip to the beach; got my dream apartment; had a picnic in the sun; repaired the old radio; got a perfect score
"""
BAD_TEST = """
lost my job; broke my leg; failed the driving test; got a flat tire; burned my hand; lost my luggage; was hit by a car;
dropped the wedding cake; got a bad grade; was yelled at by a customer; had my bike stolen; missed the meeting;
broke my glasses; got the flu; ruined my favorite shirt; fell off my horse
"""
HAPPENED = ["I {}.", "Today I {}.", "I {} this morning.", "I really {}.", "I {} and told everyone."]
DID_NOT = ["I almost {}.", "I nearly {} today.", "I thought that I {}, but it was not true.", "I dreamed that I {}, and then I woke up.", "I almost {} this morning."]
HAPPENED_TEST = HAPPENED + ["This afternoon I {}."]
DID_NOT_TEST = DID_NOT + ["My friend joked that I {}, but it was not true."]


def events(text):
    return [" ".join(event.split()) for event in text.split(";")]


def draw(source, good, bad, happened, did_not):
    """A response, how good a day it tells of (1 or -1), and what it was made of."""
    is_good, is_true = source.random() < 0.5, source.random() < 0.5
    event = choice(source, good if is_good else bad)
    frame = choice(source, happened if is_true else did_not)
    return frame.format(event), 1 if is_good == is_true else -1, (event, is_true)


def choice(source, items):
    return items[source.randrange(len(items))]


def pairs(source, count, *parts):
    """Different pairs: in one half of them the event is the same and the frame tells, in the other both may differ."""
    made = {}
    while len(made) < count:
        first, worth, (event, is_true) = draw(source, *parts)
        second, other_worth, (other_event, other_is_true) = draw(source, *parts)
        is_same = len(made) % 2 == 0
        if is_same:
            other_event, other_is_true = event, not is_true
            second, other_worth = choice(source, parts[2] if other_is_true else parts[3]).format(event), -worth
        if worth == other_worth or {first, second} in map(set, made):
            continue
        chosen, rejected = (first, second) if worth > other_worth else (second, first)
        made[chosen, rejected] = "same event" if is_same else "two events"
    return [{"prompt": PROMPT, "chosen": chosen, "rejected": rejected, "source": kind} for (chosen, rejected), kind in made.items()]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = pathlib.Path(__file__).resolve().parents[2]
    parser.add_argument("--out", type=pathlib.Path, default=root / "deploy/tutorial")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    source = random.Random(0)
    good, bad = events(GOOD), events(BAD)
    parts = {
        "pairs": (good[:-VALIDATION_EVENTS], bad[:-VALIDATION_EVENTS], HAPPENED, DID_NOT),
        "validation": (good[-VALIDATION_EVENTS:], bad[-VALIDATION_EVENTS:], HAPPENED, DID_NOT),
        "test": (events(GOOD_TEST), events(BAD_TEST), HAPPENED_TEST, DID_NOT_TEST),
    }
    for name, of_part in parts.items():
        lines = pairs(source, PAIRS[name], *of_part)
        (args.out / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    main()
