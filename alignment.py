"""
Do codes mean what the labels say? Figures on how well latent actions tell the true ones; used by
eval.py for one world and by games.py for many games. codes, labels: whole numbers (n,) from 0 on.
"""
import numpy as np


def confusion(codes, labels, n_codes=None, n_labels=None):
    """How often each code goes with each label, (n_codes,n_labels)."""
    shape = n_codes or codes.max() + 1, n_labels or labels.max() + 1
    counts = np.zeros(shape, int)
    np.add.at(counts, (codes, labels), 1)
    return counts


def nmi(codes, labels):
    """Mutual information over the entropy of the labels."""
    p = confusion(codes, labels) / len(codes)
    pc, pl = p.sum(1, keepdims=True), p.sum(0, keepdims=True)
    entropy = -(pl[pl > 0] * np.log(pl[pl > 0])).sum()
    information = (p[p > 0] * np.log((p / (pc @ pl + 1e-30))[p > 0])).sum()
    return information / max(entropy, 1e-9)


def best_pairs(counts):
    """The largest sum of counts[code, label] with at most one label a code and one code a label:
    the Hungarian method (Kuhn 1955), which brings in one row after the other along the path that
    costs least. Rows are codes, or labels if those are fewer."""
    if counts.shape[0] > counts.shape[1]:
        counts = counts.T
    n, m = counts.shape
    row_of = np.full(m + 1, n)  # the row that a column is paired with, n for none; m: the new row's
    row_price, column_price = np.zeros(n + 1), np.zeros(m + 1)
    for row in range(n):
        row_of[m], column = row, m
        nearest, came_from, seen = np.full(m, np.inf), np.full(m, m), np.zeros(m + 1, bool)
        while row_of[column] < n:
            seen[column], here = True, row_of[column]
            cost = -counts[here] - row_price[here] - column_price[:m]
            closer = ~seen[:m] & (cost < nearest)
            nearest[closer], came_from[closer] = cost[closer], column
            column = int(np.where(seen[:m], np.inf, nearest).argmin())
            step = nearest[column]
            row_price[row_of[seen]] += step
            column_price[seen] -= step
            nearest[~seen[:m]] -= step
        while column != m:
            row_of[column], column = row_of[came_from[column]], came_from[column]
    paired = np.flatnonzero(row_of[:m] < n)
    return int(counts[row_of[paired], paired].sum())


def pairs_share(codes, labels):
    """The share that is right with one label a code and one code a label."""
    return best_pairs(confusion(codes, labels)) / len(codes)


def voted_right(codes, labels, voters):
    """Which of the others (bool) are right, where the transitions `voters` (bool) have voted on
    what each code means; a code without a vote means the first label."""
    votes = confusion(codes[voters], labels[voters], codes.max() + 1, labels.max() + 1).argmax(1)
    return votes[codes[~voters]] == labels[~voters]


def consistency(codes, shifts):
    """Does a code do the same thing everywhere? The share of the transitions that go by the
    displacement, shifts (n,), that is the most frequent for their code. No labels needed."""
    counts = confusion(codes, shifts)
    return counts.max(1).sum() / max(1, counts.sum())
