"""Train a tiny one: a model of EmbeddingGemma's shape learns, in under a minute, what two words mean the same.

  python spec/lessons/train_tiny.py                              the whole loss
  python spec/lessons/train_tiny.py --without spread-out         a part left out: --help lists them
  python spec/lessons/train_tiny.py --temperature 1              another temperature
  python spec/lessons/train_tiny.py --steps 240                  longer

The world has animals and questions about them. A query and its document share no word: one says `kitty lodging`, the
other `the cat and where it lives`. Every animal and every question stands in training, but a third of the pairs does
not: they are held out, and the score is on these alone. Who finds them knows words, not pairs.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from refembed.reference import FULL, SLIDING, Config, embed_batch, l2_normalize, parameter_shapes
from refembed.reference.backward import embed_batch_gradients
from refembed.reference.losses import (
    Batch,
    contrastive,
    contrastive_gradient,
    false_negative_mask,
    matryoshka,
    matryoshka_gradient,
    spread_out,
    spread_out_gradient,
)

Array = np.ndarray
# What a query calls it, what a document calls it.
ANIMALS = {
    "kitty": "cat",
    "hound": "dog",
    "pony": "horse",
    "bull": "cow",
    "lamb": "sheep",
    "hen": "chicken",
    "hog": "pig",
    "rodent": "mouse",
    "bunny": "rabbit",
    "serpent": "snake",
    "toad": "frog",
    "trout": "fish",
}
QUESTIONS = {
    "lodging": "where it lives",
    "diet": "what it eats",
    "noise": "how it sounds",
    "hue": "which color it has",
    "lifespan": "how old it gets",
    "bulk": "how heavy it is",
    "danger": "whom it fears",
    "young": "how many children it has",
}
PROMPTS = ("task search result query", "title none text")  # of queries and of documents, as words
CONFIG = Config(
    vocabulary=80,
    width=32,
    mlp=48,
    heads=3,
    key_heads=1,
    head=8,
    dense=64,
    dimensions=32,
    layer_kinds=(SLIDING, FULL),
    reach=4,
    context=32,
    query_scalar=8.0,
)
LENGTHS = (32, 8)  # Matryoshka: the whole embedding and its first quarter
PARTS = ("contrastive", "spread-out", "hard-negatives", "matryoshka")


@dataclass(frozen=True)
class Settings:
    """What can be changed from the command line."""

    steps: int = 120
    examples: int = 16  # in a batch
    rate: float = 0.01
    temperature: float = 0.05
    alpha: float = 5.0
    seed: int = 0
    without: tuple[str, ...] = ()


class Pair(NamedTuple):
    """A query and the document that answers it, as ids, and which animal and question they are about."""

    query: Array
    document: Array
    animal: int
    question: int


# Texts ----------------------------------------------------------------------------------------------------------------


def pairs() -> list[Pair]:
    """Every animal with every question, 96 in all."""
    words = sorted({word for text in texts() for word in text.split()})
    ids = {word: 4 + place for place, word in enumerate(words)}  # below 4: PAD, EOS, BOS, UNK

    def tokens(text: str) -> Array:
        return np.array([CONFIG.bos, *(ids[word] for word in text.split()), CONFIG.eos])

    return [
        Pair(
            tokens(f"{PROMPTS[0]} {asked_animal} {asked_question}"),
            tokens(f"{PROMPTS[1]} the {animal} and {question}"),
            row,
            column,
        )
        for row, (asked_animal, animal) in enumerate(ANIMALS.items())
        for column, (asked_question, question) in enumerate(QUESTIONS.items())
    ]


def texts() -> list[str]:
    return [*PROMPTS, "the and", *ANIMALS, *ANIMALS.values(), *QUESTIONS, *QUESTIONS.values()]


def split(everything: list[Pair]) -> tuple[list[Pair], list[Pair]]:
    """Two thirds to learn from, one third held out, so that every animal and every question is in both."""
    held = [pair for pair in everything if (pair.animal + pair.question) % 3 == 0]
    return [pair for pair in everything if (pair.animal + pair.question) % 3], held


def hard_negative(pair: Pair, known: list[Pair], rng: np.random.Generator) -> Array:
    """A document that seems to answer: the same animal, or the same question, of the pairs that may be known."""
    near = [one for one in known if (one.animal == pair.animal) != (one.question == pair.question)]
    return near[rng.integers(len(near))].document


# Loss -----------------------------------------------------------------------------------------------------------------


class Step(NamedTuple):
    """The loss of a batch, its parts, and its gradient with respect to the vectors."""

    contrastive: float
    spread_out: float
    gradient: Batch


def loss_of(batch: Batch, mask: Array, settings: Settings) -> Step:
    """Contrastive and spread-out loss at every length, without what the settings leave out."""
    lengths = LENGTHS[:1] if "matryoshka" in settings.without else LENGTHS
    weigh = {name: float(name not in settings.without) for name in PARTS}

    def near(cut: Batch) -> float:
        return contrastive(cut, mask, settings.temperature, settings.alpha)

    def gradient(cut: Batch) -> Batch:
        of_near = contrastive_gradient(cut, mask, settings.temperature, settings.alpha)
        of_spread = spread_out_gradient(cut)
        return Batch(
            *(
                weigh["contrastive"] * one + weigh["spread-out"] * other
                for one, other in zip(of_near, of_spread, strict=True)
            )
        )

    return Step(
        float(matryoshka(near, batch, lengths)),
        float(matryoshka(spread_out, batch, lengths)),
        matryoshka_gradient(gradient, batch, lengths),
    )


# Training -------------------------------------------------------------------------------------------------------------


def fresh_parameters(rng: np.random.Generator) -> dict[str, Array]:
    """Random matrices that keep a row's size; norm weights zero, which is one."""
    return {
        name: np.zeros(shape) if len(shape) == 1 else rng.standard_normal(shape) / np.sqrt(shape[1])
        for name, shape in parameter_shapes(CONFIG).items()
    }


