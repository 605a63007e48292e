"""Trains the tokenizer on generated text and writes it into a model folder.

python -m tools.nano.train_tokenizer radixrt/models/nano
"""

from __future__ import annotations

import argparse
import itertools
import random
from pathlib import Path

from tools.nano.corpus import documents
from tools.nano.encoder import train
from tools.nano.export import write_tokenizer_files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--documents", type=int, default=30_000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    stream = documents(random.Random(args.seed))
    tokenizer = train(document.text for document in itertools.islice(stream, args.documents))
    args.folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer_files(tokenizer, args.folder)
    print(f"{tokenizer.get_vocab_size()} tokens written to {args.folder}")


if __name__ == "__main__":
    main()
