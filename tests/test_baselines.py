"""The models that BERT is compared with."""

import random

import numpy as np

from bert_course.baselines import word2vec


def test_skip_gram_brings_words_of_equal_company_together_and_repeats_itself():
    rng = random.Random(0)
    animals, tools = ["cat", "dog", "horse"], ["saw", "drill", "hammer"]
    company = {"animal": "eats sleeps runs drinks barks jumps".split(), "tool": "cuts breaks rusts drops bends shines".split()}
    sentences = []
    for _ in range(3000):
        kind = rng.choice(["animal", "tool"])
        names = animals if kind == "animal" else tools
        sentences.append([rng.choice(names), *rng.sample(company[kind], 3)])
    vectors = word2vec.skip_gram(sentences, size=16, epochs=5, seed=1).wv
    for group in (animals, tools):
        for word in group:
            assert {other for other, _ in vectors.most_similar(word, topn=2)} <= {*group, *company["animal"], *company["tool"]}
            others = tools if group is animals else animals
            assert min(vectors.similarity(word, w) for w in group) > max(vectors.similarity(word, w) for w in others)
    again = word2vec.skip_gram(sentences, size=16, epochs=5, seed=1).wv
    np.testing.assert_array_equal(vectors.vectors, again.vectors)
