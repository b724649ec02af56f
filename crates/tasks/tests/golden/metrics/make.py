"""Writes cases.json: random cases with the scores that published implementations give them.

    python3 -m venv venv && venv/bin/pip install sacrebleu==2.6.0 scikit-learn==1.9.1
    venv/bin/python make.py
"""

import collections
import json
import pathlib
import random
import re
import string
import warnings

import sacrebleu
import sklearn
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

warnings.filterwarnings("ignore")
rng = random.Random(7)


def classification():
    cases = []
    shapes = [(1, 2), (5, 2), (40, 2), (40, 3), (100, 5), (30, 7), (12, 4), (200, 2), (64, 10), (9, 3)]
    for size, classes in shapes:
        truth = [rng.randrange(classes) for _ in range(size)]
        predicted = [t if rng.random() < 0.6 else rng.randrange(classes) for t in truth]
        cases.append((classes, truth, predicted))
    cases += [
        (2, [0] * 6, [0] * 6),  # one class only, all right
        (2, [1] * 6, [0] * 6),  # one class only, all wrong
        (3, [0, 1, 2, 0], [1, 1, 1, 1]),  # one class predicted
        (3, [2, 2, 2, 2], [0, 1, 2, 0]),  # one class true
        (2, [0, 1] * 5, [1, 0] * 5),  # the reverse of the truth
        (4, [0, 0, 1, 1], [0, 1, 0, 1]),  # ties; two classes never seen
        (3, [0, 1, 2] * 4, [1, 2, 0] * 4),  # never right
    ]
    return [
        {
            "classes": classes,
            "truth": truth,
            "predicted": predicted,
            "accuracy": accuracy_score(truth, predicted),
            "macro_f1": f1_score(truth, predicted, average="macro", zero_division=0),
            "matthews": matthews_corrcoef(truth, predicted),
        }
        for classes, truth, predicted in cases
    ]


WORDS = (
    "the a an cat dog sat on mat video, short. 'Pasta youtube.com/101 3.5 1,000 it's well-known (yes) "
    "5-10 & &amp; &lt;b&gt; ... a.b a.,b x,, \"quoted\" naïve café — $5.00! {x} [y] U.S. 7. .7 -3 3- a_b tab\there "
    "<skipped> co-\nop 漢字。 50% A The"
).split(" ")


def sentence(least, most):
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(least, most)))


def noisy(reference):
    words = [w for w in reference.split(" ") if rng.random() < 0.85]
    return " ".join(rng.choice(WORDS) if rng.random() < 0.15 else w for w in words)


def bleu():
    sets = []
    for index in range(16):
        rows = []
        for _ in range([1, 1, 2, 5, 12][index % 5]):
            references = [sentence(1, 14) for _ in range(1 + index % 3)]
            answer = noisy(rng.choice(references))
            if rng.random() < 0.1:
                answer = ""
            rows.append({"answer": answer, "references": references})
        sets.append(rows)
    sets += [
        [{"answer": "", "references": ["a b c"]}],
        [{"answer": "x y z w", "references": ["a b c d"]}],
        [{"answer": "cat", "references": ["cat"]}],
        [{"answer": "cat dog", "references": ["dog cat"]}],
        [{"answer": "a b c", "references": ["a b", "a b c d"]}],  # two references as close
        [{"answer": "the the the the the", "references": ["the cat", "the the mat"]}],
        [{"answer": "cat dog sat mat on x", "references": ["cat sat dog on mat y"]}],
        [{"answer": "   ", "references": ["cat"]}, {"answer": "a b c d e", "references": ["a b c d e  "]}],
    ]
    cases = []
    for rows in sets:
        answers = [row["answer"] for row in rows]
        streams = [list(stream) for stream in zip(*(row["references"] for row in rows))]
        for row in rows:
            row["bleu"] = sacrebleu.sentence_bleu(row["answer"], row["references"]).score / 100
        cases.append({"rows": rows, "bleu": sacrebleu.corpus_bleu(answers, streams).score / 100})
    return cases


# From the SQuAD 2.0 evaluation script, as published.
def normalize_answer(s):
    def remove_articles(text):
        return re.sub(re.compile(r"\b(a|an|the)\b", re.UNICODE), " ", text)

    def white_space_fix(text):
        return " ".join(text.split())

    def remove_punc(text):
        exclude = set(string.punctuation)
        return "".join(ch for ch in text if ch not in exclude)

    return white_space_fix(remove_articles(remove_punc(s.lower())))


def get_tokens(s):
    return normalize_answer(s).split() if s else []


def compute_f1(a_gold, a_pred):
    gold_toks = get_tokens(a_gold)
    pred_toks = get_tokens(a_pred)
    common = collections.Counter(gold_toks) & collections.Counter(pred_toks)
    num_same = sum(common.values())
    if len(gold_toks) == 0 or len(pred_toks) == 0:
        return int(gold_toks == pred_toks)
    if num_same == 0:
        return 0
    precision = 1.0 * num_same / len(pred_toks)
    recall = 1.0 * num_same / len(gold_toks)
    return (2 * precision * recall) / (precision + recall)


def token_f1():
    pairs = [("", ""), ("", "cat"), ("cat", ""), ("the", "a"), ("the—cat", "cat"), ("!!!", "..."), ("A.n", "cat")]
    for _ in range(40):
        reference = sentence(0, 8)
        pairs.append((noisy(reference), reference))
    return [{"answer": a, "reference": r, "f1": float(compute_f1(r, a))} for a, r in pairs]


if __name__ == "__main__":
    out = {
        "versions": {"sacrebleu": sacrebleu.__version__, "scikit-learn": sklearn.__version__},
        "classification": classification(),
        "bleu": bleu(),
        "token_f1": token_f1(),
    }
    path = pathlib.Path(__file__).with_name("cases.json")
    path.write_text(json.dumps(out, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
