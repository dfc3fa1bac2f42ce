import torch

from metaadamw_bench.data.imdb import basic_english
from metaadamw_bench.data.text import PAD, UNKNOWN, Sentences, padded, vocabulary


def numbered(*texts):
    numbers = {}
    return Sentences.of([text.split() for text in texts], numbers), list(numbers)


def test_parts_and_rows():
    sentences, words = numbered("a b c", "", "b", "c a")
    assert words == ["a", "b", "c"]
    assert sentences.lengths.tolist() == [3, 0, 1, 2]
    part = sentences.part(1, 4)
    assert part.tokens.tolist() == [1, 2, 0]
    assert part.lengths.tolist() == [0, 1, 2]
    table = torch.tensor([7, 8, 9])
    rows = padded(part.renumbered(table), 2)
    assert rows.tolist() == [[PAD, PAD], [8, PAD], [9, 7]]
    assert padded(sentences.renumbered(table), 2)[0].tolist() == [7, 8]


def test_vocabulary_takes_the_most_frequent_and_breaks_ties_by_alphabet():
    sentences, words = numbered("z z z y y b b a c c <unk> <unk> <unk> <unk>")
    table = vocabulary(words, sentences, size=5, excluded=["<unk>"])
    assert dict(zip(words, table.tolist(), strict=True)) == {
        "z": 2,
        "b": 3,
        "c": 4,
        "y": UNKNOWN,
        "a": UNKNOWN,
        "<unk>": UNKNOWN,
    }


def test_vocabulary_does_not_depend_on_the_order():
    found = []
    for text in ("c b a a", "a b c a"):
        sentences, words = numbered(text)
        table = vocabulary(words, sentences, size=10, specials=4)
        found.append({word: int(table[number]) for number, word in enumerate(words)})
    assert found[0] == found[1] == {"a": 4, "b": 5, "c": 6}


def test_vocabulary_minimum_counts_only_the_given_sentences():
    sentences, words = numbered("a a b", "b b c c")
    table = vocabulary(words, sentences.part(0, 1), size=10, minimum=2)
    assert table.tolist() == [2, UNKNOWN, UNKNOWN]


def test_basic_english():
    text = "It's \"great\", isn't it?<br /><br />Yes (really): 10/10; a must-see!"
    words = "it ' s great , isn ' t it ? yes ( really ) 10/10 a must-see !"
    assert " ".join(basic_english(text)) == words
