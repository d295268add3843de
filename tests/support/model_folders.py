"""Folders of small random models, each with a tokenizer and a chat template of its own."""

from __future__ import annotations

import json
from pathlib import Path

from engine_reference import random_model
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

SAMPLE = ["What is the sum of two and two? The answer is four, and that is all there is to say of it."] * 4
TEMPLATE = """{{ 'BEGIN' }}{% for m in messages %}{{ 'OPEN' + m.role + 'MID' + m.content + 'CLOSE' }}{% endfor %}\
{% if add_generation_prompt %}{{ 'OPENassistantMID' }}{% endif %}"""
MARKS = {"BEGIN": "{}|s|{}", "OPEN": "{}|o|{}", "MID": "{}|m|{}", "CLOSE": "{}|e|{}"}


def random_folder(folder: Path, kind: str, *, marks: tuple[str, str], num_merges: int = 0, seed: int = 0) -> Path:
    """A model of `random_model`'s kinds over bytes, of which `num_merges` pairs are tokens of their own; special tokens
    stand between `marks`."""
    words = {name: form.format(*marks) for name, form in MARKS.items()}
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + len(words) + num_merges,
        initial_alphabet=alphabet,
        special_tokens=[AddedToken(word, special=True, normalized=False) for word in words.values()],
        show_progress=False,
    )
    tokenizer.train_from_iterator(SAMPLE, trainer)
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    template = TEMPLATE
    for name, word in words.items():
        template = template.replace(name, word)
    (folder / "chat_template.jinja").write_text(template)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    ends = tokenizer.token_to_id(words["CLOSE"])
    sizes = {"vocab_size": tokenizer.get_vocab_size(), "max_position_embeddings": 2048}
    model = random_model(kind, seed, **sizes, eos_token_id=ends, bos_token_id=0, pad_token_id=0)
    model.save_pretrained(folder)
    return folder
