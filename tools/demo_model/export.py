"""Exports a checkpoint of train.py, or another demo GGUF file, to GGUF in a chosen weight type."""

import argparse
import pathlib

import torch

import gguf_file
import tokenizer as tokenizer_module
from model import Config, Model


def load(source):
    """Model and tokenizer of a checkpoint (.pt) or of a GGUF file (.gguf)."""
    if source.suffix == ".gguf":
        return gguf_file.read(source)
    tokenizer = tokenizer_module.build()
    model = Model(Config(vocabulary=len(tokenizer)))
    model.load_state_dict(torch.load(source)["model"])
    return model, tokenizer


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=pathlib.Path, help="checkpoint.pt, or a demo GGUF file")
    parser.add_argument("target", type=pathlib.Path, help="GGUF file to write")
    parser.add_argument("--type", choices=gguf_file.TYPES, default="f16")
    arguments = parser.parse_args()
    model, tokenizer = load(arguments.source)
    gguf_file.write(arguments.target, model, tokenizer, arguments.type)
    print(f"{arguments.target}: {arguments.target.stat().st_size} bytes")


if __name__ == "__main__":
    main()