class Adam:
    """The usual optimiser: each number's step is its gradient's mean over its gradient's usual size."""

    def __init__(self, parameters: dict[str, Array], rate: float) -> None:
        self.parameters, self.rate, self.steps = parameters, rate, 0
        self.mean = {name: np.zeros_like(array) for name, array in parameters.items()}
        self.square = {name: np.zeros_like(array) for name, array in parameters.items()}

    def step(self, gradients: dict[str, Array], scale: float) -> None:
        """Move every parameter; scale is the share of the rate."""
        self.steps += 1
        for name, gradient in gradients.items():
            self.mean[name] += 0.1 * (gradient - self.mean[name])
            self.square[name] += 0.01 * (gradient**2 - self.square[name])
            mean, square = self.mean[name] / (1 - 0.9**self.steps), self.square[name] / (1 - 0.99**self.steps)
            self.parameters[name] -= self.rate * scale * mean / (np.sqrt(square) + 1e-8)


def train(parameters: dict[str, Array], known: list[Pair], settings: Settings) -> Iterator[Step]:
    """Change the parameters, a batch at a time; what each batch's loss was before its step."""
    rng, adam = np.random.default_rng(settings.seed), Adam(parameters, settings.rate)
    for number in range(settings.steps):
        chosen = [known[place] for place in rng.choice(len(known), settings.examples, replace=False)]
        queries, documents = [pair.query for pair in chosen], [pair.document for pair in chosen]
        hard = [] if "hard-negatives" in settings.without else [hard_negative(pair, known, rng) for pair in chosen]
        vectors = np.split(embed_batch([*queries, *documents, *hard], parameters, CONFIG), 3 if hard else 2)
        negatives = vectors[2][:, None] if hard else vectors[0][:, None][:, :0]  # (examples, 1 or 0, dimensions)
        mask = false_negative_mask([ids.tolist() for ids in queries], [ids.tolist() for ids in documents])
        step = loss_of(Batch(vectors[0], vectors[1], negatives), mask, settings)
        yield step
        upstream = np.concatenate([side.reshape(-1, CONFIG.dimensions) for side in step.gradient])
        gradients = embed_batch_gradients(upstream, [*queries, *documents, *hard], parameters, CONFIG)
        adam.step(gradients, 1 - number / settings.steps)


# Scores ---------------------------------------------------------------------------------------------------------------


