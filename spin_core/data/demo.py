"""The built-in task `demo`: number bonds, the way people take a number apart.

A prompt is a three-digit number, `347=`; a response is two positive numbers that add up to it, `300+47`.
Answers are not random: each of six habits splits n into a + b, with b = n - a, and has a weight.

    habit       a                                              weight   347
    hundreds    the hundreds of n                                 .30   300+47
    tens        n without its ones                                .25   340+7
    half        n // 2                                            .15   173+174
    fifty       the largest 50, 150, 250 … that is at most n      .10   250+97
    less        a hundred less than the hundreds                  .10   200+147
    two         200                                               .10   200+147

With S(n) the habits that leave both parts positive, the distribution of the demonstrations is known in closed form,

    p_data("a+b" | n) = sum of w_k over k in S(n) with a_k(n) = a  /  sum of w_k over k in S(n),

and at most six responses are right, so a model's distance to p_data can be summed instead of estimated. To be right a
model must copy digits, subtract across a carry, and keep several answers of unequal probability: a lower temperature,
which sharpens all tokens in the same way, spoils the latter.
"""

from random import Random
from typing import TYPE_CHECKING

from spin_core.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

FIRST, LAST = 201, 999
"""The numbers that are asked about, both included."""

MAX_RESPONSE_CHARS = 7
"""The longest right response, `500+499`; a response in tokens has one more, its EOS."""

CHARACTERS = "0123456789+="

PAD, BOS, EOS, UNKNOWN = "<pad>", "<bos>", "<eos>", "<unk>"

# One fixed division, so that a model trained with any seed is scored on numbers that no seed has shown it.
_SPLIT_SEED = 20240102


def _habits(n: int) -> list[tuple[float, int]]:
    """Weight and first part of each habit for the number `n`, applicable or not, in the docstring's order."""
    hundreds = n // 100 * 100
    return [
        (0.30, hundreds),
        (0.25, n // 10 * 10),
        (0.15, n // 2),
        (0.10, hundreds + 50 if n - hundreds >= 50 else hundreds - 50),
        (0.10, hundreds - 100),
        (0.10, 200),
    ]


def _number(prompt: str) -> int:
    digits = prompt[:-1]
    plain = len(digits) == 3 and digits.isascii() and digits.isdigit()
    if not (plain and prompt.endswith("=") and FIRST <= int(digits) <= LAST):
        raise DataError(f"{prompt!r} is not a prompt of the demo: write a number from {FIRST} to {LAST}, then '='")
    return int(digits)


def support(prompt: str) -> dict[str, float]:
    """Every right response to `prompt` with its exact probability under p_data; they sum to 1.

    Raises `DataError` if `prompt` is not one of the task's.
    """
    n = _number(prompt)
    weights: dict[str, float] = {}
    for weight, a in _habits(n):
        if 0 < a < n:
            response = f"{a}+{n - a}"
            weights[response] = weights.get(response, 0.0) + weight
    total = sum(weights.values())
    return {response: weight / total for response, weight in weights.items()}


def prompts(held_out: int) -> tuple[list[str], list[str]]:
    """All prompts as (training, held-out), disjoint, with `held_out` of them in the second list.

    The division depends on `held_out` alone, and a smaller held-out list is the beginning of a larger one.
    Raises `DataError` unless both lists get at least one prompt.
    """
    everything = [f"{n}=" for n in range(FIRST, LAST + 1)]
    if not 0 < held_out < len(everything):
        raise DataError(f"the demo has {len(everything)} prompts: hold out between 1 and {len(everything) - 1}")
    Random(_SPLIT_SEED).shuffle(everything)
    return everything[held_out:], everything[:held_out]


def sample(prompt: str, rng: Random) -> str:
    """One response drawn from p_data."""
    right = support(prompt)
    return rng.choices(list(right), list(right.values()))[0]


def demonstrations(n: int, seed: int, held_out: int) -> list[tuple[str, str]]:
    """`n` pairs (prompt, response) for training: the prompts in turn, each response an independent draw from p_data.

    Prompts repeat as often as `n` needs, with counts that differ by at most one, and none is held out. The first `n`
    pairs of a longer list are the list of `n`.
    """
    training, _ = prompts(held_out)
    rng = Random(seed)
    return [(prompt, sample(prompt, rng)) for prompt in (training[i % len(training)] for i in range(n))]


def held_out_demonstrations(seed: int, held_out: int) -> list[tuple[str, str]]:
    """One pair (prompt, response) for each held-out prompt, the response drawn from p_data."""
    _, held = prompts(held_out)
    # A stream of its own: with the training stream's seed, the two would share their draws.
    rng = Random(f"held out {seed}")
    return [(prompt, sample(prompt, rng)) for prompt in held]


def preferences(each: int) -> list[tuple[str, str, str]]:
    """(prompt, chosen, rejected): a right response and one with a slip in its second part, `each` times for a prompt.

    Simulates a rater who knows right from wrong, but not how often people give each right answer.
    """
    rng, triples = Random("preferences"), []
    for prompt in (f"{n}=" for _ in range(each) for n in range(FIRST, LAST + 1)):
        first, second = map(int, sample(prompt, rng).split("+"))
        wrong = [second + slip for slip in (-100, -10, -1, 1, 10, 100) if 0 < second + slip <= LAST]
        triples.append((prompt, sample(prompt, rng), f"{first}+{rng.choice(wrong)}"))
    return triples


def build_tokenizer() -> "PreTrainedTokenizerFast":
    """One token a character, with pad, BOS, EOS and unknown tokens; decoding gives the text back without added spaces.

    Encoding adds no special tokens: rendering a prompt writes the BOS, and ending a response the EOS. A character
    outside the alphabet is unknown, so that a benchmark in words can be run, little as its score says.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate([PAD, BOS, EOS, UNKNOWN, *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
        model_max_length=64,
    )
