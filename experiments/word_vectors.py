"""
Makes the word vectors that a new lite ranker starts from, out of a MiniLM's input embeddings.

    python experiments/word_vectors.py --minilm FOLDER     # rewrites pars/ranking/word_vectors.npz

FOLDER holds all-MiniLM-L6-v2 (Apache-2.0). Its word pieces that are whole words as `request.words`
splits them are kept, in its order, which is roughly by frequency.
"""

import argparse
from pathlib import Path

import numpy as np

from pars.ranking.word_vectors import SPREAD, VECTORS_FILE, WordVectors
from pars.request.words import WORD

WIDTH = 64


def main() -> None:
    from transformers import AutoModel, AutoTokenizer

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--minilm", required=True, help="folder of all-MiniLM-L6-v2")
    folder = parser.parse_args().minilm
    pieces = AutoTokenizer.from_pretrained(folder).get_vocab()
    words = [word for word in sorted(pieces, key=pieces.__getitem__) if WORD.fullmatch(word)]
    table = AutoModel.from_pretrained(folder).get_input_embeddings().weight.detach().float().numpy()
    vectors = main_directions(table[[pieces[word] for word in words]])
    path = Path(__file__).parents[1] / "src/pars/learn" / VECTORS_FILE
    WordVectors(tuple(words), vectors).write(path)
    print(f"{path}: {len(words):,} words, {path.stat().st_size:,} bytes")


def main_directions(table: np.ndarray) -> np.ndarray:
    """The WIDTH principal components, with the spread of vectors drawn at random."""
    table = table - table.mean(axis=0)
    _, directions = np.linalg.eigh(table.T @ table)  # the largest last
    components = table @ directions[:, ::-1][:, :WIDTH]
    return (components * (SPREAD / components.std())).astype(np.float32)


if __name__ == "__main__":
    main()
