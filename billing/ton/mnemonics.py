"""New wallets' words, for development: a real operator brings the words of a wallet of their own."""

import random

from pytoniq_core.crypto.keys import words as word_list

from cocoon.mnemonic import WORDS, is_mnemonic


def new_mnemonic(rng: random.Random) -> tuple[str, ...]:
    """24 words that wallet apps take; one draw in 256 passes the scheme's check."""
    while True:
        words = tuple(word_list[rng.randrange(len(word_list))] for _ in range(WORDS))
        if is_mnemonic(words):
            return words
