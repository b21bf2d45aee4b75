"""A stand-in for vLLM: the few names that the adapter uses, with their signatures, and no model.

A token is a word. The answer repeats the words of the last turn; some words do harm:

- `die` ends the engine, `fail` this generation, `hang` generates one token and then nothing;
- `long:N` answers N words, `abort` ends as if the engine had given the request up;
- `cut` ends the answer without a reason, `many:N` gives N completions in one output;
- `slow` in a turn holds the template back until the tokenizer's `gate` is open.

Source: releases 0.11 and later of vLLM. It has no other part of them.
"""