class Scores(NamedTuple):
    """Of pairs nobody has learnt from, among all documents."""

    first: float
    first_short: float
    right: float
    others: float
    spread: float


def scores(parameters: dict[str, Array], held: list[Pair], everything: list[Pair]) -> Scores:
    """How well held-out queries find their documents among those of every pair."""
    queries = embed_batch([pair.query for pair in held], parameters, CONFIG)  # (held, dimensions)
    documents = embed_batch([pair.document for pair in everything], parameters, CONFIG)  # (all, dimensions)
    places = [next(place for place, one in enumerate(everything) if one is pair) for pair in held]

    def cosines(length: int) -> Array:
        return l2_normalize(queries[:, :length]) @ l2_normalize(documents[:, :length]).T  # (held, all)

    def found(length: int) -> float:
        return float(np.mean(cosines(length).argmax(axis=1) == places))

    own = np.zeros((len(held), len(everything)), bool)
    own[np.arange(len(held)), places] = True
    spread = documents @ documents.T
    return Scores(
        found(LENGTHS[0]),
        found(LENGTHS[1]),
        float(np.mean(cosines(LENGTHS[0])[own])),
        float(np.mean(cosines(LENGTHS[0])[~own])),
        float(np.mean(spread[~np.eye(len(documents), dtype=bool)] ** 2)),
    )


# The command ----------------------------------------------------------------------------------------------------------


def report(before: Scores, after: Scores, held: int, documents: int) -> str:
    """Both scores, and what each number is."""
    told = {
        "found": f"of {held} held-out queries, the share whose own document is nearest of {documents}; by luck "
        f"{1 / documents:.3f}",
        "found by 8": f"the same by the first {LENGTHS[1]} numbers of each vector",
        "cosine, own": "of a held-out query with its own document: should rise",
        "cosine, others": "with every other document: should stay low",
        "spread": f"mean squared cosine of two documents; {1 / CONFIG.dimensions:.3f} if they lay about at random",
    }
    lines = [f"{'':16}{'before':>8}{'after':>8}"]
    for (name, words), first, last in zip(told.items(), before, after, strict=True):
        lines.append(f"{name:16}{first:8.3f}{last:8.3f}   {words}")
    return "\n".join(lines)


def run(settings: Settings, every: int = 20) -> tuple[Scores, Scores]:
    """Train, print, and hand back the scores before and after."""
    everything = pairs()
    known, held = split(everything)
    parameters = fresh_parameters(np.random.default_rng(settings.seed))
    before = scores(parameters, held, everything)
    count = sum(array.size for array in parameters.values())
    print(f"{len(known)} pairs to learn from, {len(held)} held out, {count:,} parameters\n")
    print("step   contrastive   spread-out   (each added over lengths; what is switched off is still shown)")
    for number, step in enumerate(train(parameters, known, settings)):
        if number % every == 0 or number == settings.steps - 1:
            print(f"{number:4}   {step.contrastive:11.4f}   {step.spread_out:10.4f}")
    after = scores(parameters, held, everything)
    print("\n" + report(before, after, len(held), len(everything)))
    return before, after


def main(arguments: list[str] | None = None) -> int:
    usual = Settings()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--without", action="append", choices=PARTS, default=[], help="leave this out; may be repeated")
    parser.add_argument(
        "--temperature", type=float, default=usual.temperature, help="of the contrastive loss (%(default)s)"
    )
    parser.add_argument("--alpha", type=float, default=usual.alpha, help="of the hardness weight (%(default)s)")
    parser.add_argument("--steps", type=int, default=usual.steps, help="batches (%(default)s)")
    parser.add_argument("--examples", type=int, default=usual.examples, help="in a batch, 2 to 64 (%(default)s)")
    parser.add_argument("--rate", type=float, default=usual.rate, help="largest step of a parameter (%(default)s)")
    parser.add_argument("--seed", type=int, default=usual.seed, help="of weights and batches (%(default)s)")
    asked = parser.parse_args(arguments)
    if asked.temperature <= 0 or asked.steps < 1 or not 2 <= asked.examples <= 64:
        parser.error("temperature must be above 0, steps at least 1, examples 2 to 64")
    run(Settings(**{**vars(asked), "without": tuple(asked.without)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
